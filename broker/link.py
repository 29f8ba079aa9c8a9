"""A link to RabbitMQ that comes back: two connections, one to consume and one to publish, that are up together or down together.

RabbitMQ stops reading from a *publishing* connection while it is short of memory or disk; acks and deliveries must not wait behind that,
hence two connections.
aio-pika's own robust connection hides its state, so the loop over brokers is ours: every round asks for credentials again (a daemon renews
its lease there), takes the brokers in random order, and waits with jitter in between.

What a publisher may rely on: when `publish` returns, every queue that the message was routed to has it, a quorum queue on a majority's
disks.  When it raises `Unreachable` or `Busy`, the message may have arrived or not: publish it again, and let the receiver recognise it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as AbstractUnderlayChannel
from aiormq.abc import FieldTable
from yarl import URL

from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotAllowed, NotFound, Unreachable
from funcmq.broker.ids import new_hex
from funcmq.broker.topology import Topology

log = logging.getLogger("funcmq.link")
for _chatty in ("aiormq", "aio_pika"):  # what they log with a traceback is a lost connection, of which the link tells in one line
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)

HEARTBEAT_S = 10
CONNECT_S = 10.0
CONFIRM_S = 30.0
CLOSE_S = 5.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0

_LOST = (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, asyncio.TimeoutError)
"""What aio-pika raises when a connection or channel goes away under a call.  Among them: RuntimeError is its 'closed' in some places, and
StopAsyncIteration is what aiormq raises when the wire is cut in the middle of a handshake."""


@dataclass(frozen=True, slots=True)
class Broker:
    """The nodes of one broker cluster (`amqp://host:port/vhost`, no credentials) and the user to log in as."""

    urls: tuple[str, ...]
    user: str
    password: str = field(repr=False)

    def login(self, url: str) -> str:
        """The URL with credentials: never logged, never shown."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return urlunsplit(parts._replace(netloc=f"{credentials}@{host}"))


class Dialler(Protocol):
    """The way to a broker: given its URL, the URL to really connect to, for as long as the context lasts.  A WebSocket tunnel is another
    one of these.
    """

    def __call__(self, url: str) -> contextlib.AbstractAsyncContextManager[str]: ...


@contextlib.asynccontextmanager
async def direct(url: str) -> AsyncIterator[str]:
    """No detour."""
    yield url


@dataclass(slots=True)
class Delivery:
    """A message that waits for `ack` or `reject`.  After a reconnect both do nothing, because the broker delivers it again."""

    kind: str | None
    body: bytes
    key: str
    redelivered: bool
    timestamp: float
    _message: AbstractIncomingMessage = field(repr=False)

    async def ack(self) -> None:
        """It is safe elsewhere now: the broker may forget it."""
        with contextlib.suppress(*_LOST):
            await self._message.ack()

    async def reject(self, *, requeue: bool = False) -> None:
        """To the dead letters of its queue, or back to its head."""
        with contextlib.suppress(*_LOST):
            await self._message.reject(requeue=requeue)


Handler = Callable[[Delivery], Awaitable[None]]


