"""`funcmq dev`: a whole private fabric for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path

import click

from funcmq.broker import settings
from funcmq.dev.brokers import with_credentials
from funcmq.dev.folder import write_secret
from funcmq.dev.process import die_with_parent
from funcmq.dev.stack import ENDPOINT, Options, Stack

COMMAND_GRACE_S = 10.0
SHOWN = ("FUNCMQ_URL", "FUNCMQ_TOKEN", "FUNCMQ_KEY", "FUNCMQ_ENDPOINT")
PROGRAM = """\
import platform
from funcmq import Executor
with Executor() as fabric:
    print(fabric.submit(platform.platform).result())
    print(list(fabric.map(abs, range(-3, 4))))
"""


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything in this folder between runs; otherwise nothing is kept.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the front door; otherwise a free one.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Workers of the endpoint; otherwise one for each core, at least two.")
@click.option("--database", default="", metavar="URL", help="Database of the front door; otherwise a SQLite file in the folder.")
@click.option(
    "--broker", default="", metavar="URL", help="A broker prepared as deploy/rabbitmq says; its credentials in FUNCMQ_BROKER_URL."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def dev(data: Path | None, port: int, workers: int, database: str, broker: str, command: tuple[str, ...]) -> int:
    """Start RabbitMQ, a front door and one endpoint, all private to this machine.

    Without COMMAND it runs until Ctrl-C, and is the profile `dev` of your other commands and programs meanwhile.  With COMMAND, that runs
    inside it (FUNCMQ_URL, FUNCMQ_TOKEN, FUNCMQ_KEY and FUNCMQ_ENDPOINT are set), everything is taken down after it, and its exit status is
    passed on.
    """
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))}
    if command and not shutil.which(command[0], path=environment["PATH"]):
        raise click.UsageError(f"There is no program {command[0]!r}.")
    options = Options(data, port, workers, with_credentials(broker, os.environ.get("FUNCMQ_BROKER_URL", "")), database)
    return asyncio.run(Session(command, environment).run(options))


class Session:
    """One run of `funcmq dev`: what signals do, and what is said."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._process: asyncio.subprocess.Process | None = None
        self._signal = 0

    async def run(self, options: Options) -> int:
        """The exit status: the command's, or 128 + the signal that ended it.

        SIGINT, SIGTERM and SIGHUP take everything down in order; further ones change nothing.  While the command runs, the Ctrl-C of a
        terminal is its own business.
        """
        main = asyncio.ensure_future(self._inside(options))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number, main)
        try:
            return await main
        except asyncio.CancelledError:
            return 128 + self._signal

    def _on_signal(self, number: signal.Signals, main: asyncio.Future[int]) -> None:
        if number == signal.SIGINT and self._process is not None:
            if not sys.stdin.isatty():  # a terminal sends it to the command by itself
                _send(self._process, signal.SIGINT)
        elif not self._signal:
            self._signal = number
            main.cancel()

    async def _inside(self, options: Options) -> int:
        async with Stack(options, _note) as stack:
            return await _while_alive(self._work(stack), stack)

    async def _work(self, stack: Stack) -> int:
        if self._command:  # it has its environment; the profile `dev` is for a person's other programs
            return await self._run_command(stack)
        with profile(stack) as is_profile:
            _introduce(stack, is_profile=is_profile)
            await asyncio.Event().wait()
        return 0

    async def _run_command(self, stack: Stack) -> int:
        _note(f"ready at {stack.url} after {stack.started_s:.1f} s")
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, env={**self._environment, **stack.environment}, preexec_fn=die_with_parent(signal.SIGTERM)
        )
        try:
            status = await process.wait()
        finally:
            self._process = None
            await _end(process)
        return status if status >= 0 else 128 - status


async def _while_alive(work: Coroutine[None, None, int], stack: Stack) -> int:
    """The work's answer; when broker or front door die under it, it is cancelled and their error raised."""
    task, died = asyncio.ensure_future(work), asyncio.ensure_future(stack.died())
    try:
        await asyncio.wait({task, died}, return_when=asyncio.FIRST_COMPLETED)
        if died.done():
            died.result()
        return task.result()
    finally:
        task.cancel()
        died.cancel()
        await asyncio.wait({task, died})


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    _send(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(COMMAND_GRACE_S):
            await process.wait()
    _send(process, signal.SIGKILL)
    await process.wait()


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


@contextlib.contextmanager
def profile(stack: Stack) -> Iterator[bool]:
    """Be the profile `dev` of this user, unless another `funcmq dev` is that already; whether it is."""
    path = settings.dev_file()
    mine = {
        "pid": os.getpid(),
        "url": stack.url,
        "token": stack.token,
        "key": str(stack.folder.key),
        "endpoint": ENDPOINT,
    }
    if _taken(path):
        _note(f"another `funcmq dev` of yours is the profile `dev` already ({path})")
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_secret(path, json.dumps(mine))
    try:
        yield True
    finally:
        if _pid(path) == os.getpid():
            path.unlink(missing_ok=True)


def _taken(path: Path) -> bool:
    pid = _pid(path)
    if pid in (0, os.getpid()):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _pid(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _introduce(stack: Stack, *, is_profile: bool) -> None:
    """For a person: what to set elsewhere on stdout, the rest on stderr."""
    _note(f"\nfuncmq is ready at {stack.url} after {stack.started_s:.1f} s; Ctrl-C ends it.  Paste this into a Python of this machine:\n")
    _note(PROGRAM)
    _note("Programs and commands of yours find it by themselves.  Elsewhere, set:\n" if is_profile else "For that, set:\n")
    for name in SHOWN:
        click.echo(f"export {name}={stack.environment[name]}")


def _note(text: str) -> None:
    click.echo(text, err=True)
