"""Leases, heartbeats and the end of an endpoint, on both databases."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from funcmq.broker import api, codec, topology
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import (
    AlreadyRunning,
    Conflict,
    NotAllowed,
    NotFound,
    NotLoggedIn,
)
from funcmq.broker.ids import new_hex
from funcmq.broker.messages import (
    Dispatch,
    Heartbeat,
    Options,
    Receipt,
)
from tests.forwarder_rig import (
    HOUR_MS,
    Fabric,
    call_task,
    eventually,
    now_ms,
    outcome_of,
)


@pytest.mark.asyncio
async def test_a_journal_that_comes_back_fences_the_one_before(fabric: Fabric) -> None:
    """The next epoch is answered when the connections of the last are closed; the last can neither renew nor log in again."""
    endpoint = await fabric.endpoint(fabric.admin)
    first = await endpoint.take_lease()
    connection = await aio_pika.connect(Broker(tuple(first.brokers), first.user, first.password).login(first.brokers[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    second = await endpoint.take_lease()
    assert (first.epoch, second.epoch) == (1, 2)
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(first.brokers), first.user, first.password))
    await check(Broker(tuple(second.brokers), second.user, second.password))
    with pytest.raises(Conflict):
        await endpoint.take_lease(epoch=1)
    renewed = await endpoint.take_lease(epoch=2)
    assert (renewed.epoch, renewed.user, renewed.password) == (2, second.user, "")
    await connection.close()


@pytest.mark.asyncio
async def test_another_journal_waits_until_the_lease_is_given_back(fabric: Fabric) -> None:
    """Another journal is told who runs; it gets the lease when that one gave it back."""
    endpoint = await fabric.endpoint(fabric.admin)
    lease = await endpoint.take_lease(host="login3", pid=77)
    with pytest.raises(AlreadyRunning) as running:
        await endpoint.take_lease(journal=new_hex())
    assert (running.value.details["host"], running.value.details["pid"]) == ("login3", 77)
    with pytest.raises(Conflict):
        await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease?epoch=7")
    await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease?epoch={lease.epoch}")
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(lease.brokers), lease.user, lease.password))
    assert (await endpoint.take_lease(journal=new_hex())).epoch == 2


@pytest.mark.asyncio
async def test_a_takeover_sends_the_old_journals_work_again(fabric: Fabric) -> None:
    """What the old journal had received is sent to the new one; what must not run twice is lost, and says so."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    never = Options(retry="never", not_after=now_ms() + HOUR_MS)
    tasks = [call_task(1), call_task(2, options=1), call_task(3)]
    work = user.work(endpoint.id, await user.register(), tasks, options=[Options(not_after=now_ms() + HOUR_MS), never])
    bundle = user.sign(work)
    async with endpoint.connected():
        answer = await user.post(bundle)
        await endpoint.next_dispatch()
        await endpoint.report("receipt/1", codec.encode(Receipt(1, endpoint.id, endpoint.journal, [answer.bundle], now_ms())), work.group)
        await eventually(user, tasks[0].id, "received")
        await endpoint.finish(work, [outcome_of(tasks[2].id)])
    endpoint.journal = new_hex()
    before = now_ms()
    lease = await endpoint.take_lease(takeover=True, birth=now_ms() + 1)
    assert before <= lease.gone <= now_ms(), "from then on every lease says so"
    async with endpoint.connected():
        assert endpoint.lease is not None
        assert endpoint.lease.gone == lease.gone
        assert await endpoint.next_dispatch() == Dispatch(2, [0], bundle)
    states = [task.state for task in (await user.query(*(task.id for task in tasks))).tasks]
    assert sorted(states) == ["lost", "published", "succeeded"] or sorted(states) == ["accepted", "lost", "succeeded"]


@pytest.mark.asyncio
async def test_heartbeats_make_an_endpoint_online(fabric: Fabric) -> None:
    """An endpoint that holds its lease and beats is online; one that gave the lease back is not."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    await user.post(user.sign(work))
    assert (await user.view(work.tasks[0].id)).waiting_for.startswith("endpoint offline")
    async with endpoint.connected(take=False) as link:
        assert endpoint.lease is not None
        beat = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now_ms(), "login3", 9, "0", [], {user.id: 17}, 2, 0)
        await link.publish(topology.STATUS, endpoint.id, "heartbeat/1", codec.encode(beat))
        while not (seen := await user.api.call("GET", f"/endpoints/{endpoint.name}", None, api.EndpointView)).online:
            await asyncio.sleep(0.01)
        assert (seen.queued, seen.running, seen.id) == (17, 2, endpoint.id)
    await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease")
    assert not (await user.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)).online


@pytest.mark.asyncio
async def test_a_deleted_endpoint_is_cut_off_and_its_work_is_lost(fabric: Fabric) -> None:
    """Its connections close, its token ends, and its open tasks end as lost with a reason."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    await user.post(user.sign(work))
    lease = await endpoint.take_lease()
    connection = await aio_pika.connect(Broker(tuple(lease.brokers), lease.user, lease.password).login(lease.brokers[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    await user.api.tell("DELETE", f"/endpoints/{endpoint.name}")
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotLoggedIn):
        await endpoint.take_lease()
    with pytest.raises(NotFound):
        await user.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)
    told = (await user.query(work.tasks[0].id)).tasks[0]
    assert told.state == "lost"
    assert told.failure is not None
    await connection.close()
