"""Processes that a pool left behind: recognised by a mark in their environment that only this journal gives out.

A killed daemon cannot end its blocks, a killed worker pool leaves a helper process, and children that lead their own process group are
reached by no group kill.  All of them inherited the mark.  One process holds a journal, so whatever else carries its mark when a daemon
starts, or after it has stopped its pools, is a leftover.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "FUNCMQ_JOURNAL"
BLOCK = "FUNCMQ_BLOCK"
"""Environment variables of everything that runs in a block."""


def find(journal: str, block: str = "") -> list[int]:
    """Pids of this user's processes that carry the mark of this journal (and of this block); this process is never among them."""
    wanted = [f"{MARK}={journal}".encode()] + ([f"{BLOCK}={block}".encode()] if block else [])
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid != os.getpid() and _has(entry, wanted):
            found.append(pid)
    return found


def _has(entry: Path, wanted: list[bytes]) -> bool:
    try:
        environment = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return all(mark in environment for mark in wanted)


def end(journal: str, block: str = "", *, grace_s: float = 2.0) -> int:
    """Terminate them, then kill what is left after the grace; how many there were.  Blocks for at most a little longer than the grace."""
    pids = find(journal, block)
    _signal(pids, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := find(journal, block)) and time.monotonic() < deadline:
        time.sleep(0.05)
    while left:
        _signal(left, signal.SIGKILL)
        time.sleep(0.02)
        left = [pid for pid in find(journal, block) if _running(pid)]
    return len(pids)


def _running(pid: int) -> bool:
    """Whether it is more than a zombie that its parent has not collected, or a process in a state that no signal ends."""
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        return state not in {"Z", "X", "D"}
    return False


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