class Consumer:
    """A subscription that is renewed for as long as its link lives; `cancel` ends it."""

    def __init__(self, link: Link, queue: str, handler: Handler, prefetch: int) -> None:
        self.queue = queue
        self.ready = asyncio.Event()
        """Set while the broker delivers to this consumer."""
        self._link, self._handler, self._prefetch = link, handler, prefetch
        self._task = asyncio.create_task(self._run(), name=f"consume {queue}")

    async def cancel(self) -> None:
        """Stop; what was delivered and not acked goes back to the queue."""
        self._link.drop(self)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        wait = FIRST_WAIT_S
        while True:
            await self._link.ready()
            try:
                await self._subscribe()
                wait = FIRST_WAIT_S
            except _LOST as lost:
                log.warning("cannot consume %s: %s", self.queue, _say(lost))
                wait = min(wait * 2, LONGEST_WAIT_S)
            finally:
                self.ready.clear()
            _heed_cancel()
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))

    async def _subscribe(self) -> None:
        ended = asyncio.Event()
        channel = await self._link.open_channel()
        try:
            channel.close_callbacks.add(lambda *_: ended.set())
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: ended.set())
            await channel.set_qos(self._prefetch, timeout=CONNECT_S)
            queue = await channel.get_queue(self.queue, ensure=False)
            await queue.consume(self._deliver, timeout=CONNECT_S)
            _heed_cancel()
            self.ready.set()
            await ended.wait()
        finally:
            await _close(channel)

    async def _deliver(self, message: AbstractIncomingMessage) -> None:
        stamp = message.timestamp.timestamp() if message.timestamp else 0.0
        delivery = Delivery(message.type, message.body, message.routing_key or "", bool(message.redelivered), stamp, message)
        try:
            await self._handler(delivery)
        except Exception:
            log.exception("a message from %s could not be handled; it is tried again", self.queue, extra={"action": "handler_failed"})
            await asyncio.sleep(1)  # whatever broke the handler should not be met a thousand times a second
            await delivery.reject(requeue=True)


