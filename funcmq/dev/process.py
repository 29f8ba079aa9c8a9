"""One of our own processes as a child: its log, its end, and nothing left of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """For `preexec_fn`: Linux sends this signal to the child when its parent is gone; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number)

    return ask


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; '' if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


class Child:
    """A process of ours with its output in `log`, in a session of its own: a terminal's Ctrl-C does not reach it; its starter ends it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log, self._process = name, log, process

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start it; stdin is empty, stdout and stderr are appended to log."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait for its end; returns its exit status.  Cancelling is safe."""
        return await self._process.wait()

    async def end(self, grace: float) -> None:
        """Ask it to end, insist after `grace` seconds, and wait until it is gone."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


async def run(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a short command to its end; returns its exit status and what it said on both streams."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    return process.returncode or 0, said.decode(errors="replace").strip()
