"""What went missing is sent again on evidence, what nobody will take is ended: with a real RabbitMQ and a made-up clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import codec, topology
from funcmq.broker.messages import Dispatch, Heartbeat, Order, Receipt, Refused, Work
from funcmq.broker.signing import REFUSED
from funcmq.forwarder import evidence
from funcmq.forwarder.live import Live
from funcmq.forwarder.queues import Queues
from funcmq.forwarder.reconciler import Reconciler
from funcmq.forwarder.reports import ResultBundle, Source, read_results
from funcmq.forwarder.resend import Resender, Stragglers
from funcmq.forwarder.results import Kept, store
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundles, failures
from funcmq.forwarder.tasks import end_here
from tests.forwarder_rig import HOUR_MS, Endpoint, Fabric, User, call_task, eventually, now_ms, outcome_of, settled

MINUTE_MS = 60_000
SPANS = evidence.Spans(look=0)


def reconciler(fabric: Fabric) -> Reconciler:
    door = fabric.running.door
    return Reconciler(door.database, door.sender, door.link, SPANS)


async def sent(fabric: Fabric, user: User, endpoint: Endpoint, **changes: Any) -> tuple[Work, str]:
    """A bundle of one task whose confirm is written."""
    work = user.work(endpoint.id, await user.register(), [call_task()], **changes)
    answer = await user.post(user.sign(work))
    await settled(fabric)
    return work, answer.bundle


async def receive(endpoint: Endpoint, work: Work, bundle: str) -> None:
    await endpoint.report("receipt/1", codec.encode(Receipt(1, endpoint.id, endpoint.journal, [bundle], now_ms())), work.group)


async def depth(fabric: Fabric, endpoint: Endpoint) -> int | None:
    return await Queues(fabric.running.door.link).ready(topology.tasks_queue(endpoint.id))


async def purge(fabric: Fabric, endpoint: Endpoint) -> None:
    channel = await fabric.running.door.link.open_channel()
    queue = await channel.get_queue(topology.tasks_queue(endpoint.id), ensure=False)
    await queue.purge()
    await channel.close()


async def row_of(fabric: Fabric, bundle: str) -> Any:
    await settled(fabric)
    async with fabric.running.door.database.read() as connection:
        return (await connection.execute(select(bundles).where(bundles.c.id == bundle))).one()


async def later(fabric: Fabric, bundle: str, minutes: float) -> int:
    """The time so many minutes after the bundle's last confirm."""
    while not (row := await row_of(fabric, bundle)).published or row.state == 0:
        await asyncio.sleep(0.01)
    return int(row.published + minutes * MINUTE_MS) + 1


@pytest.mark.asyncio
async def test_age_alone_sends_nothing_again(fabric: Fabric) -> None:
    """An endpoint that is away for days finds each bundle once in its queue."""
    endpoint = await fabric.endpoint(fabric.admin)
    _, bundle = await sent(fabric, fabric.admin, endpoint)
    for days in (1, 2, 6):
        assert await reconciler(fabric).send_missing(await later(fabric, bundle, days * 24 * 60)) == 0
    assert await depth(fabric, endpoint) == 1


