"""The endpoint daemon of a stack, seen from outside: who holds its journal, whoever started it.

Tests and people kill the daemon inside a `funcmq dev` and start it again, detached; it is found by the lock that every daemon holds on
its journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import sqlite3
from pathlib import Path

from funcmq.broker.lifeline import gone

GRACE_S = 20.0
STOP_GRACE_S = 3
"""How long tasks may go on running when the stack is taken down."""
_LAUNCHED = 1


def holder(journal: Path) -> int:
    """The pid of the daemon that holds this journal; 0 where nobody does."""
    try:
        lock = os.open(journal / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        said = re.match(rb"pid (\d+)", os.pread(lock, 200, 0))
        return int(said[1]) if said else 0
    else:
        return 0
    finally:
        os.close(lock)


def launched(journal: Path) -> int:
    """How many tasks the journal says are handed to the pool.  Meant for a journal that nobody holds."""
    with contextlib.closing(sqlite3.connect(journal / "journal.sqlite3")) as database:
        return int(database.execute("SELECT count(*) FROM tasks WHERE state = ?", (_LAUNCHED,)).fetchone()[0])


async def kill(pid: int) -> None:
    """`kill -9`, and wait until it is gone."""
    await _signal(pid, signal.SIGKILL, GRACE_S)


async def end(journal: Path) -> None:
    """End the daemon that holds this journal, if there is one; first in order, then the hard way."""
    if pid := holder(journal):
        await _signal(pid, signal.SIGTERM, GRACE_S)
        if holder(journal) == pid:
            await kill(pid)


async def _signal(pid: int, number: signal.Signals, seconds: float) -> None:
    with contextlib.suppress(TimeoutError, ProcessLookupError):
        os.kill(pid, number)
        async with asyncio.timeout(seconds):
            await gone(pid)


def adjust(file: Path, url: str, workers: int) -> None:
    """Write what may differ from run to run into an `endpoint.toml`: the front door's URL, and the workers (0 leaves them).

    The daemon is also told not to wait long for running tasks at its end.
    """
    text = _set(file.read_text(), "url", f'"{url}"')
    text = _set(text, "stop_grace", f'"{STOP_GRACE_S}s"')
    file.write_text(_set(text, "workers_per_node", str(workers)) if workers else text)


def _set(text: str, key: str, value: str) -> str:
    return re.sub(rf"(?m)^(# *)?{key} = [^#\n]*", f"{key} = {value} ", text, count=1)
