"""Laws of the link, with a real RabbitMQ and wires that are cut: it comes back by itself, and never calls published what may be lost."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from funcmq.broker import topology
from funcmq.broker.connection import Broker, check, close, direct, gone, open_connection
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import InvalidRequest, NotAllowed, NotFound, Unreachable
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.topology import Exchange, Queue, Topology
from tests.proxy import Proxy, proxy

pytestmark = pytest.mark.asyncio


def port_of(broker: Broker) -> int:
    return int(broker.urls[0].rpartition(":")[2].split("/")[0])


def at(broker: Broker, *ports: int) -> Broker:
    return Broker(tuple(f"amqp://127.0.0.1:{port}/" for port in ports), broker.user, broker.password)


@pytest_asyncio.fixture
async def wire(broker: Broker) -> AsyncIterator[Proxy]:
    async with proxy(port_of(broker)) as it:
        yield it


@pytest_asyncio.fixture
async def link(broker: Broker, wire: Proxy) -> AsyncIterator[Link]:
    async def ask() -> Broker:
        return at(broker, wire.port)

    async with Link("test", ask) as it:
        await it.ready()
        yield it


@pytest_asyncio.fixture
async def place(link: Link) -> str:
    """An exchange and a quorum queue of the same name, bound with the key `k`."""
    name = f"test.{new_hex()}"
    made = Topology((Exchange(name, "direct"),), (Queue(name, {"x-queue-type": "quorum"}, ((name, "k"),)),))
    await link.declare(made)
    return name


async def surely(link: Link, exchange: str, body: bytes) -> None:
    """Publish as every caller must: again, until it is confirmed."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await link.publish(exchange, "k", "t/1", body)
            except Unreachable:
                await link.ready()


class Inbox:
    """A handler that keeps what came and acks it."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[Delivery] = asyncio.Queue()

    async def __call__(self, delivery: Delivery) -> None:
        await delivery.ack()
        await self.got.put(delivery)

    async def body(self) -> bytes:
        async with asyncio.timeout(20):
            return (await self.got.get()).body


async def test_a_message_arrives_with_its_type(link: Link, place: str) -> None:
    """Body, type and key are what was published."""
    inbox = Inbox()
    link.consume(place, inbox)
    await link.publish(place, "k", "cancel/1", b"body")
    delivery = await inbox.got.get()
    assert (delivery.body, delivery.kind, delivery.key, delivery.redelivered) == (b"body", "cancel/1", "k", False)


async def test_what_no_queue_takes_is_an_error(link: Link, place: str) -> None:
    """An unroutable message raises, and its neighbours on the same channel are confirmed."""
    async with asyncio.TaskGroup() as group:
        good = [group.create_task(link.publish(place, "k", "t/1", b"x")) for _ in range(20)]
        with pytest.raises(NotFound, match="nowhere"):
            await link.publish(place, "nowhere", "t/1", b"x")
    assert all(task.result() is None for task in good)


async def test_a_missing_exchange_is_an_error_and_the_link_goes_on(link: Link, place: str) -> None:
    """The broker closes the channel on such a publish; the next publish has a new one."""
    with pytest.raises(Unreachable):
        await link.publish("no such exchange", "k", "t/1", b"x", timeout=5)
    await link.publish(place, "k", "t/1", b"x")


async def test_a_cut_wire_is_mended_and_consumers_come_back(link: Link, place: str, wire: Proxy) -> None:
    """After the connections are reset, publishing and consuming go on without anybody's help, and nothing confirmed is missing."""
    inbox = Inbox()
    link.consume(place, inbox)
    for turn in range(3):
        await surely(link, place, b"%d" % turn)
        while await inbox.body() != b"%d" % turn:  # an unconfirmed copy of the turn before may still come
            pass
        wire.cut()


async def test_unacked_messages_come_again_after_a_cut(link: Link, place: str, wire: Proxy) -> None:
    """What was delivered and not acked is delivered again, and an ack of the first delivery does no harm."""
    seen: asyncio.Queue[Delivery] = asyncio.Queue()

    async def keep(delivery: Delivery) -> None:
        await seen.put(delivery)

    link.consume(place, keep)
    await link.publish(place, "k", "t/1", b"once")
    first = await seen.get()
    wire.cut()
    async with asyncio.timeout(20):
        second = await seen.get()
    assert second.redelivered
    await first.ack()
    await second.ack()


async def test_a_publish_without_confirm_is_not_called_published(link: Link, place: str, wire: Proxy) -> None:
    """When bytes vanish without a reset, publish raises after its time-out: the state is unknown."""
    await link.publish(place, "k", "t/1", b"x")
    wire.swallow(True)
    with pytest.raises(Unreachable, match="did not confirm"):
        await link.publish(place, "k", "t/1", b"y", timeout=1)
    wire.swallow(False)
    wire.cut()
    await surely(link, place, b"z")


