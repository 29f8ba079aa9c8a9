"""What several `funcmq serve` tell each other, over the exchange `serve`; every heartbeat comes the same way to each of them.

A notice only says to look at the store again.  All of it may be lost: claims are renewed on a timer, what was read is forgotten after a few
seconds, and after every reconnect everything is looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from funcmq.broker import codec, messages, topology
from funcmq.broker.consumer import Consumer, Delivery
from funcmq.broker.errors import FuncmqError
from funcmq.broker.link import Link
from funcmq.broker.messages import Heartbeat, Notice, Running
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.live import Live

log = logging.getLogger("funcmq.notices")

RIGHTS, CLAIMS, BUNDLES = "rights", "claims", "bundles"
PREFETCH = 200
CLOSE_S = 5.0


class Notices:
    """The mouth and the ear of one serve, whose id is `me`; `run` must be running."""

    def __init__(self, link: Link, me: str, live: Live) -> None:
        self._link, self._me, self._live = link, me, live
        self._hearers: Mapping[str, Callable[[], None]] = {}
        self._due: list[tuple[str, bytes]] = []
        self._wake = asyncio.Event()
        self._consumer: Consumer | None = None

    def hear(self, hearers: Mapping[str, Callable[[], None]]) -> None:
        """What to do about each word that another serve may say."""
        self._hearers = hearers

    def tell(self, *about: str) -> None:
        """Say it to the others, soon."""
        self._say("serve/1", codec.encode(Notice(1, self._me, list(about))))

    def forward(self, running: bytes) -> None:
        """Tasks run: pass the endpoint's own words on, because only one serve has them."""
        self._say("running/1", running)

    def missed(self) -> None:
        """The link was away: anything may have been said."""
        for act in self._hearers.values():
            act()

    async def run(self) -> None:
        """Until cancelled."""
        self._consumer = self._link.consume(topology.serve_queue(self._me), self._take, prefetch=PREFETCH)
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, []
            for kind, body in due:
                await self._publish(kind, body)

    async def close(self) -> None:
        """Say what is left to say; the queue goes."""
        due, self._due = self._due, []
        try:
            async with asyncio.timeout(CLOSE_S):
                for kind, body in due:
                    await self._publish(kind, body)
                if self._consumer is not None:
                    await self._consumer.cancel()
                if self._link.up:
                    await self._link.delete(topology.serve(self._me))
        except (FuncmqError, TimeoutError) as left:
            log.debug("the queue of this serve goes by itself: %s", left)

    def _say(self, kind: str, body: bytes) -> None:
        self._due.append((kind, body))
        self._wake.set()

    async def _publish(self, kind: str, body: bytes) -> None:
        try:
            if self._link.up:
                await self._link.publish(topology.SERVE, "", kind, body, mandatory=False)
        except FuncmqError as lost:
            log.debug("the other front doors were not told: %s", lost.message)

    async def _take(self, delivery: Delivery) -> None:
        try:
            self._act(messages.unpack(delivery.kind, delivery.body), delivery.key)
        except FuncmqError as broken:
            log.warning("a %s cannot be read here: %s", delivery.kind, broken.message)
        await delivery.ack()

    def _act(self, said: object, key: str) -> None:
        if isinstance(said, Heartbeat) and said.endpoint == key:
            self._live.beat(said, now_ms())
        elif isinstance(said, Running):
            self._live.started(said.tasks, said.at, now_ms(), said.host)
        elif isinstance(said, Notice) and said.serve != self._me:
            for word in said.about:
                self._hearers.get(word, _nothing)()


def _nothing() -> None:
    """A later release's word."""
