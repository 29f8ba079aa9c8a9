"""The store by itself: one writer, migrations, settings."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import ConfigurationError, Conflict
from funcmq.forwarder import missing, people
from funcmq.forwarder.bundles import unconfirmed
from funcmq.forwarder.database import Database, opened, parse_url
from funcmq.forwarder.evidence import Spans, Witness
from funcmq.forwarder.memo import Memo
from funcmq.forwarder.settings import load
from funcmq.forwarder.tables import PENDING, bundles, metadata


@pytest_asyncio.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(parse_url(f"sqlite:///{tmp_path}/data/funcmq.db")) as made:
        yield made


@pytest.mark.asyncio
async def test_migrations_make_the_tables_of_this_release(database: Database) -> None:
    """After the upgrade nothing is left to change."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


@pytest.mark.asyncio
async def test_a_failing_operation_leaves_its_neighbours_alone(database: Database) -> None:
    """Operations that share a transaction with one that raises are committed all the same; only that one is told."""
    names = [f"user{n}" for n in range(5)]

    def add(name: str) -> asyncio.Future[str]:
        return asyncio.ensure_future(database.write(lambda c: people.add_user(c, name, False, 1)))

    done = await asyncio.gather(*(add(name) for name in [*names, "user3"]), return_exceptions=True)
    assert [type(answer) for answer in done] == [str] * 5 + [Conflict]
    async with database.read() as connection:
        assert [user.name for user in await people.list_users(connection)] == names


@pytest.mark.asyncio
async def test_concurrent_operations_share_a_transaction(database: Database) -> None:
    """Operations handed in together see the same transaction, and are answered together."""

    async def number(connection: AsyncConnection) -> int:
        return id(connection.sync_connection)

    numbers = await asyncio.gather(*(database.write(number) for _ in range(20)))
    assert len(set(numbers)) == 1


@pytest.mark.asyncio
async def test_the_store_is_durable_and_private(database: Database, tmp_path: Path) -> None:
    """SQLite keeps a write-ahead log and syncs it at every commit; nobody else may read the file."""
    async with database.read() as connection:
        asked = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous", "foreign_keys")]
    assert asked == ["wal", 2, 1]
    folder = tmp_path / "data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "funcmq.db").stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_the_reconciler_reads_pending_bundles_by_their_index(database: Database) -> None:
    """However many bundles are received, looking for pending ones does not walk over them."""
    query = bundles.select().with_only_columns(bundles.c.seq).where(PENDING, bundles.c.state == 0)
    text = str(query.compile(compile_kwargs={"literal_binds": True}))
    async with database.read() as connection:
        plan = [row[-1] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert any("ix_bundles_pending" in line for line in plan), plan


def test_settings_come_from_argument_then_environment_then_file(tmp_path: Path) -> None:
    """The nearer one wins; credentials never leave the broker's own setting."""
    file = tmp_path / "serve.toml"
    file.write_text('host = "file"\nport = 1\nbroker_auth_port = 2\n')
    environ = {"FUNCMQ_BROKER_URL": "amqp://u:p%40@h:5/v,amqp://u:p%40@i:5/v", "FUNCMQ_PORT": "3", "FUNCMQ_HOST": "environment"}
    found = load({"host": "argument", "port": None}, environ, file)
    assert (found.host, found.port, found.broker_auth_port) == ("argument", 3, 2)
    assert (found.broker.user, found.broker.password, found.vhost) == ("u", "p@", "v")
    assert found.public_brokers == found.broker.urls == ("amqp://h:5/v", "amqp://i:5/v")
    assert found.management_url == "http://h:15672"
    assert "p@" not in repr(found)


@pytest.mark.parametrize(
    ("environ", "file"),
    [
        ({}, ""),
        ({"FUNCMQ_BROKER_URL": "http://u:p@h"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://h"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h", "FUNCMQ_PORT": "x"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h", "FUNCMQ_DATABASE_URL": "mysql://h/d"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h", "FUNCMQ_DATABASE_URL": "sqlite://"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h", "FUNCMQ_MANAGEMENT_URL": "ftp://h"}, ""),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h"}, "prot = 1"),
        ({"FUNCMQ_BROKER_URL": "amqp://u:p@h"}, "port = "),
    ],
)
def test_wrong_settings_are_named(environ: dict[str, str], file: str, tmp_path: Path) -> None:
    """Whatever is missing or wrong is one error with a remedy, before anything starts."""
    path = tmp_path / "serve.toml"
    path.write_text(file)
    with pytest.raises(ConfigurationError):
        load({}, environ, path)


def test_memory_is_bounded_and_forgets() -> None:
    """A value is there for its time, the oldest goes when there is no room, and everything when it is cleared."""
    now = 0.0
    memo: Memo[int, str] = Memo(10, size=2, clock=lambda: now)
    for number in (1, 2, 3):
        memo.put(number, str(number))
    assert [memo.get(number) for number in (1, 2, 3)] == [None, "2", "3"]
    now = 10.0
    assert memo.get(3) is None
    memo.put(4, "4")
    memo.clear()
    assert memo.get(4) is None


@pytest.mark.asyncio
async def test_looking_for_what_went_missing_walks_over_no_history(database: Database) -> None:
    """However many bundles were received, the reconciler's questions are answered from an index."""
    asked: list[str] = []
    async with database.read() as connection:

        def note(_c: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object) -> None:
            asked.append(statement.replace("?", "{!r}").format(*parameters))

        event.listen(connection.sync_connection, "before_cursor_execute", note)
        await missing.waiting(connection, 10**12, Spans())
        await missing.heard(connection, "e" * 32)
        await missing.suspects(connection, "e" * 32, Witness(5, empty=False), 10**12, Spans(), 10)
        await unconfirmed(connection, 10**12, 10)
        event.remove(connection.sync_connection, "before_cursor_execute", note)
        plans = [[row[-1] for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")] for text in asked]
    assert len(plans) == 4
    assert not [plan for plan in plans if not any("ix_bundles" in line for line in plan)], plans
