"""SQLite under SQLAlchemy's asyncio extension, without a thread hop for every call.

aiosqlite hands each cursor call to a thread and waits for it: four hops a statement, about 6 ms for one small transaction beside a busy
event loop, where SQLite itself takes 0.2.  Its dialect takes any connection with the same methods (`async_creator`); here they call the
standard library's driver at once and never suspend.  Whoever must not block the event loop runs a whole transaction in one thread with
`finish` (the writer does); a short indexed read is quicker than the hop.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Coroutine
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")


class Cursor(sqlite3.Cursor):
    """A cursor whose calls can be awaited and are done already."""

    async def __aenter__(self) -> Cursor:
        return self

    async def execute(self, *arguments: Any) -> None:  # type: ignore[override]
        super().execute(*arguments)

    async def executemany(self, *arguments: Any) -> None:  # type: ignore[override]
        super().executemany(*arguments)

    async def fetchall(self) -> list[Any]:  # type: ignore[override]
        return super().fetchall()

    async def close(self) -> None:  # type: ignore[override]
        super().close()


class Connection:
    """What aiosqlite's dialect asks of a connection.  Transactions are begun by hand: the driver itself is in autocommit mode."""

    isolation_level = None

    def __init__(self, path: str) -> None:
        # one thread at a time uses it, and not always the same one
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def cursor(self) -> Cursor:
        return self._connection.cursor(Cursor)

    async def create_function(self, *arguments: Any, **options: Any) -> None:
        self._connection.create_function(*arguments, **options)

    async def commit(self) -> None:
        self._connection.commit()

    async def rollback(self) -> None:
        self._connection.rollback()

    async def close(self) -> None:
        self._connection.close()


async def connect(path: str) -> Connection:
    """An open connection, for `create_async_engine(async_creator=…)`."""
    return Connection(path)


def driver(connection: AsyncConnection) -> sqlite3.Connection | None:
    """What lies under a connection of SQLAlchemy's, for statements too short for its layers; None when it is not SQLite."""
    found = connection.sync_connection.connection.driver_connection if connection.sync_connection is not None else None
    return found._connection if isinstance(found, Connection) else None


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that awaits nothing but such a connection, in whatever thread this is."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a database operation waits for something else than the database")
