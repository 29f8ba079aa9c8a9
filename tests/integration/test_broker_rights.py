"""What endpoints and clients may not do in RabbitMQ, tried with the credentials they hold: a real node asks a real front door."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aio_pika
import aiormq
import pytest
import pytest_asyncio
from aio_pika.abc import AbstractChannel

from funcmq.broker import api, topology
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import NotAllowed
from funcmq.broker.ids import group_id, new_hex
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import serving
from tests.forwarder_rig import Endpoint, Fabric, call_task, settings_for, sqlite_url

Attempt = Callable[[AbstractChannel], Awaitable[object]]

REFUSED = (aiormq.exceptions.ChannelAccessRefused, aiormq.exceptions.ChannelPreconditionFailed)


@pytest_asyncio.fixture
async def fabric(rabbitmq: Node, tmp_path: Path) -> AsyncIterator[Fabric]:
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(settings_for(rabbitmq, sqlite_url(tmp_path))))
        await running.door.link.ready()
        made = Fabric(running, rabbitmq, stack)
        assert running.code is not None
        made.admin = await made.login(running.code)
        yield made


async def as_endpoint(endpoint: Endpoint) -> Broker:
    lease = await endpoint.take_lease()
    return Broker(tuple(lease.brokers), lease.user, lease.password)


async def as_client(fabric: Fabric) -> tuple[Broker, str]:
    body = api.SessionRequest(groups=[group_id(fabric.admin.id, "g")])
    session = await fabric.admin.api.call("POST", "/sessions", body, api.SessionAnswer)
    stream = session.streams[0]
    return Broker(tuple(stream.urls), stream.user, stream.password), stream.queue


async def publish(channel: AbstractChannel, exchange: str, key: str, user_id: str | None = None) -> object:
    target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
    return await target.publish(aio_pika.Message(b"x", user_id=user_id), key, mandatory=False)


async def consume(channel: AbstractChannel, queue: str) -> object:
    async def take(_: object) -> None:
        raise AssertionError("nothing may be delivered")

    return await (await channel.get_queue(queue, ensure=False)).consume(take)


async def bind(channel: AbstractChannel, queue: str, exchange: str, key: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).bind(exchange, key)


async def none_works(broker: Broker, attempts: dict[str, Attempt]) -> None:
    """Each of the attempts, on a channel of its own, is refused by the broker."""
    async with await aio_pika.connect(broker.login(broker.urls[0])) as connection:
        for what, attempt in attempts.items():
            channel = await connection.channel(publisher_confirms=True)
            try:
                await attempt(channel)
            except REFUSED:
                continue
            pytest.fail(f"{broker.user} may {what}")


def common_attempts(queue: str, others: tuple[str, ...]) -> dict[str, Attempt]:
    """What nobody but the front door may do."""
    attempts: dict[str, Attempt] = {
        "write into a queue through the default exchange": lambda c: publish(c, "", others[0]),
        "declare a queue": lambda c: c.declare_queue(new_hex(), durable=True),
        "declare a queue that it could steal with": lambda c: c.declare_queue(f"{queue}x", durable=True),
        "delete its queue": lambda c: c.queue_delete(queue),
        "declare an exchange": lambda c: c.declare_exchange(new_hex()),
        "delete an exchange": lambda c: c.exchange_delete(topology.RESULTS),
        "bind its queue to results": lambda c: bind(c, queue, topology.RESULTS, "#"),
        "bind its queue to tasks": lambda c: bind(c, queue, topology.TASKS, "x"),
        "send a task": lambda c: publish(c, topology.TASKS, "x"),
        "send a control message": lambda c: publish(c, topology.CONTROL, "x"),
        "send a copy of a result": lambda c: publish(c, topology.STREAMS, "x"),
        "write dead letters": lambda c: publish(c, topology.DEAD, ""),
        "tell the front doors something": lambda c: publish(c, topology.SERVE, ""),
        "write to amq.topic": lambda c: publish(c, "amq.topic", "x"),
        "read dead letters": lambda c: consume(c, topology.DEAD),
        "read heartbeats": lambda c: consume(c, topology.STATUS),
    }
    for other in others:
        attempts[f"read {other}"] = partial(consume, queue=other)
        attempts[f"purge {other}"] = partial(purge, queue=other)
    return attempts


async def purge(channel: AbstractChannel, queue: str) -> object:
    return await (await channel.get_queue(queue, ensure=False)).purge()


@pytest.mark.asyncio
async def test_an_endpoint_reads_its_own_and_writes_under_its_own_key(fabric: Fabric) -> None:
    """With an endpoint's credentials nothing of another endpoint or client can be read, written, bound, declared or deleted."""
    mine, other = await fabric.endpoint(fabric.admin), await fabric.endpoint(fabric.admin)
    _, stream = await as_client(fabric)
    broker = await as_endpoint(mine)
    others = (
        topology.tasks_queue(other.id),
        topology.control_queue(other.id),
        topology.results_queue(other.id),
        topology.results_queue(mine.id),
        stream,
    )
    attempts = common_attempts(topology.tasks_queue(mine.id), others) | {
        "report under another endpoint's key": lambda c: publish(c, topology.RESULTS, topology.results_key(other.id, "g")),
        "report under a key that begins like its own": lambda c: publish(c, topology.RESULTS, f"{mine.id}x.g"),
        "beat for another endpoint": lambda c: publish(c, topology.STATUS, other.id),
        "pretend to be the front door": lambda c: publish(c, topology.RESULTS, topology.results_key(mine.id, "g"), "funcmq"),
        "pretend to be another endpoint": lambda c: publish(c, topology.RESULTS, topology.results_key(mine.id, "g"), f"ep.{other.id}.1"),
    }
    await none_works(broker, attempts)
    async with await aio_pika.connect(broker.login(broker.urls[0])) as connection:
        channel = await connection.channel()
        await publish(channel, topology.RESULTS, topology.results_key(mine.id, "g"), broker.user)
        await publish(channel, topology.STATUS, mine.id)
        await consume(channel, topology.tasks_queue(mine.id))
        await consume(channel, topology.control_queue(mine.id))


