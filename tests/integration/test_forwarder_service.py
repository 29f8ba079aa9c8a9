"""`funcmq serve` as a whole: restarts, and a broker that does not confirm, on both databases."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from funcmq.broker import topology
from funcmq.broker.errors import (
    AlreadyRunning,
    Busy,
)
from funcmq.broker.http import Api
from funcmq.broker.link import Link
from funcmq.broker.messages import (
    Dispatch,
)
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import serving
from tests.forwarder_rig import (
    Fabric,
    as_broker,
    call_task,
    eventually,
    outcome_of,
    settings_for,
    sqlite_url,
)


@pytest.mark.asyncio
async def test_two_services_do_not_share_a_sqlite_file(rabbitmq: Node, tmp_path: Path) -> None:
    """The second one says who has the file."""
    settings = settings_for(rabbitmq, sqlite_url(tmp_path))
    async with serving(settings):
        with pytest.raises(AlreadyRunning):
            async with serving(settings):
                pass


@pytest.mark.asyncio
async def test_what_was_accepted_survives_a_restart(rabbitmq: Node, database_url: str) -> None:
    """After a restart tokens work, tasks are there, and results that came meanwhile are taken in."""
    async with contextlib.AsyncExitStack() as stack:
        async with serving(settings_for(rabbitmq, database_url)) as running:
            await running.door.link.ready()
            before = Fabric(running, rabbitmq, stack)
            assert running.code is not None
            before.admin = user = await before.login(running.code)
            endpoint = await before.endpoint(user)
            work = user.work(endpoint.id, await user.register(), [call_task()])
            await user.post(user.sign(work))
            await endpoint.take_lease()
        async with Link("away", lambda: as_broker(rabbitmq)) as link:
            data = endpoint.results(user.id, work.group, [outcome_of(work.tasks[0].id)])
            await link.publish(topology.RESULTS, topology.results_key(endpoint.id, work.group), "results/1", data)
        async with serving(settings_for(rabbitmq, database_url)) as running:
            assert running.code is None
            user.api = await stack.enter_async_context(Api(running.url, user.api._headers["Authorization"].partition(" ")[2]))
            await eventually(user, work.tasks[0].id, "succeeded")


@pytest.mark.asyncio
async def test_an_unconfirmed_bundle_is_busy_and_sent_again(fabric: Fabric) -> None:
    """A full queue means 503; the same bytes again go out as the next dispatch once there is room."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    queue, link = topology.tasks_queue(endpoint.id), fabric.running.door.link
    full = topology.Topology(
        queues=(topology.Queue(queue, {"x-max-length": 0, "x-overflow": "reject-publish"}, ((topology.TASKS, endpoint.id),)),)
    )
    await link.delete(topology.endpoint(endpoint.id))
    await link.declare(full)
    bundle = user.sign(user.work(endpoint.id, function, [call_task()]))
    with pytest.raises(Busy):
        await user.post(bundle)
    await link.delete(full)
    assert (await user.post(bundle)).accepted == 1
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(2, None, bundle)
