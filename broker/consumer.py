"""A subscription to a queue that is renewed for as long as its link lives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from aio_pika.abc import AbstractIncomingMessage

from funcmq.broker.connection import CONNECT_S, LOST, Backoff, close, heed_cancel, say, within

if TYPE_CHECKING:
    from funcmq.broker.link import Link

log = logging.getLogger("funcmq.link")

ANSWER_S = 30.0
"""How long an ack may take to leave: aiormq would wait for ever at the full queue of a connection that is gone."""


@dataclass(slots=True)
class Delivery:
    """A message that waits for `ack` or `reject`.  After a reconnect both do nothing, because the broker delivers it again."""

    kind: str | None
    body: bytes
    key: str
    redelivered: bool
    timestamp: float
    _message: AbstractIncomingMessage = field(repr=False)
    _ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def headers(self) -> dict[str, Any]:
        """What the broker or the sender wrote on it."""
        return dict(self._message.headers)

    @property
    def message_id(self) -> str:
        """Of this attempt to publish it; '' where it has none."""
        return self._message.message_id or ""

    async def ack(self) -> None:
        """It is safe elsewhere now: the broker may forget it."""
        if self._ended.is_set():
            return  # on a channel that is being closed it would cost the whole connection
        with contextlib.suppress(*LOST):
            async with within(ANSWER_S):
                await self._message.ack()

    async def reject(self, *, requeue: bool = False) -> None:
        """To the dead letters of its queue, or back to its head."""
        if self._ended.is_set():
            return
        with contextlib.suppress(*LOST):
            async with within(ANSWER_S):
                await self._message.reject(requeue=requeue)


Handler = Callable[[Delivery], Awaitable[None]]


class Consumer:
    """A subscription that is renewed for as long as its link lives; `cancel` ends it."""

    def __init__(self, link: Link, queue: str, handler: Handler, prefetch: int) -> None:
        self.queue = queue
        self.ready = asyncio.Event()
        """Set while the broker delivers to this consumer."""
        self._link, self._handler, self._prefetch = link, handler, prefetch
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"consume {queue}")

    async def cancel(self) -> None:
        """Stop; what was delivered and not acked goes back to the queue."""
        self._link.drop(self)
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()  # the link had ended before; it has told its owner why

    def interrupt(self) -> None:
        """The link is down: what was subscribed there is no more, whether aio-pika says so or not."""
        self._ended.set()

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            await self._link.ready()
            try:
                async with within(None):
                    await self._subscribe()
                backoff.reset()
            except LOST as lost:
                log.log(logging.WARNING if self._link.up else logging.DEBUG, "cannot consume %s: %s", self.queue, say(lost))
            except Exception:  # a consumer that ended silently would leave its queue to nobody
                log.exception("cannot consume %s", self.queue, extra={"action": "consume_failed"})
            finally:
                self.ready.clear()
            heed_cancel()
            await backoff.wait()

    async def _subscribe(self) -> None:
        ended = self._ended = asyncio.Event()
        channel = await self._link.open_channel()
        try:
            channel.close_callbacks.add(lambda *_: ended.set())
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda _: ended.set())
            await channel.set_qos(self._prefetch, timeout=CONNECT_S)
            queue = await channel.get_queue(self.queue, ensure=False)
            await queue.consume(partial(self._deliver, ended), timeout=CONNECT_S)
            heed_cancel()
            self.ready.set()
            await ended.wait()
        finally:
            ended.set()
            await close(channel)

    async def _deliver(self, ended: asyncio.Event, message: AbstractIncomingMessage) -> None:
        stamp = message.timestamp.timestamp() if message.timestamp else 0.0
        delivery = Delivery(message.type, message.body, message.routing_key or "", bool(message.redelivered), stamp, message, ended)
        try:
            await self._handler(delivery)
        except Exception:
            log.exception("a message from %s could not be handled; it is tried again", self.queue, extra={"action": "handler_failed"})
            await asyncio.sleep(1)  # whatever broke the handler should not be met a thousand times a second
            await delivery.reject(requeue=True)
