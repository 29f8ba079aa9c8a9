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
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from funcmq.broker.errors import AlreadyRunning, ConfigurationError, Unreachable
from funcmq.forwarder import sqlite
from funcmq.forwarder.writer import Writer, explain

_UPGRADES = 0x66756E63
"""The advisory lock under which PostgreSQL's tables are upgraded: any number that nobody else takes."""
READERS = 3
"""Connections that read at the same time."""

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
        self.exclusive = writing.dialect.name == "sqlite"
        """Whether no other process can open it."""
        self.write = Writer(writing, in_thread=writing.dialect.name == "sqlite")

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection that reads what is committed; every statement sees the newest state.

        :raises Busy: the database is away; it is connected to again by itself.
        """
        try:
            async with self._reading.connect() as connection:
                yield connection
        except Exception as failed:
            if (known := explain(failed)) is failed:
                raise
            raise known from None


@contextlib.asynccontextmanager
async def opened(url: URL) -> AsyncIterator[Database]:
    """Open, lock and (SQLite) upgrade; the writer runs until the context ends, which waits for what was handed in.

    :raises AlreadyRunning: another process has this SQLite file.
    :raises ConfigurationError: a PostgreSQL database has not the tables of this release.
    :raises Unreachable: the database does not answer.
    """
    with _locked(url):
        if url.get_backend_name() == "sqlite":
            await asyncio.to_thread(_prepare_folder, Path(url.database or ""))
            await upgrade(url)
        else:
            await _check_schema(url)
        writing, reading = _engine(url), _reading_engine(url)
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
    """Bring the schema to this release's, step by step; nothing happens where it is, and two at a time wait for each other.

    :raises Unreachable: the database does not answer.
    """
    async with _once(url) as connection:
        if url.get_backend_name() == "postgresql":
            await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADES})")
        await connection.run_sync(_run_alembic)


async def _check_schema(url: URL) -> None:
    async with _once(url) as connection:
        found = await connection.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())
    needed = ScriptDirectory.from_config(_alembic()).get_current_head()
    if found == needed:
        return
    if found is not None and needed is not None and found > needed:  # they are numbers of four digits
        raise ConfigurationError(
            f"The database has the tables of a later release ({found}; this one knows {needed}).", hint="Upgrade this `funcmq serve`."
        )
    what = "no tables yet" if found is None else f"the tables of an earlier release ({found}; this one needs {needed})"
    raise ConfigurationError(f"The database has {what}.", hint="Run once, with FUNCMQ_DATABASE_URL set as here: funcmq db upgrade")


@contextlib.asynccontextmanager
async def _once(url: URL) -> AsyncIterator[AsyncConnection]:
    """A transaction on a connection of its own."""
    engine = _engine(url)
    try:
        async with engine.begin() as connection:
            yield connection
    except (SQLAlchemyError, OSError) as failed:
        if not isinstance(failed, (OperationalError, InterfaceError, OSError)) and not _refused(failed):
            raise
        said = str(getattr(failed, "orig", None) or failed).splitlines()[0]
        raise Unreachable(
            f"The database at {url.host or url.database} cannot be used: {said}.", hint="Check FUNCMQ_DATABASE_URL."
        ) from None
    finally:
        await engine.dispose()


def _refused(failed: Exception) -> bool:
    """Whether PostgreSQL let nobody in: wrong password, no such database or user."""
    return getattr(getattr(failed, "orig", failed), "sqlstate", "")[:2] in ("28", "3D")


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _run_alembic(connection: Connection) -> None:
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(url: URL) -> AsyncEngine:
    """One connection, for transactions."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=1, max_overflow=0)
    engine = _sqlite_engine(url, pool_size=1)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _reading_engine(url: URL) -> AsyncEngine:
    """Connections on which every statement stands for itself."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=READERS, max_overflow=0, isolation_level="AUTOCOMMIT")
    return _sqlite_engine(url, pool_size=READERS)


def _sqlite_engine(url: URL, pool_size: int) -> AsyncEngine:
    creator = partial(sqlite.connect, url.database or "")
    engine = create_async_engine(url, async_creator=creator, pool_size=pool_size, max_overflow=0, pool_reset_on_return=None)
    engine.dialect.has_terminate = False  # closing never blocks here, so there is no need for a harder way
    event.listen(engine.sync_engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000", "wal_autocheckpoint=4000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    # the driver is in autocommit mode: it would begin at the first write only
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
