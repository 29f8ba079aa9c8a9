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
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import AbstractChannel as AbstractUnderlayChannel

from funcmq.broker.connection import CONNECT_S, LOST, Backoff, Broker, close, gone, heed_cancel, open_connection, say, within
from funcmq.broker.consumer import Consumer, Handler
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotFound, Unreachable
from funcmq.broker.ids import new_hex
from funcmq.broker.topology import Queue, Topology
from funcmq.broker.transport import Route, Way, Ways

log = logging.getLogger("funcmq.link")

CONFIRM_S = 30.0
LEAVE_S = 5.0
HOME_AWAY = "is down or inaccessible"
"""RabbitMQ's words for a durable classic queue that lives on a node which is down: nobody can declare or use it until that is back."""


class Link:
    """See the module.  Use it as an async context manager; nothing of it outlives the `async with`.

    :param name: what the broker's connection list shows.
    :param broker: asked before every round of connecting; may raise a FuncmqError to try again later, or let any other exception end the
    link.
    :param on_up: runs after every connect, before anybody sees the link as up: declare, send again.
    :param ways: how to get there; without it the direct way only.
    """

    def __init__(
        self,
        name: str,
        broker: Callable[[], Awaitable[Broker]],
        *,
        on_up: Callable[[Link], Awaitable[None]] | None = None,
        ways: Ways | None = None,
    ) -> None:
        self._name, self._broker, self._on_up, self._ways = name, broker, on_up, ways or Ways()
        self._up = asyncio.Event()
        self._consuming: AbstractConnection | None = None
        self._publishing: AbstractConnection | None = None
        self._publisher: AbstractChannel | None = None
        self._confirmed: AbstractUnderlayChannel | None = None
        self._opened = 0.0
        self._left: list[tuple[float, AbstractChannel]] = []
        self._opening = asyncio.Lock()
        self._consumers: list[Consumer] = []
        self._task: asyncio.Task[None] | None = None
        self._user = ""
        self._complaint = ""

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
            if not self._task.cancelled():
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
        channel: AbstractUnderlayChannel | None = None
        try:
            async with within(timeout):
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
            raise NotFound(
                f"No queue takes messages for {key!r} on the exchange {exchange!r}.", hint="It is made again when its owner connects."
            ) from None
        except aiormq.exceptions.DeliveryError:
            self._leave(channel)
            raise Busy(f"The broker refused a message for {key!r}: its queue is full, or most of its nodes are away.") from None
        except TimeoutError:
            if self.blocked:
                raise Busy("The broker is short of memory or disk and takes no messages now.") from None
            self._leave(channel)
            raise Unreachable(f"The broker did not confirm within {timeout:g} s.", hint="Its state is unknown; send it again.") from None
        except LOST as lost:
            raise Unreachable(f"The connection to the broker was lost: {say(lost)}.", hint="Its state is unknown; send it again.") from None

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
        """Make exchanges, queues and bindings that do not exist yet.  A classic queue whose node of a cluster is down exists, and is left.

        :raises Unreachable: no connection, or it went away meanwhile.
        :raises InvalidRequest: one exists with other arguments, or this user may not.
        """
        async with self._administer() as channel:
            for exchange in topology.exchanges:
                await channel.declare_exchange(exchange.name, exchange.type, durable=True, timeout=CONNECT_S)
        ahead = list(topology.queues)
        while ahead:
            try:
                async with self._administer() as channel:
                    while ahead:
                        await _declare(channel, ahead[0])
                        del ahead[0]
            except InvalidRequest as refused:
                if HOME_AWAY not in refused.message:
                    raise
                log.warning("the queue %s is away with its node of the cluster", ahead.pop(0).name, extra={"action": "queue_away"})

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
            async with within(CONFIRM_S):
                channel = await publishing.channel()
                try:
                    yield channel
                finally:
                    await close(channel)
        except aiormq.exceptions.ChannelClosed as refused:
            raise InvalidRequest(f"The broker refused: {say(refused)}.", hint="See deploy/rabbitmq.") from None
        except LOST as lost:
            raise Unreachable(f"The connection to the broker was lost: {say(lost)}.") from None

    async def _connected(self) -> AbstractConnection:
        """The publishing connection, waited for: a process that starts listens before its broker answers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S):
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
            confirmed = self._confirmed
            if confirmed is None or confirmed.is_closed:
                if self._publishing is None:
                    raise ConnectionError("not connected")
                channel = await self._publishing.channel(publisher_confirms=True, on_return_raises=True)
                confirmed = await channel.get_underlay_channel()
                self._publisher, self._confirmed = channel, confirmed
                self._opened = time.monotonic()
                await self._close_left()
            return confirmed  # not what stands there now: the link may have gone down meanwhile

    async def _close_left(self) -> None:
        """Close channels on which nobody can wait any more."""
        done = [channel for left, channel in self._left if time.monotonic() - left > CONFIRM_S]
        self._left = [entry for entry in self._left if entry[1] not in done]
        for channel in done:
            await close(channel)

    def _leave(self, channel: AbstractUnderlayChannel | None) -> None:
        """Publish on another channel from now on.  Where a queue's leader was lost with its node, RabbitMQ may refuse or never confirm
        whatever comes on a channel that was opened meanwhile, for as long as that lives (seen with 3.10).  Others may still wait on it: it
        is closed later.  Not more often than every LEAVE_S, because a queue that is really full refuses too.
        """
        now = time.monotonic()
        if channel is None or channel is not self._confirmed or now - self._opened < LEAVE_S:
            return
        assert self._publisher is not None, "it is set with _confirmed"
        self._left.append((now, self._publisher))
        self._publisher = self._confirmed = None

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                if await self._round(await self._broker()):
                    backoff.reset()
            except FuncmqError as refused:
                self._complain(f"cannot connect: {refused.message}")
            heed_cancel()
            await backoff.wait()

    async def _round(self, broker: Broker) -> bool:
        """Try every node and every way once; whether one of them worked."""
        for route in self._ways.routes(broker.urls):
            if await self._hold(broker, route):
                return True
            heed_cancel()
        return False

    def _complain(self, what: str) -> None:
        """Say it once: what keeps a link away is the same at every try."""
        level = logging.DEBUG if what == self._complaint else logging.WARNING
        self._complaint = what
        log.log(level, "%s %s; it tries again", self._name, what)

    async def _hold(self, broker: Broker, route: Route) -> bool:
        """Connect to one node and stay until a connection is lost; whether it was up at all."""
        lost, began = asyncio.Event(), time.monotonic()
        was_up = False
        try:
            async with within(None), contextlib.AsyncExitStack() as stack:
                self._user = broker.user
                ways = [await stack.enter_async_context(route.dial(route.url)) for _ in range(2)]
                opened: list[AbstractConnection] = []
                stack.push_async_callback(_close_all, opened)
                for how, verb in zip(ways, ("consumes", "publishes"), strict=True):
                    opened.append(await open_connection(broker.login(route.url), f"{self._name} {verb}", how))
                    _tell(opened[-1], lost)
                self._consuming, self._publishing = opened
                stack.callback(self._down)
                if self._on_up is not None:
                    await self._on_up(self)
                heed_cancel()
                self._up.set()
                was_up = True
                self._complaint = ""
                log.info("%s is connected to %s", self._name, self._ways.worked(route))
                await self._stay(broker, route, lost)
        except aiormq.exceptions.ProbableAuthenticationError:
            self._ways.answered(route)
            self._complain(f"may not log in at {route.url} as {broker.user}")
        except LOST as broken:
            if not was_up:
                self._ways.failed(route, began, say(broken))
            self._complain(f"lost {route.url}: {say(broken)}")
        return was_up

    async def _stay(self, broker: Broker, route: Route, lost: asyncio.Event) -> None:
        """Until a connection is lost, or there is a better way."""
        if route.way is Way.DIRECT:
            await lost.wait()
            return
        waits = [asyncio.create_task(lost.wait()), asyncio.create_task(self._ways.direct_answers(broker), name="look for the direct way")]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _down(self) -> None:
        self._up.clear()
        for consumer in self._consumers:
            consumer.interrupt()
        self._consuming = self._publishing = self._publisher = self._confirmed = None
        self._left.clear()


def _tell(connection: AbstractConnection, lost: asyncio.Event) -> None:
    """Have the event set when the connection ends.

    :raises ConnectionError: it has ended before anybody could ask to be told.
    """
    connection.close_callbacks.add(lambda *_: lost.set())
    if gone(connection):
        raise ConnectionError("the connection was closed")


async def _declare(channel: AbstractChannel, queue: Queue) -> None:
    declared = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments), timeout=CONNECT_S)
    for name, key in queue.bindings:
        await declared.bind(name, key, timeout=CONNECT_S)


async def _close_all(connections: list[AbstractConnection]) -> None:
    """At once, because each may take its time where the wire is dead."""
    await asyncio.gather(*(close(connection) for connection in connections))
