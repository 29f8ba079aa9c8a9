"""One run of `funcmq dev`: what signals do, and what is said."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine, Mapping

import click

from funcmq.broker import settings
from funcmq.dev.command import PROGRAM
from funcmq.dev.process import die_with_parent
from funcmq.dev.profile import Profile
from funcmq.dev.stack import ENDPOINT, Options, Stack

COMMAND_GRACE_S = 10.0
SHOWN = ("FUNCMQ_URL", "FUNCMQ_TOKEN", "FUNCMQ_KEY", "FUNCMQ_ENDPOINT")


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
        profile = _profile(stack)
        try:
            is_profile = profile.take()
            _introduce(stack, is_profile=is_profile)
            if not is_profile:
                _note(f"another `funcmq dev` of yours (pid {profile.holder()}) is the profile `dev`; this one is it when that has ended")
                await profile.wait()
                _note("this is the profile `dev` now")
            await asyncio.Event().wait()
        finally:
            profile.give_back()
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


def _profile(stack: Stack) -> Profile:
    said = {"url": stack.url, "token": stack.token, "key": str(stack.folder.key), "endpoint": ENDPOINT}
    return Profile(said, settings.dev_file())


def _introduce(stack: Stack, *, is_profile: bool) -> None:
    """For a person: what to set elsewhere on stdout, the rest on stderr."""
    _note(f"\nfuncmq is ready at {stack.url} after {stack.started_s:.1f} s; Ctrl-C ends it.  Paste this into a Python of this machine:\n")
    _note(PROGRAM)
    _note("Programs and commands of yours find it by themselves.  Elsewhere, set:\n" if is_profile else "For that, set:\n")
    for name in SHOWN:
        click.echo(f"export {name}={stack.environment[name]}")


def _note(text: str) -> None:
    click.echo(text, err=True)
