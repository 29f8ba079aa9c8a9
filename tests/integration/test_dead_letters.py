"""What dies in a task queue: read with the words of a real RabbitMQ, counted, listed and sent once more, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aio_pika
import pytest

from funcmq.broker import api, codec, signing, topology
from funcmq.broker.errors import Conflict, NotFound
from funcmq.broker.link import Link
from funcmq.broker.messages import Dispatch, Options, Refused, Work
from funcmq.forwarder.dead import MOST_DEATHS
from tests.forwarder_rig import (
    HOUR_MS,
    Endpoint,
    Fabric,
    User,
    as_broker,
    call_task,
    eventually,
    now_ms,
    outcome_of,
    publish_to_queue,
)


async def submitted(user: User, endpoint: Endpoint, **options: object) -> tuple[Work, str]:
    fields = {"not_after": now_ms() + HOUR_MS} | options
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)], options=[Options(**fields)])  # type: ignore[arg-type]
    return work, (await user.post(user.sign(work))).bundle


@contextlib.asynccontextmanager
async def crashing(fabric: Fabric, endpoint: Endpoint, number: int = 1) -> AsyncIterator[None]:
    """A daemon that dies, meanwhile, whenever it has so many messages."""
    connection = await aio_pika.connect(fabric.node.url)
    channel = await connection.channel()
    await channel.set_qos(number)
    queue = await channel.get_queue(topology.tasks_queue(endpoint.id), ensure=False)
    held: list[aio_pika.abc.AbstractIncomingMessage] = []

    async def die(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        held.append(message)
        if len(held) >= number:
            died, held[:] = held[:], []
            for each in died:
                await each.nack(requeue=True)

    await queue.consume(die)
    yield
    await connection.close()


async def letters(user: User, endpoint: Endpoint, ready: Callable[[list[api.DeadLetter]], bool] = bool) -> list[api.DeadLetter]:
    """What is listed of this endpoint, once it is as expected."""
    async with asyncio.timeout(40):
        while not ready(found := [row for row in await user.api.list("/dead", api.DeadLetter) if row.endpoint == endpoint.id]):
            await asyncio.sleep(0.02)
    return found


@pytest.mark.asyncio
async def test_a_bundle_that_dies_is_sent_again_alone_and_fails_the_third_time(fabric: Fabric) -> None:
    """After the delivery limit it is sent once more; the third time its tasks fail as TaskPoisoned; a result that comes still wins."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await submitted(user, endpoint)
    task = work.tasks[0].id
    async with crashing(fabric, endpoint):
        assert (await letters(user, endpoint))[0].state == "sent again"
        found = (await letters(user, endpoint, lambda found: found[0].times == MOST_DEATHS))[0]
    assert (found.bundle, found.reason, found.user, found.state) == (bundle, "delivery_limit", user.id, "failed")
    told = (await user.query(task)).tasks[0]
    assert told.state == "failed"
    assert told.failure is not None
    assert told.failure[0] == "TaskPoisoned"
    async with endpoint.connected():
        await endpoint.finish(work, [outcome_of(task.id) for task in work.tasks])
    assert (await user.view(task)).state == "succeeded"


@pytest.mark.asyncio
async def test_innocents_are_not_taken_along_for_good(fabric: Fabric) -> None:
    """Bundles that died together go out one at a time: the next one when its endpoint has received the one before."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    works = [await submitted(user, endpoint) for _ in range(3)]
    async with crashing(fabric, endpoint, len(works)):
        await letters(user, endpoint, lambda found: len(found) == len(works))
    async with endpoint.connected():
        for work, bundle in works:
            dispatch = await endpoint.next_dispatch()
            assert dispatch.dispatch >= 2
            assert endpoint.work.empty(), "it is alone"
            await endpoint.finish(work, [outcome_of(task.id) for task in work.tasks])
            fabric.running.door.send_soon()
            assert (await user.query(work.tasks[0].id)).bundles, bundle
    assert {letter.state for letter in await letters(user, endpoint)} == {"received"}


@pytest.mark.asyncio
async def test_a_rejected_bundle_fails_by_its_signed_refusal_only(fabric: Fabric) -> None:
    """The broker's word `rejected` ends nothing; the endpoint's signed one does, with its code."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work, bundle = await submitted(user, endpoint)
    async with endpoint.connected():
        delivery = await endpoint.work.get()
        await delivery.reject()
        found = await letters(user, endpoint)
        assert (found[0].reason, found[0].state) == ("rejected", "sent again")
        assert (await user.query(work.tasks[0].id)).tasks[0].state == "published"
        refusal = Refused(1, endpoint.id, endpoint.key.public.id, now_ms(), bundle, "NotAllowed", "Who is that?")
        await endpoint.report("refused/1", endpoint.key.sign(signing.REFUSED, codec.encode(refusal)), "-")
        await eventually(user, work.tasks[0].id, "failed")
    assert (await letters(user, endpoint))[0].state == "failed"


