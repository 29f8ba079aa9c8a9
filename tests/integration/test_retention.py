"""What is kept, and for how long, on both databases; the clock is the test's."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from funcmq.broker import api
from funcmq.broker.errors import NotFound, NotLoggedIn
from funcmq.forwarder.retention import CODE_MS, DAY_MS, SESSION_MS, TOKEN_MS, Retention
from funcmq.forwarder.tables import bundle_bytes, bundles, codes, results, sessions, tasks
from tests.forwarder_rig import Fabric, call_task, listening, now_ms, outcome_of

DAYS = 14


async def sweep(fabric: Fabric, now: int) -> None:
    """Everything that is to go by then."""
    retention = Retention(fabric.running.door.database, DAYS)
    while await retention.sweep(now):
        pass


async def count(fabric: Fabric, *tables: object) -> list[int]:
    async with fabric.running.door.database.read() as connection:
        return [(await connection.execute(select(func.count()).select_from(table))).scalar_one() for table in tables]  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_what_has_ended_is_kept_for_its_days_and_no_longer(fabric: Fabric) -> None:
    """Results, arguments and rows of a bundle go 14 days after its last task ended, all of them together; open tasks stay."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    ended = user.work(endpoint.id, function, [call_task(1), call_task(2, key="k")])
    half = user.work(endpoint.id, function, [call_task(3), call_task(4)])
    first, second, third, open_ = (task.id for work in (ended, half) for task in work.tasks)
    async with endpoint.connected():
        for work in (ended, half):
            await user.post(user.sign(work))
            await endpoint.next_dispatch()
        # one result bundle over two bundles of tasks: it stays for the one whose bundle has an open task
        data = await endpoint.finish(ended, [outcome_of(first), outcome_of(third)])
        await endpoint.finish(ended, [outcome_of(second)])
    began = now_ms()
    await sweep(fabric, began + DAYS * DAY_MS - 60_000)
    assert await count(fabric, tasks, bundles, bundle_bytes, results) == [4, 2, 2, 2]
    await sweep(fabric, began + DAYS * DAY_MS + 60_000)
    assert await count(fabric, tasks, bundles, bundle_bytes, results) == [2, 1, 1, 1]
    with pytest.raises(NotFound):
        await user.view(first)
    answer = await user.query(first, second, third, open_)
    assert answer.bundles == [data]
    assert [(task.id, task.state) for task in answer.tasks if task.state != "succeeded"] == [(open_.hex(), "received")]
    again = user.work(endpoint.id, function, [call_task(5, key="k")])
    assert (await user.post(user.sign(again))).accepted == 1  # the key is free again


@pytest.mark.asyncio
async def test_codes_sessions_and_tokens_go_after_their_end(fabric: Fabric) -> None:
    """Each some days after it is of no use; what is in use stays."""
    user, now = fabric.admin, now_ms()
    await user.api.call("POST", "/enrolments", None, api.EnrolmentAnswer)
    made = await user.api.call("POST", "/tokens", api.TokenRequest(days=1), api.TokenAnswer)
    async with listening(user, "0" * 32):
        pass
    await sweep(fabric, now)
    assert (await count(fabric, codes, sessions))[1] == 1
    await sweep(fabric, now + CODE_MS + 3_600_000)
    assert await count(fabric, codes, sessions) == [0, 1]
    await sweep(fabric, now + SESSION_MS + 1_000)
    assert await count(fabric, codes, sessions) == [0, 0]
    await sweep(fabric, now + DAY_MS + TOKEN_MS + 60_000)
    fabric.running.door.known.forget_rights()
    with pytest.raises(NotLoggedIn):
        await (await fabric.api(made.token)).tell("GET", "/me")
    assert (await user.api.call("GET", "/me", None, api.Me)).user == user.id