class Link:
    """See the module.  Use it as an async context manager; nothing of it outlives the `async with`.

    :param name: what the broker's connection list shows.
    :param broker: asked before every round of connecting; may raise a FuncmqError to try again later, or let any other exception end the
    link.
    :param on_up: runs after every connect, before anybody sees the link as up: declare, send again.
    """

    def __init__(
        self,
        name: str,
        broker: Callable[[], Awaitable[Broker]],
        *,
        on_up: Callable[[Link], Awaitable[None]] | None = None,
        dial: Dialler = direct,
    ) -> None:
        self._name, self._broker, self._on_up, self._dial = name, broker, on_up, dial
        self._up = asyncio.Event()
        self._consuming: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._publisher: AbstractChannel | None = None
        self._confirmed: AbstractUnderlayChannel | None = None
        self._opening = asyncio.Lock()
        self._consumers: list[Consumer] = []
        self._task: asyncio.Task[None] | None = None
        self._user = ""

    async def __aenter__(self) -> Link:
        self._task = asyncio.create_task(self._run(), name=f"link {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        for consumer in list(self._consumers):
            await consumer.cancel()
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task

    @property
    def up(self) -> bool:
        """Whether both connections stand and `on_up` has run."""
        return self._up.is_set()

    @property
    def blocked(self) -> bool:
        """Whether the broker has stopped reading what is published here, being short of memory or disk."""
        transport = getattr(self._publishing, "transport", None)
        if transport is None:
            return False
        ready = transport.connection.ready()
        try:
            ready.send(None)  # the coroutine ends at once unless it has to wait
        except StopIteration:
            return False
        ready.close()
        return True

    async def ready(self) -> None:
        """Wait until the link is up.  Raises what ended the link for good.  Cancelling is safe."""
        assert self._task is not None, "a Link is used with `async with`"
        up = asyncio.ensure_future(self._up.wait())
        try:
            await asyncio.wait({up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        if self._task.done() and not self._up.is_set():
            self._task.result()
            raise Unreachable("The link to the broker is closed.")

    async def ended(self) -> None:
        """Wait until the link ends for good and raise why: for a TaskGroup that should end with it."""
        assert self._task is not None, "a Link is used with `async with`"
        await asyncio.shield(self._task)

    async def publish(self, exchange: str, key: str, kind: str, body: bytes, *, mandatory: bool = True, timeout: float = CONFIRM_S) -> None:
        """Publish and wait for the confirm.  Every attempt has a message id of its own, because returns are matched by it.

        :raises NotFound: no queue is bound for this key (with `mandatory`).
        :raises Busy: the broker refused it (queue full) or is short of memory or disk.
        :raises Unreachable: no connection, or no answer within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                if not self._up.is_set():
                    await self.ready()
                channel = self._confirmed
                if channel is None or channel.is_closed:
                    channel = await self._confirming()
                properties = aiormq.spec.Basic.Properties(
                    delivery_mode=2, message_id=new_hex(), message_type=kind, user_id=self._user, timestamp=datetime.now(UTC)
                )
                await channel.basic_publish(body, exchange=exchange, routing_key=key, properties=properties, mandatory=mandatory)
        except aiormq.exceptions.PublishError:
            raise NotFound(f"No queue takes messages for {key!r} on the exchange {exchange!r}.") from None
        except aiormq.exceptions.DeliveryError:
            raise Busy(f"The broker refused a message for {key!r}: its queue is full.") from None
        except TimeoutError:
            if self.blocked:
                raise Busy("The broker is short of memory or disk and takes no messages now.") from None
            raise Unreachable(f"The broker did not confirm within {timeout:g} s.", hint="Its state is unknown; send it again.") from None
        except _LOST as lost:
            raise Unreachable(
                f"The connection to the broker was lost: {_say(lost)}.", hint="Its state is unknown; send it again."
            ) from None

    def consume(self, queue: str, handler: Handler, *, prefetch: int = 32) -> Consumer:
        """Deliver messages of a queue to handler, each in a task of its own, at most `prefetch` unacked, across reconnects."""
        consumer = Consumer(self, queue, handler, prefetch)
        self._consumers.append(consumer)
        return consumer

    def drop(self, consumer: Consumer) -> None:
        """Forget a consumer that ends."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    async def declare(self, topology: Topology) -> None:
        """Make exchanges, queues and bindings that do not exist yet.

        :raises Unreachable: no connection, or it went away meanwhile.
        :raises InvalidRequest: one exists with other arguments, or this user may not.
        """
        async with self._administer() as channel:
            for exchange in topology.exchanges:
                await channel.declare_exchange(exchange.name, exchange.type, durable=True, timeout=CONNECT_S)
            for queue in topology.queues:
                declared = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments), timeout=CONNECT_S)
                for name, key in queue.bindings:
                    await declared.bind(name, key, timeout=CONNECT_S)

    async def bind(self, queue: str, exchange: str, key: str) -> None:
        """Bind a queue that exists.

        :raises InvalidRequest: queue or exchange is gone.
        :raises Unreachable: no connection.
        """
        async with self._administer() as channel:
            target = await channel.get_queue(queue, ensure=False)
            await target.bind(exchange, key, timeout=CONNECT_S)

    async def delete(self, topology: Topology) -> None:
        """Delete the queues of a topology, with what is in them; those that are gone are skipped."""
        async with self._administer() as channel:
            for queue in topology.queues:
                await channel.queue_delete(queue.name, timeout=CONNECT_S)

    @contextlib.asynccontextmanager
    async def _administer(self) -> AsyncIterator[AbstractChannel]:
        publishing = self._publishing or await self._connected()
        try:
            channel = await publishing.channel()
            try:
                yield channel
            finally:
                await _close(channel)
        except aiormq.exceptions.ChannelClosed as refused:
            raise InvalidRequest(f"The broker refused: {_say(refused)}.", hint="See deploy/rabbitmq.") from None
        except _LOST as lost:
            raise Unreachable(f"The connection to the broker was lost: {_say(lost)}.") from None

    async def _connected(self) -> AbstractConnection:
        """The publishing connection, waited for: a process that starts listens before its broker answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await self.ready()
        if self._publishing is None:
            raise Unreachable("There is no connection to the broker.")
        return self._publishing

    async def open_channel(self) -> AbstractChannel:
        """A channel on the consuming connection."""
        if self._consuming is None:
            raise ConnectionError("not connected")
        async with asyncio.timeout(CONNECT_S):
            return await self._consuming.channel(publisher_confirms=False)

    async def _confirming(self) -> AbstractUnderlayChannel:
        """The channel to publish on.  One bad publish closes it for all; then there is a new one."""
        async with self._opening:
            if self._confirmed is None or self._confirmed.is_closed:
                if self._publishing is None:
                    raise ConnectionError("not connected")
                channel = await self._publishing.channel(publisher_confirms=True, on_return_raises=True)
                self._publisher, self._confirmed = channel, await channel.get_underlay_channel()
            return self._confirmed

    async def _run(self) -> None:
        wait = FIRST_WAIT_S
        while True:
            try:
                broker = await self._broker()
                for url in random.sample(broker.urls, len(broker.urls)):
                    if await self._hold(broker, url):
                        wait = FIRST_WAIT_S
                        break
            except FuncmqError as refused:
                log.warning("%s cannot connect: %s", self._name, refused.message)
            _heed_cancel()
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(wait * 2, LONGEST_WAIT_S)

    async def _hold(self, broker: Broker, url: str) -> bool:
        """Connect to one node and stay until a connection is lost; whether it was up at all."""
        lost = asyncio.Event()
        was_up = False
        try:
            async with contextlib.AsyncExitStack() as stack:
                login = broker.login(await stack.enter_async_context(self._dial(url)))
                self._user = broker.user
                self._consuming = await self._connect(stack, login, "consumes", lost)
                self._publishing = await self._connect(stack, login, "publishes", lost)
                stack.callback(self._down)
                if self._on_up is not None:
                    await self._on_up(self)
                _heed_cancel()
                self._up.set()
                was_up = True
                log.info("%s is connected to %s", self._name, url)
                await lost.wait()
        except aiormq.exceptions.ProbableAuthenticationError:
            log.warning("%s may not log in at %s as %s", self._name, url, broker.user)
        except _LOST as broken:
            log.warning("%s lost %s: %s", self._name, url, _say(broken))
        return was_up

    async def _connect(self, stack: contextlib.AsyncExitStack, login: str, verb: str, lost: asyncio.Event) -> AbstractConnection:
        connection = await open_connection(login, f"{self._name} {verb}")
        connection.close_callbacks.add(lambda *_: lost.set())
        stack.push_async_callback(_close, connection)
        return connection

    def _down(self) -> None:
        self._up.clear()
        self._consuming = self._publishing = self._publisher = self._confirmed = None


async def open_connection(login: str, name: str) -> AbstractConnection:
    """A connection to the broker at a URL with credentials; `name` is what the broker's list shows.  Raises what aio-pika raises.

    aio_pika.connect leaves a connection that failed to its finaliser, which may run in a thread without an event loop.
    """
    properties: FieldTable = {"connection_name": name}
    connection = aio_pika.Connection(URL(login), client_properties=properties, heartbeat=HEARTBEAT_S)
    try:
        await connection.connect(timeout=CONNECT_S)
    except BaseException:
        await _close(connection)
        raise
    return connection


async def _close(what: AbstractConnection | AbstractChannel) -> None:
    with contextlib.suppress(*_LOST):
        async with asyncio.timeout(CLOSE_S):
            await what.close()


def _heed_cancel() -> None:
    """End the task if it was cancelled while aiormq waited for an answer.

    The cancel may be lost there: `asyncio.wait_for` of Python 3.11 returns the answer if that came in the same turn of the loop, and
    aiormq may raise an error of its own instead.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _say(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


async def check(broker: Broker) -> None:
    """Log in once and leave.

    :raises NotAllowed: user and password are refused.
    :raises Unreachable: none of the URLs answers.
    """
    said = "no URL"
    for url in broker.urls:
        try:
            connection = await open_connection(broker.login(url), "check")
        except aiormq.exceptions.ProbableAuthenticationError:
            raise NotAllowed(f"{url} refuses the user {broker.user}.") from None
        except _LOST as broken:
            said = f"{url}: {_say(broken)}"
        else:
            await _close(connection)
            return
    raise Unreachable(f"No broker answers ({said}).")
