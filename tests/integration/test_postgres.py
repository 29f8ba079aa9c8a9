"""A private PostgreSQL server, and the store on it: upgraded on purpose, shared, and away for a while."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from funcmq.broker.errors import Busy, ConfigurationError, Unreachable
from funcmq.broker.ids import new_hex
from funcmq.broker.lifeline import gone
from funcmq.dev.postgres import PostgresNode, find_programs, install_command
from funcmq.forwarder import people
from funcmq.forwarder.database import Database, opened, parse_url, upgrade
from funcmq.forwarder.tables import metadata

OWNER = """\
import asyncio, sys
from funcmq.dev.postgres import PostgresNode

async def main():
    async with PostgresNode() as node:
        print(node.folder, node.port, (node.folder / "data" / "postmaster.pid").read_text().split()[0], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def kept() -> AsyncIterator[PostgresNode]:
    """A server of this test alone that can be killed and started again; its user must reach its folder, so it is in no private one."""
    folder = Path(tempfile.mkdtemp(prefix="funcmq-postgres-"))
    node = PostgresNode(folder)
    await node.start()
    yield node
    await node.stop()
    shutil.rmtree(folder)


@pytest.mark.asyncio
async def test_nothing_is_left_of_a_server_whose_owner_was_killed() -> None:
    """After kill -9 of the owner neither the server nor its folder is there."""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    folder, _, pid = (await owner.stdout.readline()).decode().split()
    assert Path(folder).exists()
    owner.kill()
    await owner.wait()
    await gone(int(pid))
    while Path(folder).exists():
        await asyncio.sleep(0.02)


def test_a_missing_postgresql_is_named_with_its_remedy(tmp_path: Path) -> None:
    """The error says what to type on this system."""
    with pytest.raises(ConfigurationError) as missing:
        find_programs([], path=str(tmp_path))
    assert install_command(path=str(tmp_path)) in missing.value.hint
    (tmp_path / "apt-get").touch(mode=0o700)
    assert "apt-get install" in install_command(path=str(tmp_path))


@pytest.mark.asyncio
async def test_serve_wants_the_tables_of_its_release(postgres: PostgresNode) -> None:
    """A new, an older and a newer database are refused with what to do; after the upgrade nothing is left to change."""
    url = parse_url(await postgres.create(name := new_hex()))
    with pytest.raises(ConfigurationError) as new:
        async with opened(url):
            pass
    assert "no tables" in new.value.message
    assert "funcmq db upgrade" in new.value.hint
    await asyncio.gather(upgrade(url), upgrade(url))

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with opened(url) as database, database.read() as connection:
        assert await connection.run_sync(differences) == []
    await _say_release(url, "0001")
    with pytest.raises(ConfigurationError) as older:
        async with opened(url):
            pass
    assert "earlier release (0001" in older.value.message
    await _say_release(url, "9999")
    with pytest.raises(ConfigurationError) as newer:
        async with opened(url):
            pass
    assert "later release (9999" in newer.value.message
    await postgres.drop(name)


async def _say_release(url: URL, release: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = :release"), {"release": release})
    await engine.dispose()


@pytest.mark.asyncio
async def test_a_database_that_lets_nobody_in_is_unreachable(postgres: PostgresNode) -> None:
    """No such database, a wrong password and a closed port are one named error, without the password."""
    good = parse_url(postgres.url("none"))
    for url in (good, good.set(password="wrong-password"), good.set(port=1)):
        with pytest.raises(Unreachable) as refused:
            async with opened(url):
                pass
        assert "wrong-password" not in str(refused.value)
        assert "FUNCMQ_DATABASE_URL" in refused.value.hint


@pytest.mark.asyncio
async def test_transactions_that_collide_are_done_again(postgres_url: str) -> None:
    """Two front doors that lock the same rows the other way round both come through: PostgreSQL's deadlock is nobody's error."""
    async with opened(parse_url(postgres_url)) as one, opened(parse_url(postgres_url)) as other:
        ids = [await one.write(lambda c, name=name: people.add_user(c, name, False, 1)) for name in ("ann", "bob")]
        met, first = asyncio.Barrier(2), [True, True]

        async def rename(connection: AsyncConnection, who: int) -> None:
            for step, user in enumerate(ids if who else ids[::-1]):
                await connection.execute(text("UPDATE users SET created = created + 1 WHERE id = :id"), {"id": user})
                if not step and first[who]:
                    first[who] = False
                    await met.wait()

        await asyncio.gather(one.write(lambda c: rename(c, 0)), other.write(lambda c: rename(c, 1)))
        async with one.read() as connection:
            assert list((await connection.execute(text("SELECT created FROM users"))).scalars()) == [3, 3]


@pytest.mark.asyncio
async def test_a_database_that_goes_away_is_busy_and_comes_back(kept: PostgresNode) -> None:
    """While PostgreSQL is down reading and writing are Busy; when it is up again both work, and what was committed is there."""
    url = parse_url(await kept.create("store"))
    await upgrade(url)
    async with opened(url) as database:
        await database.write(lambda c: people.add_user(c, "ann", False, 1))
        await kept.kill()
        for use in (_read, _write):
            for _ in range(3):
                with pytest.raises(Busy):
                    await use(database)
        await kept.start()
        for use in (_read, _write):
            await _until_done(use, database)
        async with database.read() as connection:
            assert "ann" in [user.name for user in await people.list_users(connection)]


async def _read(database: Database) -> None:
    async with database.read() as connection:
        await people.count_users(connection)


async def _write(database: Database) -> None:
    await database.write(lambda c: people.add_user(c, new_hex(), False, 1))


async def _until_done(use: object, database: Database) -> None:
    """A connection of before may be met once more; then it must work."""
    for _ in range(5):
        try:
            await use(database)  # type: ignore[operator]
        except Busy:
            continue
        return
    raise AssertionError("the database is not used again")