@pytest.mark.asyncio
async def test_a_client_reads_its_own_stream_and_writes_nothing(fabric: Fabric) -> None:
    """With a session's credentials nothing but its own stream can be read, and nothing at all written."""
    endpoint = await fabric.endpoint(fabric.admin)
    broker, stream = await as_client(fabric)
    _, other = await as_client(fabric)
    others = (topology.tasks_queue(endpoint.id), topology.control_queue(endpoint.id), topology.results_queue(endpoint.id), other)
    attempts = common_attempts(stream, others) | {
        "report a result": lambda c: publish(c, topology.RESULTS, topology.results_key(endpoint.id, "g")),
        "beat for an endpoint": lambda c: publish(c, topology.STATUS, endpoint.id),
    }
    await none_works(broker, attempts)
    async with await aio_pika.connect(broker.login(broker.urls[0])) as connection:
        await consume(await connection.channel(), stream)


@pytest.mark.asyncio
async def test_wrong_names_and_passwords_may_not_log_in(fabric: Fabric) -> None:
    """Unknown users, later and earlier epochs, wrong and empty passwords, and guest are refused."""
    endpoint = await fabric.endpoint(fabric.admin)
    first, second = await as_endpoint(endpoint), await as_endpoint(endpoint)
    client, _ = await as_client(fabric)
    await check(second)
    wrong = [
        first,
        Broker(second.urls, first.user, second.password),
        Broker(second.urls, f"ep.{endpoint.id}.3", second.password),
        Broker(second.urls, f"ep.{endpoint.id}.0", ""),
        Broker(second.urls, second.user, ""),
        Broker(second.urls, second.user, second.password + "x"),
        Broker(second.urls, client.user, second.password),
        Broker(second.urls, f"cl.{new_hex()}", ""),
        Broker(second.urls, f"ep.{new_hex()}.1", ""),
        Broker(second.urls, "guest", "guest"),
    ]
    for broker in wrong:
        with pytest.raises(NotAllowed):
            await check(broker)


@pytest.mark.asyncio
async def test_another_vhost_stays_closed(fabric: Fabric) -> None:
    """Our users may enter the front door's vhost only, and only that one is answered for."""
    endpoint = await fabric.endpoint(fabric.admin)
    broker = await as_endpoint(endpoint)
    with pytest.raises(aiormq.exceptions.AMQPError):
        await aio_pika.connect(broker.login(broker.urls[0]) + "elsewhere")


@pytest.mark.asyncio
async def test_a_fenced_epoch_gets_nothing_more(fabric: Fabric) -> None:
    """The connections of the epoch before are closed within 5 s; what is sent afterwards reaches the new epoch only."""
    user, endpoint = fabric.admin, await fabric.endpoint(fabric.admin)
    broker = await as_endpoint(endpoint)
    connection = await aio_pika.connect(broker.login(broker.urls[0]))
    closed, got = asyncio.Event(), asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    channel = await connection.channel()
    queue = await channel.get_queue(topology.tasks_queue(endpoint.id), ensure=False)

    async def take(_: object) -> None:
        got.set()

    await queue.consume(take)
    async with endpoint.connected():
        async with asyncio.timeout(5):
            await closed.wait()
        bundle = user.sign(user.work(endpoint.id, await user.register(), [call_task()]))
        await user.post(bundle)
        assert (await endpoint.next_dispatch()).bundle == bundle
    assert not got.is_set()
    await connection.close()
