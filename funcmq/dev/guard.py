"""`python -m funcmq.dev.guard --parent PID`: runs foreign servers, and ends them with their owner.

A server started as a plain child survives a kill -9 of its parent.  This process stands between them, in a session of its own: it reads
one job (JSON, one line) from stdin, starts the job's commands in order, says `ready` or `failed: REASON` on stdout, and ends them in
reverse order when the parent is gone, on SIGTERM, or when one of them ends by itself (`died: NAME`).  Each gets SIGTERM (or the signal that
it wants), then after its grace SIGKILL, to its whole process group.  The job's folder, if named, is deleted last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import sys
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from funcmq.broker.lifeline import VARIABLE, gone
from funcmq.dev.process import die_with_parent

_OTHERS_S = 20.0
_PROBE_S = 0.02


@dataclass(frozen=True, slots=True)
class Command:
    """One server.  It is up when `ready_text` appears in its output, or something listens on `ready_port` of the loopback address.

    `grace`: seconds between `end_signal` and SIGKILL; with 0 it is killed at once.  `user`: as whom a root owner runs it; '' is as itself.
    """

    name: str
    argv: list[str]
    environment: dict[str, str]
    log: str
    ready_text: str = ""
    ready_port: int = 0
    grace: float = 3.0
    end_signal: int = signal.SIGTERM
    user: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What to run, and the folder to delete afterwards ('' for none)."""

    commands: list[Command]
    folder: str = ""

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Job:
        """The inverse of `text`."""
        read = json.loads(text)
        return cls([Command(**command) for command in read["commands"]], read["folder"])


def as_user(name: str) -> dict[str, Any]:
    """What makes a subprocess run as this user, with that user's group only; nothing for ''."""
    if not name:
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Server:
    """A command that has been started."""

    def __init__(self, command: Command, process: asyncio.subprocess.Process) -> None:
        self.command, self._process = command, process
        self._up = asyncio.Event()
        self._output = asyncio.create_task(self._copy(), name=f"output of {command.name}")

    @classmethod
    async def start(cls, command: Command) -> Server:
        """:raises OSError: it cannot be executed."""
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            env=command.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),  # should somebody kill this process the hard way
            **as_user(command.user),
        )
        return cls(command, process)

    async def up(self) -> None:
        """Wait until it can be used."""
        if self.command.ready_text:
            await self._up.wait()
        if self.command.ready_port:
            await _listening(self.command.ready_port)

    async def ended(self) -> str:
        """Wait for its end; returns its name."""
        await self._process.wait()
        return self.command.name

    async def end(self) -> None:
        """Nothing of its process group runs when this returns."""
        if self.command.grace:
            self._signal(self.command.end_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.command.grace):
                    await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._output.cancel()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _copy(self) -> None:
        """Its output into the log; the pipe is read to its end, because a full one would stop the server."""
        assert self._process.stdout is not None
        wanted, tail = self.command.ready_text.encode(), b""
        with Path(self.command.log).open("ab", buffering=0) as log:
            while data := await self._process.stdout.read(65536):
                log.write(data)
                tail = (tail + data)[-4096 - len(wanted) :] if not self._up.is_set() else b""
                if wanted and wanted in tail:
                    self._up.set()


async def _listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(_PROBE_S)  # a foreign server does not tell otherwise
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return


async def _serve(job: Job, servers: list[Server]) -> str:
    """Start everything and wait until one ends; returns what to say."""
    for command in job.commands:
        try:
            server = await Server.start(command)
        except OSError as broken:
            return f"failed: {command.argv[0]}: {broken.strerror}"
        servers.append(server)
        if await _first(server.up(), server.ended()):
            return f"failed: {command.name} ended while it started"
    _say("ready")
    return f"died: {await _any_end(servers)}"


async def _first(up: Awaitable[object], ended: Awaitable[object]) -> bool:
    """Whether the second was first."""
    tasks = [asyncio.ensure_future(up), asyncio.ensure_future(ended)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[1].done()
    finally:
        for task in tasks:
            task.cancel()


async def _any_end(servers: list[Server]) -> str:
    if not servers:
        await asyncio.Event().wait()
    tasks = [asyncio.create_task(server.ended()) for server in servers]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    return next(iter(done)).result()


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)  # noqa: T201  # the answer to the parent


async def guard(job: Job, parent: int) -> None:
    """Run the job until the parent is gone, SIGTERM or SIGINT comes, or a server ends."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers: list[Server] = []
    work = asyncio.create_task(_serve(job, servers), name="servers")
    orphaned = asyncio.create_task(gone(parent), name="parent")
    await asyncio.wait([work, orphaned, asyncio.create_task(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        _say(work.result())
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    for server in reversed(servers):
        await server.end()
    if job.folder:
        if orphaned.done():
            await _others_gone(parent)
        await asyncio.to_thread(shutil.rmtree, job.folder, ignore_errors=True)


async def _others_gone(parent: int) -> None:
    """Wait, not for ever, for what ends with the same parent (`funcmq.broker.lifeline`), because it writes into the folder to its end."""
    mark = f"{VARIABLE}={parent}".encode()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_OTHERS_S):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if mark in (process / "environ").read_bytes().split(b"\0"):
                        await gone(int(process.name))


def main() -> None:
    """Read the job and run it."""
    parser = argparse.ArgumentParser(prog="python -m funcmq.dev.guard")
    parser.add_argument("--parent", type=int, required=True)
    parent = parser.parse_args().parent
    job = Job.parse(sys.stdin.readline())
    asyncio.run(guard(job, parent))


if __name__ == "__main__":
    main()
