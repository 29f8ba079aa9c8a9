"""Being the profile `dev` of this user, one `funcmq dev` at a time.

A lock says whose turn it is, because the system gives it back whatever ends its holder; `dev.json` says what the profile holds.  Who comes
second waits, and takes it when the first has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from funcmq.broker import settings
from funcmq.broker.lifeline import gone
from funcmq.dev.folder import write_secret

AGAIN_S = 0.5
"""Before the next try, where the holder does not say its pid."""


class Profile:
    """The profile of one fabric; `path` is its `dev.json`."""

    def __init__(self, said: Mapping[str, str], path: Path) -> None:
        self._said, self.path = said, path
        self._lock = -1

    def take(self) -> bool:
        """Be it, if nobody else is; whether that worked."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_name("dev.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        pid = os.getpid()
        write_secret(self.path, json.dumps({"pid": pid, "born": settings.born(pid), **self._said}))
        return True

    async def wait(self) -> None:
        """Be it as soon as whoever is it has ended.  Cancelling is safe."""
        while not self.take():
            pid = self.holder()
            await (gone(pid) if pid and pid != os.getpid() else asyncio.sleep(AGAIN_S))
            await asyncio.sleep(0)

    def holder(self) -> int:
        """Pid of whoever wrote it; 0 where that cannot be told."""
        try:
            return int(json.loads(self.path.read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def give_back(self) -> None:
        """Be it no longer."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._lock)
        self._lock = -1