@pytest.mark.asyncio
async def test_a_later_bundle_with_a_receipt_is_evidence(fabric: Fabric) -> None:
    """A bundle is sent again when one that was accepted after its confirm is received, and a minute has passed; not one that is younger."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    _, first = await sent(fabric, user, endpoint)
    await asyncio.sleep(0.002)  # times are kept in ms
    later_work, second = await sent(fabric, user, endpoint)
    _, third = await sent(fabric, user, endpoint)
    async with endpoint.connected(take=False):
        await receive(endpoint, later_work, second)
        await eventually(user, later_work.tasks[0].id, "received")
    assert await reconciler(fabric).send_missing(await later(fabric, first, 0.9)) == 0
    assert await reconciler(fabric).send_missing(await later(fabric, third, 1)) == 1
    assert [(await row_of(fabric, bundle)).dispatches for bundle in (first, second, third)] == [2, 1, 1]


@pytest.mark.asyncio
async def test_an_empty_queue_is_evidence_three_times(fabric: Fabric) -> None:
    """What a purged queue does not have is sent again three times, each after twice the wait; then it is left alone, and expires."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await sent(fabric, user, endpoint)
    waits = []
    for minutes in (1, 2, 4):
        await purge(fabric, endpoint)
        assert await reconciler(fabric).send_missing(await later(fabric, bundle, minutes - 0.1)) == 0
        assert await reconciler(fabric).send_missing(await later(fabric, bundle, minutes)) == 1
        waits.append(minutes)
        assert await depth(fabric, endpoint) == 1
    await purge(fabric, endpoint)
    assert await reconciler(fabric).send_missing(await later(fabric, bundle, 8)) == 1
    assert await depth(fabric, endpoint) == 0
    row = await row_of(fabric, bundle)
    assert (row.dispatches, row.resent) == (4, evidence.LEFT_ALONE)
    assert "never received" in (await user.view(work.tasks[0].id)).waiting_for
    assert await reconciler(fabric).send_missing(await later(fabric, bundle, 10_000)) == 0
    listed = await user.api.list("/dead", dict[str, Any])
    assert [(letter["bundle"], letter["reason"], letter["state"]) for letter in listed] == [(bundle, "missing", "left alone")]
    assert await reconciler(fabric).expire(row.expires + 5 * MINUTE_MS) == 0
    assert await reconciler(fabric).expire(row.expires + 5 * MINUTE_MS + 1) == 1
    assert (await user.query(work.tasks[0].id)).tasks[0].state == "expired"


@pytest.mark.asyncio
async def test_a_deleted_queue_is_made_again_with_what_was_in_it(fabric: Fabric) -> None:
    """Somebody deletes the queues of an endpoint: a minute after its confirm, what nobody received is in a new one."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    _, bundle = await sent(fabric, user, endpoint)
    await fabric.running.door.link.delete(topology.endpoint(endpoint.id))
    assert await reconciler(fabric).send_missing(await later(fabric, bundle, 1)) == 1
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).dispatch == 2


@pytest.mark.asyncio
async def test_only_what_is_open_is_sent_again(fabric: Fabric) -> None:
    """A repeated bundle withholds the tasks that have ended."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)])
    signed = user.sign(work)
    answer = await user.post(signed)
    await settled(fabric)

    async def lose(connection: AsyncConnection) -> None:
        await end_here(connection, [work.tasks[1].id], State.LOST_HERE, "TaskLost", "test", 1)

    await fabric.running.door.database.write(lose)
    await purge(fabric, endpoint)
    assert await reconciler(fabric).send_missing(await later(fabric, answer.bundle, 1)) == 1
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(2, [0], signed)


@pytest.mark.asyncio
async def test_two_reconcilers_send_once(fabric: Fabric) -> None:
    """Two front doors that find the same missing bundle at the same time send it once."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    _, bundle = await sent(fabric, user, endpoint)
    await purge(fabric, endpoint)
    now = await later(fabric, bundle, 1)
    await asyncio.gather(*(reconciler(fabric).send_missing(now) for _ in range(4)))
    assert (await row_of(fabric, bundle)).dispatches == 2
    assert await depth(fabric, endpoint) == 1


@pytest.mark.asyncio
async def test_signs_that_wait_are_read_before_anything_is_judged(fabric: Fabric) -> None:
    """While an endpoint's reports wait in its result queue, nothing of it is sent again and nothing expires."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    _, bundle = await sent(fabric, user, endpoint)
    await purge(fabric, endpoint)
    door = fabric.running.door
    await door.unwatch(endpoint.id)
    async with endpoint.connected(take=False):
        await receive(endpoint, user.work(endpoint.id, await user.register(), [call_task()]), bundle)
    now = await later(fabric, bundle, 1)
    assert await reconciler(fabric).send_missing(now) == 0
    assert await reconciler(fabric).expire(now + 8 * 24 * HOUR_MS) == 0
    door.watch(endpoint.id, endpoint.key.public)
    while (await row_of(fabric, bundle)).state != 2:
        await asyncio.sleep(0.01)
    assert await reconciler(fabric).send_missing(now) == 0