async def test_a_deleted_queue_is_consumed_again_when_it_is_back(link: Link, place: str) -> None:
    """A consumer that the broker cancels subscribes again as soon as the queue exists."""
    inbox = Inbox()
    consumer = link.consume(place, inbox)
    await consumer.ready.wait()
    await link.delete(Topology(queues=(Queue(place, {}),)))
    async with asyncio.timeout(20):
        while consumer.ready.is_set():  # RabbitMQ 3.10 cancels nobody when the name is taken again within milliseconds
            await asyncio.sleep(0.01)
    await link.declare(Topology(queues=(Queue(place, {"x-queue-type": "quorum"}, ((place, "k"),)),)))
    await link.publish(place, "k", "t/1", b"after")
    assert await inbox.body() == b"after"


async def test_a_handler_that_fails_gets_the_message_again(link: Link, place: str) -> None:
    """An error in a handler loses no message."""
    tries: asyncio.Queue[bool] = asyncio.Queue()

    async def fragile(delivery: Delivery) -> None:
        await tries.put(delivery.redelivered)
        if not delivery.redelivered:
            raise RuntimeError("the first time")
        await delivery.ack()

    link.consume(place, fragile)
    await link.publish(place, "k", "t/1", b"x")
    assert [await tries.get(), await tries.get()] == [False, True]


async def test_the_first_broker_that_answers_is_taken(broker: Broker, wire: Proxy) -> None:
    """With several URLs a dead one only costs a moment."""
    async with proxy(1) as dead:
        dead.refuse(True)

        async def ask() -> Broker:
            return at(broker, dead.port, wire.port, dead.port)

        async with asyncio.timeout(30), Link("test", ask) as it:
            await it.ready()


async def test_it_does_not_hammer_a_broker_that_refuses(broker: Broker, wire: Proxy) -> None:
    """While nobody lets it in, a link tries again more and more slowly."""
    wire.refuse(True)

    async def ask() -> Broker:
        return at(broker, wire.port)

    async with Link("test", ask) as it:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await it.ready()
        assert 2 <= wire.accepted <= 10
        wire.refuse(False)
        async with asyncio.timeout(15):
            await it.ready()


async def test_an_error_of_the_caller_ends_the_link() -> None:
    """When asking for credentials fails for good (a fenced daemon), everybody who waits is told."""

    class Fenced(Exception):
        pass

    async def ask() -> Broker:
        raise Fenced

    async with Link("test", ask) as it:
        with pytest.raises(Fenced):
            await it.ready()
        with pytest.raises(Fenced):
            await it.ended()


async def test_a_consumer_of_an_ended_link_can_be_cancelled() -> None:
    """The link's own end is told by the link; leaving its consumers raises nothing."""

    async def ask() -> Broker:
        raise PermissionError("fenced")

    async with Link("test", ask) as it:
        consumer = it.consume("queue", Inbox())
        with pytest.raises(PermissionError):
            await it.ended()
        await consumer.cancel()


async def test_who_waits_for_a_link_that_is_left_is_told_so() -> None:
    """He gets an error of ours, and is not cancelled for what others do."""

    async def ask() -> Broker:
        raise Unreachable("never")

    async with Link("test", ask) as it:
        waiting = asyncio.create_task(it.ready())
        await asyncio.sleep(0)
    with pytest.raises(Unreachable, match="closed"):
        await waiting


async def test_a_connection_that_has_ended_is_known_to_be_gone(broker: Broker, wire: Proxy) -> None:
    """Also by those who were not there when it ended, and could not be told."""
    async with direct("") as how:
        connection = await open_connection(broker.login(f"amqp://127.0.0.1:{wire.port}/"), "test", how)
    assert connection.transport is not None
    assert not gone(connection)
    ended = connection.transport.connection.closing
    wire.cut()
    async with asyncio.timeout(20):
        await asyncio.wait({ended})
    assert gone(connection)
    await close(connection)


async def test_the_topology_can_be_declared_again_and_again(link: Link) -> None:
    """Declaring what exists changes nothing; declaring it otherwise is refused with a reason."""
    endpoint = new_hex()
    wanted = [topology.fixed(), topology.endpoint(endpoint), topology.stream(endpoint, (endpoint,))]
    for _ in range(2):
        for part in wanted:
            await link.declare(part)
    with pytest.raises(InvalidRequest, match="inequivalent"):
        await link.declare(Topology(queues=(Queue(topology.tasks_queue(endpoint), {"x-queue-type": "classic"}),)))
    for part in wanted[1:]:
        await link.delete(part)


async def test_a_wrong_password_is_told_from_a_dead_broker(broker: Broker) -> None:
    """`check` says which of the two it is."""
    await check(broker)
    with pytest.raises(NotAllowed):
        await check(Broker(broker.urls, broker.user, "wrong"))
    with pytest.raises(Unreachable):
        await check(at(broker, 1))


async def test_a_password_is_not_shown() -> None:
    """Neither the repr of a broker nor its URLs hold the password."""
    broker = Broker(("amqp://127.0.0.1:5672/",), "u", "s3cret/@")
    assert "s3cret" not in repr(broker)
    assert broker.login(broker.urls[0]) == "amqp://u:s3cret%2F%40@127.0.0.1:5672/"
