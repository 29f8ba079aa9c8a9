"""What can be written to the journal: each is one change, applied inside a transaction that many of them share.

All of them touch many tasks with one statement: SQLite gives up the interpreter lock at every step of a statement, and a thousand steps
beside a busy event loop would be a thousand waits for it.  Ids therefore come as one run of bytes, 16 for each, and are taken apart by
SQLite itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from funcmq.endpoint.tasks import State

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bundles (
    n INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, body BLOB NOT NULL, received INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS tasks (
    id BLOB PRIMARY KEY, bundle INTEGER NOT NULL, idx INTEGER NOT NULL, state INTEGER NOT NULL, forget INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, infra INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tombstones (id BLOB PRIMARY KEY, forget INTEGER NOT NULL) WITHOUT ROWID;
"""

_INSERT = """
INSERT OR IGNORE INTO tasks (id, bundle, idx, state, forget)
SELECT substr(:ids, 16 * key + 1, 16), :bundle, value, 0, :forget FROM json_each(:indices)
"""
_SLICE = "SELECT max(id) FROM (SELECT id FROM tasks WHERE id > ? ORDER BY id LIMIT ?)"
_BURY = """
INSERT OR IGNORE INTO tombstones
SELECT cancelled, :forget FROM (SELECT substr(:ids, 16 * value + 1, 16) AS cancelled FROM json_each(:places))
WHERE cancelled NOT IN (SELECT id FROM tasks)
"""
_IDS = "SELECT substr(:ids, 16 * value + 1, 16) FROM json_each(:places)"


