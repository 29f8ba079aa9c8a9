"""What a full disk and wrong clocks do to a front door: named errors, nothing accepted is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import InvalidRequest, StorageFull
from funcmq.broker.messages import Options
from funcmq.dev.rabbitmq import Node
from tests.forwarder_rig import Fabric, call_task, now_ms
from tests.integration.test_forwarder_root import fabric_of

MINUTE_MS = 60_000
PLENTY = 1_000_000


async def allow_pages(fabric: Fabric, number: int) -> None:
    """Let the database file have no more pages than this, or as many as it has: SQLite then says what it says of a full disk."""

    async def limit(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql(f"PRAGMA max_page_count = {number}")

    await fabric.running.door.database.write(limit)


@pytest.mark.asyncio
async def test_a_full_disk_is_said_and_passes(rabbitmq: Node, tmp_path: Path) -> None:
    """507 StorageFull with what to do; what was accepted before is there, and the same bundle goes in when there is space again."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        admin = fabric.admin
        endpoint = await fabric.endpoint(admin, "lab")
        await endpoint.take_lease()
        function, before = await admin.register(), call_task(0)
        await admin.post(admin.sign(admin.work(endpoint.id, function, [before])))
        await allow_pages(fabric, 1)
        bundles = [admin.sign(admin.work(endpoint.id, function, [call_task(one) for one in range(200)])) for _ in range(20)]
        with pytest.raises(StorageFull, match="database has no space left") as refused:
            for bundle in bundles:
                await admin.post(bundle)
        assert "Free some space" in refused.value.hint
        assert (await admin.view(before.id)).state in ("accepted", "published")
        await allow_pages(fabric, PLENTY)
        for bundle in bundles:
            assert (await admin.post(bundle)).accepted == 200


@pytest.mark.asyncio
async def test_wrong_clocks_are_told_with_the_difference(rabbitmq: Node, tmp_path: Path) -> None:
    """A signature from the future, and a task whose time was up before it came: how far, by whose clock, and what to do."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        admin = fabric.admin
        endpoint = await fabric.endpoint(admin, "lab")
        await endpoint.take_lease()
        function = await admin.register()
        ahead = admin.work(endpoint.id, function, [call_task()], signed_at=now_ms() + 10 * MINUTE_MS)
        with pytest.raises(InvalidRequest, match=r"signed (10 min|9 min 5\d s) in the future by the front door's clock") as future:
            await admin.post(admin.sign(ahead))
        assert "clock" in future.value.hint
        short = [Options(not_after=now_ms() - 3 * MINUTE_MS)]
        late = admin.work(endpoint.id, function, [call_task()], signed_at=now_ms() - 4 * MINUTE_MS, options=short)
        (verdict,) = (await admin.post(admin.sign(late))).verdicts
        assert (verdict.verdict, verdict.code) == ("refused", "TaskExpired")
        assert "until 3 min" in verdict.message
        assert "clock" in verdict.hint
