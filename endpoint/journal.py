"""The journal: what the daemon has promised, in one SQLite file, written by one thread.

`commit` takes writes and returns when they are on disk; what arrives while a commit is under way shares the next one. A commit is all or
nothing for each caller: a failure is told to everybody who shared it, and nothing of it is written.

A journal belongs to one process (`AlreadyRunning` for the next one), lies on a disk of this host (SQLite's WAL needs shared memory, which
network file systems do not have), and has an id and a birth: both change when it is made anew, which is how the front door recognises that
an old one is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import re
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funcmq.broker.errors import AlreadyRunning, ConfigurationError, StorageFull
from funcmq.broker.ids import new_hex
from funcmq.endpoint.writes import SCHEMA, Held, Meta, Recover, Write

FILE = "journal.sqlite3"
LOCK = "lock"
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "panfs", "pvfs2", "orangefs", "ceph", "glusterfs"}
    | {"afs", "9p", "fuse.sshfs"}
)
"""File systems on which a journal is refused."""
ENOUGH_BYTES = 64 * 1024 * 1024
"""Free space below which no new work is taken."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which journal this is.  `birth` is milliseconds since the epoch."""

    id: str
    birth: int


@dataclass(slots=True)
class _Request:
    writes: tuple[Write, ...]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Any]]


class Journal:
    """An open journal.  Make it with `open_journal`; end it with `close`."""

    def __init__(self, folder: Path, identity: Identity, database: sqlite3.Connection, lock: int) -> None:
        self.folder, self.identity = folder, identity
        self._database, self._lock = database, lock
        self.commits = 0
        """Transactions so far."""
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    async def commit(self, *writes: Write) -> list[Any]:
        """Write all of these, durably; their answers in order.

        A cancelled wait takes nothing back: what was asked for is written or fails as a whole.

        :raises StorageFull: the disk is full or cannot be written.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._requests.put(_Request(writes, loop, future))
        return await asyncio.shield(future)

    async def held(self) -> Held:
        """What is open: for the start."""
        held: Held = (await self.commit(Recover()))[0]
        return held

    def has_room(self) -> bool:
        """Whether the disk has space for new work."""
        room = os.statvfs(self.folder)
        return room.f_bavail * room.f_frsize > ENOUGH_BYTES

    def close(self) -> None:
        """Finish what was asked for, and give the journal free."""
        self._requests.put(None)
        self._thread.join()
        os.close(self._lock)

    def _run(self) -> None:
        ending = False
        while not ending:
            batch = [self._requests.get()]
            while not self._requests.empty():
                batch.append(self._requests.get())
            ending = None in batch
            self._write([request for request in batch if request is not None])
        self._database.close()

    def _write(self, batch: list[_Request]) -> None:
        try:
            answers = self._transact(batch)
        except sqlite3.Error as broken:
            if len(batch) > 1:  # one of them may be at fault; the others need not fail with it
                for request in batch:
                    self._write([request])
                return
            error = StorageFull(f"The journal in {self.folder} cannot be written: {broken}.")
            _tell(batch, [error] * len(batch))
        else:
            _tell(batch, answers)

    def _transact(self, batch: list[_Request]) -> list[list[Any] | Exception]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            answers: list[list[Any] | Exception] = [[write.apply(self._database) for write in request.writes] for request in batch]
            self._database.execute("COMMIT")
            self.commits += 1
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        return answers


def _tell(batch: list[_Request], answers: list[list[Any] | Exception]) -> None:
    """Wake every event loop once, however many requests shared the commit."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[list[Any]], list[Any] | Exception]]] = {}
    for request, answer in zip(batch, answers, strict=True):
        by_loop.setdefault(request.loop, []).append((request.future, answer))
    for loop, told in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, told)
        except RuntimeError:  # that loop is closed: nobody waits any more
            continue


def _resolve(told: list[tuple[asyncio.Future[list[Any]], list[Any] | Exception]]) -> None:
    for future, answer in told:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def open_journal(folder: Path) -> Journal:
    """The journal in this folder, made if there is none.

    :raises AlreadyRunning: another process of this host holds it.
    :raises ConfigurationError: the folder is on a network file system, or cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_file_system(folder)
        lock = _take_lock(folder)
        database = _connect(folder / FILE)
    except (OSError, sqlite3.Error) as broken:
        hint = "Set journal_dir in endpoint.toml."
        raise ConfigurationError(f"The journal folder {folder} cannot be used: {broken}.", hint=hint) from None
    return Journal(folder, _identity(database), database, lock)


def _take_lock(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        said = f"This endpoint already runs on this host ({holder or 'holder unknown'})."
        raise AlreadyRunning(said, hint="`funcmq endpoint stop NAME` ends it.", **_holder(holder)) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
    return lock


def _holder(said: str) -> dict[str, object]:
    """Host, pid and time, as the holder of a lock wrote them."""
    known = re.fullmatch(r"pid (\d+) on (\S+) since (.+)", said)
    return {"pid": int(known[1]), "host": known[2], "since": known[3]} if known else {}


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(SCHEMA)
    return database


def _identity(database: sqlite3.Connection) -> Identity:
    known = dict(database.execute("SELECT name, value FROM meta WHERE name IN ('id', 'birth')").fetchall())
    if "id" not in known:
        known = {"id": new_hex(), "birth": str(int(time.time() * 1000))}
        for name, value in known.items():
            Meta(name, value).apply(database)
    return Identity(known["id"], int(known["birth"]))


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that holds a folder, from the text of `/proc/self/mountinfo`; '' where it cannot be told."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if "-" not in fields or len(fields) < fields.index("-") + 2:
            continue
        point = fields[4].replace("\\040", " ")
        if len(point) >= len(best) and folder.is_relative_to(point):
            best, kind = point, fields[fields.index("-") + 1]
    return kind


def _check_file_system(folder: Path) -> None:
    table = Path("/proc/self/mountinfo")
    kind = file_system(folder.resolve(), table.read_text(errors="replace")) if table.exists() else ""
    if kind in NETWORK:
        raise ConfigurationError(
            f"The journal folder {folder} lies on a network file system ({kind}).",
            hint="Set journal_dir to a folder on a disk of this host.",
        )
