"""The database: opened, locked, upgraded; one engine to write with and one to read with.

SQLite is the embedded default: WAL, `synchronous=FULL`, one process at a time (a lock file beside the database says so in a clear error).
PostgreSQL has the same tables; several front doors may share it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from funcmq.broker.errors import AlreadyRunning, ConfigurationError
from funcmq.forwarder.writer import Writer

READERS = 3
"""Connections that read at the same time (SQLite: one thread each)."""

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


def parse_url(text: str) -> URL:
    """The URL of a database, with the driver that this service uses.

    :raises ConfigurationError: it is no URL, or of a database that is not supported.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigurationError(
            "The database URL cannot be read.", hint="Use sqlite:////path/to/funcmq.db or postgresql://host/name."
        ) from None
    family = url.drivername.partition("+")[0]
    if family not in _DRIVERS:
        raise ConfigurationError(f"Databases of the kind {family!r} are not supported.", hint="Use sqlite:// or postgresql://.")
    if family == "sqlite" and not url.database:
        raise ConfigurationError("The SQLite database needs a file.", hint="Use sqlite:////path/to/funcmq.db.")
    return url.set(drivername=_DRIVERS[family])


class Database:
    """An open database.  Use `opened`."""

    def __init__(self, writing: AsyncEngine, reading: AsyncEngine) -> None:
        self._writing, self._reading = writing, reading
        self.write = Writer(writing)

    def read(self) -> contextlib.AbstractAsyncContextManager[AsyncConnection]:
        """A connection that reads what is committed; every statement sees the newest state."""
        return self._reading.connect()


@contextlib.asynccontextmanager
async def opened(url: URL) -> AsyncIterator[Database]:
    """Open, lock and (SQLite) upgrade; the writer runs until the context ends, which waits for what was handed in.

    :raises AlreadyRunning: another process has this SQLite file.
    """
    with _locked(url):
        if url.get_backend_name() == "sqlite":
            await asyncio.to_thread(_prepare_folder, Path(url.database or ""))
            await upgrade(url)
        writing, reading = _engine(url, pool_size=1), _engine(url, pool_size=READERS, isolation_level="AUTOCOMMIT")
        database = Database(writing, reading)
        task = asyncio.create_task(database.write.run(), name="writer")
        try:
            yield database
        finally:
            database.write.close()
            await task
            await reading.dispose()
            await writing.dispose()


async def upgrade(url: URL) -> None:
    """Bring the schema to this release's, step by step; nothing happens where it is."""
    engine = _engine(url, pool_size=1)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run_alembic)
    finally:
        await engine.dispose()


def _run_alembic(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(url: URL, **options: Any) -> AsyncEngine:
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, max_overflow=0, pool_timeout=30, **options)
    if url.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _tune_sqlite)
        if "isolation_level" not in options:
            event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _tune_sqlite(connection: Any, _: object) -> None:
    # the driver would begin transactions at the first write only; we begin them ourselves (SQLAlchemy's documented recipe)
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000", "wal_autocheckpoint=4000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_folder(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


@contextlib.contextmanager
def _locked(url: URL) -> Iterator[None]:
    if url.get_backend_name() != "sqlite":
        yield
        return
    path = Path(f"{url.database}.lock")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:  # noqa: PTH123  # a mode is given
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"Another `funcmq serve` (pid {file.read().strip() or 'unknown'}) uses {url.database}.",
                hint="Stop it first, or use PostgreSQL, which several can share.",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
