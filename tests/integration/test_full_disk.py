"""A full disk under the database and under the journal: what was accepted is kept, and it goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.connection import Broker
from funcmq.broker.errors import StorageFull
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import serving
from tests.endpoint_rig import rig
from tests.forwarder_rig import Fabric, call_task, outcome_of, settings_for, settled, sqlite_url

MEBIBYTE = 1024 * 1024


@pytest_asyncio.fixture
async def small(rabbitmq: Node, tmp_path: Path) -> AsyncIterator[Fabric]:
    """A front door on SQLite."""
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(settings_for(rabbitmq, sqlite_url(tmp_path))))
        await running.door.link.ready()
        made = Fabric(running, rabbitmq, stack)
        assert running.code is not None
        made.admin = await made.login(running.code)
        yield made


async def limit(fabric: Fabric, pages: int) -> None:
    """Let the database file have so many pages, or as many as it has: to SQLite the disk is full then."""

    async def say(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await fabric.running.door.database.write(say)


@pytest.mark.asyncio
async def test_a_full_database_refuses_work_and_keeps_what_it_accepted(small: Fabric) -> None:
    """New work is StorageFull with a remedy, results wait in their queue; with space again the same bytes go in, the results too."""
    user = small.admin
    endpoint = await small.endpoint(user)
    function = await user.register()
    before = user.work(endpoint.id, function, [call_task(number) for number in range(3)])
    await user.post(user.sign(before))
    large = user.sign(user.work(endpoint.id, function, [call_task(1) for _ in range(1000)]))
    async with endpoint.connected():
        await endpoint.next_dispatch()
        await settled(small)
        await limit(small, 1)
        for _ in range(2):
            with pytest.raises(StorageFull) as full:
                await user.post(large)
            assert "space" in full.value.hint
        value = outcome_of(before.tasks[0].id).value
        outcomes = [outcome_of(task.id, value=value, stdout="x" * 200_000) for task in before.tasks]
        data = endpoint.results(before.user, before.group, outcomes)
        await endpoint.report("results/1", data, before.group)
        states = {task.state for task in (await user.query(*(task.id for task in before.tasks))).tasks}
        assert states <= {"published", "accepted"}
        await limit(small, 1_000_000)
        await endpoint.orders.get()
        await eventually_stored(small, data, before.tasks[0].id)
        assert (await user.post(large)).accepted == 1000
        assert len((await endpoint.next_dispatch()).bundle) == len(large)


async def eventually_stored(fabric: Fabric, data: bytes, task: bytes) -> None:
    async with asyncio.timeout(20):
        while (await fabric.admin.query(task)).bundles != [data]:
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of its own on this folder; only root can have that."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(parents=True, exist_ok=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=%d" % size):
        pytest.skip(f"no file system of its own: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        libc.umount2(bytes(folder), 2)  # also where something still has it open


def fill(folder: Path, size: int) -> None:
    """Take so much of the disk, or all that is left."""
    with (folder / "filler").open("ab", buffering=0) as file:
        try:
            for _ in range(size // 4096):
                file.write(bytes(4096))
        except OSError as full:
            assert full.errno == errno.ENOSPC


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.chaos
@pytest.mark.timeout(120)
@pytest.mark.asyncio
async def test_a_full_disk_under_the_journal_delays_and_loses_nothing(broker: Broker, tmp_path: Path) -> None:
    """Short of space the daemon takes no more work and says why; with none at all an end waits to be written; then both go on."""
    with small_disk(tmp_path / "journal", 70 * MEBIBYTE):
        async with rig(broker, tmp_path) as it:
            await it.start()
            try:
                assert await it.values(await it.submit(slow, (0.0,))) == [0.0]
                running = await it.submit(slow, (3.0,))
                await it.until(lambda: set(running) <= set(it.running))
                fill(tmp_path / "journal", 80 * MEBIBYTE)
                await it.until(lambda: "journal is full" in it.heartbeats[-1].reason)
                async with asyncio.timeout(30):
                    while "cannot be written" not in (tmp_path / "daemon.log").read_text():
                        await asyncio.sleep(0.1)
                waiting = await it.submit(slow, (0.1,), (0.2,))
                assert not set(it.outcomes) & {*running, *waiting}
                (tmp_path / "journal" / "filler").unlink()
                assert await it.values([*running, *waiting], 60) == [3.0, 0.1, 0.2]
                assert max(it.copies.values()) == 1
                await it.until(lambda: not it.heartbeats[-1].reason)
            finally:
                await it.end()