@pytest.mark.asyncio
async def test_fourteen_days_of_silence_lose_what_was_received(fabric: Fabric) -> None:
    """Received work of an endpoint that gives no sign for 14 days is lost, in words; a result that comes after all replaces that, once."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await sent(fabric, user, endpoint)
    task = work.tasks[0].id
    async with endpoint.connected():
        await receive(endpoint, work, bundle)
        await eventually(user, task, "received")
        now, judge = now_ms(), reconciler(fabric)
        await judge.lose_silent(now)
        await judge.lose_silent(now + 13 * evidence.DAY_MS)
        assert (await user.query(task)).tasks[0].state == "received"
        fresh = reconciler(fabric)
        await fresh.lose_silent(now + 15 * evidence.DAY_MS)
        assert (await user.query(task)).tasks[0].state == "received", "a front door that just came back has heard nobody yet"
        await fresh.lose_silent(now + 15 * evidence.DAY_MS + SPANS.forgotten)
        told = (await user.query(task)).tasks[0]
        assert told.state == "lost"
        assert told.failure is not None
        assert "14 days" in told.failure[1]
        first = await endpoint.finish(work, [outcome_of(task, 1)])
        assert (await user.view(task)).state == "succeeded"
        await endpoint.finish(work, [outcome_of(task, 2)])
        assert (await user.query(task)).bundles == [first]


@pytest.mark.asyncio
async def test_an_endpoint_whose_results_do_not_come_is_asked_for_them(fabric: Fabric) -> None:
    """Its queue is empty and nothing came for a minute while its heartbeats say `unstored`: the order `resend` goes out."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    door, live = fabric.running.door, Live()
    asker = Resender(door.sender, Queues(door.link), live, lambda: [endpoint.id], Stragglers())
    async with endpoint.connected(take=False):
        assert endpoint.lease is not None
        for second in range(0, 61, 10):
            now = 1_000_000 + second * 1000
            beat = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now, "h", 9, "0", [], {}, 0, 3)
            live.beat(beat, now)
            await asker.look(endpoint.id, now)
        assert await endpoint.orders.get() == Order(1, "resend")
        assert endpoint.orders.empty()


@pytest.mark.asyncio
async def test_ends_that_a_result_replaces_are_counted_once(fabric: Fabric) -> None:
    """A task that was given up and has a result after all is counted; a second, different result is a conflict and changes nothing."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await sent(fabric, user, endpoint)
    row, task = await row_of(fabric, bundle), work.tasks[0].id
    assert await reconciler(fabric).expire(row.expires + 5 * MINUTE_MS + 1) == 1
    assert (await user.query(task)).tasks[0].state == "expired"

    async def kept(number: int) -> Kept:
        data = endpoint.results(work.user, work.group, [outcome_of(task, number)])
        found = read_results(Source(endpoint.id, endpoint.key.public), data)
        assert isinstance(found, ResultBundle)
        return (await fabric.running.door.database.write(lambda connection: store(connection, [found], now_ms())))[0]

    assert [await kept(number) for number in (1, 1, 2)] == [Kept("", 0, 1), Kept("", 0, 0), Kept("", 1, 0)]
    assert (await user.view(task)).state == "succeeded"


@pytest.mark.asyncio
async def test_what_was_received_is_not_ended_by_a_refused_copy(fabric: Fabric) -> None:
    """A refusal of a bundle that its endpoint has received changes nothing: its journal ends it."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await sent(fabric, user, endpoint)
    refusal = Refused(1, endpoint.id, endpoint.key.public.id, now_ms(), bundle, "NotAllowed", "No such key here.")
    async with endpoint.connected(take=False):
        await receive(endpoint, work, bundle)
        await eventually(user, work.tasks[0].id, "received")
        await endpoint.report("refused/1", endpoint.key.sign(REFUSED, codec.encode(refusal)), "-")
        await endpoint.finish(work, [outcome_of(work.tasks[0].id)])  # what comes later is stored later
        assert (await user.view(work.tasks[0].id)).state == "succeeded"
        async with fabric.running.door.database.read() as connection:
            assert (await connection.execute(select(failures).where(failures.c.task == work.tasks[0].id))).first() is None
    assert (await row_of(fabric, bundle)).state == State.RECEIVED