def _places(ids: bytes) -> str:
    return json.dumps(list(range(len(ids) // 16)))


class Write(Protocol):
    """One change.  `apply` runs on the journal's thread, inside a transaction; what it returns is handed to whoever committed it."""

    def apply(self, database: sqlite3.Connection) -> Any: ...


@dataclass(frozen=True, slots=True)
class Accept:
    """A bundle has come: `body` is its exact bytes, `indices` the tasks to take, `ids` theirs.

    Gives the indices not known before.
    """

    id: str
    body: bytes
    received: int
    indices: Sequence[int]
    ids: bytes
    forget: int

    def apply(self, database: sqlite3.Connection) -> list[int]:
        database.execute("SAVEPOINT accept")
        named = {"ids": self.ids, "bundle": self._row(database), "forget": self.forget, "indices": json.dumps(list(self.indices))}
        fresh = list(self.indices)
        if database.execute(_INSERT, named).rowcount != len(fresh):
            database.execute("ROLLBACK TO accept")
            fresh = self._fresh(database, named)
            if fresh:
                named["bundle"] = self._row(database)
                database.execute(_INSERT, named)
        database.execute("RELEASE accept")
        return fresh

    def _row(self, database: sqlite3.Connection) -> int:
        found = database.execute("SELECT n FROM bundles WHERE id = ?", (self.id,)).fetchone()
        if found is not None:
            return int(found[0])
        inserted = database.execute("INSERT INTO bundles (id, body, received) VALUES (?, ?, ?)", (self.id, self.body, self.received))
        return int(inserted.lastrowid or 0)

    def _fresh(self, database: sqlite3.Connection, named: dict[str, Any]) -> list[int]:
        """Rare: some of these came before.  The insertion does not say which, so it is taken back and they are asked for."""
        known = database.execute(
            "SELECT value FROM json_each(:indices) WHERE substr(:ids, 16 * key + 1, 16) IN (SELECT id FROM tasks)", named
        )
        return sorted(set(self.indices) - {row[0] for row in known})


@dataclass(frozen=True, slots=True)
class Launched:
    """These tasks are handed to a pool."""

    ids: bytes

    def apply(self, database: sqlite3.Connection) -> None:
        named = {"ids": self.ids, "places": _places(self.ids)}
        database.execute(f"UPDATE tasks SET state = 1, attempts = attempts + 1 WHERE state < 2 AND id IN ({_IDS})", named)  # noqa: S608


@dataclass(frozen=True, slots=True)
class Again:
    """This task goes back to the queue, with these counts."""

    id: bytes
    attempts: int
    infra: int
    deaths: int
    errors: int

    def apply(self, database: sqlite3.Connection) -> None:
        database.execute(
            "UPDATE tasks SET state = 0, attempts = ?, infra = ?, deaths = ?, errors = ? WHERE id = ?",
            (self.attempts, self.infra, self.deaths, self.errors, self.id),
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """These tasks have ended, as a result bundle says that is to be sent.  Gives its place in the outbox."""

    ids: bytes
    bundle: str
    key: str
    body: bytes

    def apply(self, database: sqlite3.Connection) -> int:
        named = {"ids": self.ids, "places": _places(self.ids)}
        database.execute(f"UPDATE tasks SET state = 2 WHERE id IN ({_IDS})", named)  # noqa: S608
        inserted = database.execute("INSERT INTO outbox (id, key, body) VALUES (?, ?, ?)", (self.bundle, self.key, self.body))
        return int(inserted.lastrowid or 0)


@dataclass(frozen=True, slots=True)
class Closed:
    """All tasks of this bundle have ended: its bytes are not needed any more."""

    id: str

    def apply(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM bundles WHERE id = ?", (self.id,))


@dataclass(frozen=True, slots=True)
class Stored:
    """The front door has these result bundles."""

    bundles: Sequence[str]

    def apply(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM outbox WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(list(self.bundles)),))


@dataclass(frozen=True, slots=True)
class Buried:
    """Cancels of tasks that nobody knows here.  Gives those that the journal does know after all, and that have ended."""

    ids: bytes
    forget: int

    def apply(self, database: sqlite3.Connection) -> list[bytes]:
        named = {"ids": self.ids, "places": _places(self.ids), "forget": self.forget}
        database.execute(_BURY, named)
        return [row[0] for row in database.execute(f"SELECT id FROM tasks WHERE id IN ({_IDS})", named)]  # noqa: S608


@dataclass(frozen=True, slots=True)
class Meta:
    """A fact about the journal itself."""

    name: str
    value: str

    def apply(self, database: sqlite3.Connection) -> None:
        database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (self.name, self.value))


@dataclass(frozen=True, slots=True)
class Forget:
    """A slice of the sweep: of the next tasks after this id, forget those that ended and whose time has come.

    Gives the last id seen, b'' at the end.
    """

    after: bytes
    now: int
    slice: int = 20_000

    def apply(self, database: sqlite3.Connection) -> bytes:
        last = database.execute(_SLICE, (self.after, self.slice)).fetchone()
        if last[0] is None:
            database.execute("DELETE FROM tombstones WHERE forget < ?", (self.now,))
            return b""
        database.execute("DELETE FROM tasks WHERE id > ? AND id <= ? AND state = 2 AND forget < ?", (self.after, last[0], self.now))
        return bytes(last[0])


@dataclass(frozen=True, slots=True)
class Fetch:
    """Not a change: the bytes of a result bundle that is to be sent once more, and its key; None when it is stored."""

    bundle: str

    def apply(self, database: sqlite3.Connection) -> tuple[str, bytes] | None:
        found: tuple[str, bytes] | None = database.execute("SELECT key, body FROM outbox WHERE id = ?", (self.bundle,)).fetchone()
        return found


@dataclass(frozen=True, slots=True)
class OpenTask:
    """A row of `tasks` that has not ended."""

    id: bytes
    index: int
    state: State
    attempts: int
    infra: int
    deaths: int
    errors: int


@dataclass(frozen=True, slots=True)
class OpenBundle:
    """A row of `bundles` and its tasks that have not ended."""

    id: str
    body: bytes
    received: int
    tasks: list[OpenTask]


@dataclass(frozen=True, slots=True)
class Held:
    """What a journal holds at the start: open work, ids of result bundles not known to be stored (oldest first), and tombstones."""

    bundles: list[OpenBundle]
    outbox: list[str]
    tombstones: set[bytes]


@dataclass(frozen=True, slots=True)
class Recover:
    """Not a change: everything that is open."""

    def apply(self, database: sqlite3.Connection) -> Held:
        rows: dict[int, list[OpenTask]] = {}
        for bundle, identifier, index, state, *counts in database.execute(
            "SELECT bundle, id, idx, state, attempts, infra, deaths, errors FROM tasks WHERE state < 2 ORDER BY bundle, idx"
        ):
            rows.setdefault(bundle, []).append(OpenTask(identifier, index, State(state), *counts))
        found = database.execute("SELECT n, id, body, received FROM bundles ORDER BY n")
        bundles = [OpenBundle(identifier, body, received, rows[n]) for n, identifier, body, received in found if n in rows]
        outbox = [row[0] for row in database.execute("SELECT id FROM outbox ORDER BY n")]
        return Held(bundles, outbox, {row[0] for row in database.execute("SELECT id FROM tombstones")})
