"""Ending with the process that one belongs to.

`funcmq dev` promises to leave nothing behind, also after a kill -9 of it, and also when somebody started a daemon again inside it.  So
every long-running funcmq process watches the process named by `FUNCMQ_EXIT_WITH`, and ends in order when that one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLE = "FUNCMQ_EXIT_WITH"
POLL_S = 0.5


async def parent_gone() -> None:
    """Return when the process named by `FUNCMQ_EXIT_WITH` is gone; never when the variable is unset.  Cancelling is safe.

    Meant for a TaskGroup or an `asyncio.wait` beside the process's own work.
    """
    text = os.environ.get(VARIABLE, "")
    await gone(int(text) if text.isdigit() else 0)


async def gone(pid: int) -> None:
    """Return when process pid has ended; never for 0.  Cancelling is safe."""
    if pid <= 0:
        await asyncio.Event().wait()
    try:
        handle = _handle(pid)
    except ProcessLookupError:
        return
    if handle is None:
        await _poll(pid)
        return
    with _closing(handle):
        await _readable(handle)


def _handle(pid: int) -> int | None:
    """A pidfd, or None where the system has none (or a sandbox forbids it)."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)  # noqa: TID251  # on Linux: see above
    except ProcessLookupError:
        raise
    except OSError:
        return None


@contextlib.contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


async def _readable(handle: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)


async def _poll(pid: int) -> None:
    """Ask twice a second.  Never on Windows, where signal 0 would end the process instead of asking for it."""
    if sys.platform == "win32":
        await asyncio.Event().wait()
    while True:
        try:
            os.kill(pid, 0)  # noqa: TID251  # not on Windows: see above
        except ProcessLookupError:
            return
        except PermissionError:
            pass  # it exists, as somebody else's
        await asyncio.sleep(POLL_S)