@pytest.mark.asyncio
async def test_what_matches_no_bundle_is_listed_and_changes_no_task(fabric: Fabric) -> None:
    """Garbage, unknown bundles and a known bundle that died in another endpoint's queue: listed for administrators, and nothing else."""
    user = await fabric.user("ada")
    endpoint, other = await fabric.endpoint(user), await fabric.endpoint(user)
    work, _ = await submitted(user, endpoint)
    stranger = user.sign(user.work(endpoint.id, await user.register(), [call_task()]))
    known = user.sign(work)
    async with Link("fuzz", lambda: as_broker(fabric.node)) as link, other.connected():
        bodies = [b"\xff\x00 garbage", codec.encode(Dispatch(1, None, stranger)), codec.encode(Dispatch(1, None, known))]
        for body in bodies:
            await publish_to_queue(link, topology.tasks_queue(other.id), "bundle/1", body)
            await (await other.work.get()).reject()
        await publish_to_queue(link, topology.tasks_queue(other.id), "nonsense/9", bodies[0])
        await (await other.work.get()).reject()
        found = await letters(fabric.admin, other, lambda found: len(found) == len(bodies) and sum(each.times for each in found) == 4)
    assert {(letter.state, letter.bundle, letter.user) for letter in found} == {("unknown", "", "")}
    assert await user.api.list("/dead", api.DeadLetter) == []
    assert (await user.query(work.tasks[0].id)).tasks[0].state == "published"
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).dispatch == 1


@pytest.mark.asyncio
async def test_a_dead_letter_is_sent_once_more_when_its_owner_asks(fabric: Fabric) -> None:
    """Its owner and administrators may; what has ended by a result is left out; its end is replaced by the result that comes."""
    ada, eve = await fabric.user("ada"), await fabric.user("eve")
    endpoint = await fabric.endpoint(ada)
    work, bundle = await submitted(ada, endpoint)
    async with endpoint.connected():
        await (await endpoint.work.get()).reject()
        letter = (await letters(ada, endpoint))[0]
        refusal = Refused(1, endpoint.id, endpoint.key.public.id, now_ms(), bundle, "NotAllowed", "Who is that?")
        await endpoint.report("refused/1", endpoint.key.sign(signing.REFUSED, codec.encode(refusal)), "-")
        await eventually(ada, work.tasks[0].id, "failed")
        with pytest.raises(NotFound):
            await eve.api.call("POST", f"/dead/{letter.id}/reinject", None, api.DeadLetter)
        assert await eve.api.list("/dead", api.DeadLetter) == []
        await endpoint.finish(work, [outcome_of(work.tasks[1].id)])
        again = await ada.api.call("POST", f"/dead/{letter.id[-8:]}/reinject", None, api.DeadLetter)
        assert again.reinjected > 0
        assert (await endpoint.next_dispatch()).only == [0]
        assert (await ada.query(work.tasks[0].id)).tasks[0].state == "failed", "until there is a result"
        await endpoint.finish(work, [outcome_of(work.tasks[0].id)])
        assert (await ada.view(work.tasks[0].id)).state == "succeeded"
        with pytest.raises(Conflict):
            await fabric.admin.api.call("POST", f"/dead/{letter.id}/reinject", None, api.DeadLetter)


@pytest.mark.asyncio
async def test_a_letter_that_matches_nothing_goes_out_as_it_came(fabric: Fabric) -> None:
    """An administrator may send it to its endpoint once more, which checks it like anything else."""
    endpoint = await fabric.endpoint(fabric.admin)
    async with Link("fuzz", lambda: as_broker(fabric.node)) as link, endpoint.connected():
        await publish_to_queue(link, topology.tasks_queue(endpoint.id), "odd/1", b"once more")
        await (await endpoint.work.get()).reject()
        letter = (await letters(fabric.admin, endpoint, lambda found: any(each.kind == "odd/1" for each in found)))[0]
        await fabric.admin.api.call("POST", f"/dead/{letter.id}/reinject", None, api.DeadLetter)
        delivery = await endpoint.work.get()
        assert (delivery.kind, delivery.body) == ("odd/1", b"once more")
        await delivery.ack()
    assert (await fabric.admin.api.call("GET", f"/dead/{letter.id}", None, api.DeadLetter)).size == len(b"once more")
