"""Heartbeats: the newest of each endpoint is kept in memory, and written a few seconds later for when this process starts again."""

from __future__ import annotations

import logging

from sqlalchemy import select

from funcmq.broker import codec, messages, topology
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import FuncmqError
from funcmq.broker.link import Link
from funcmq.broker.messages import Heartbeat, Told
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.endpoints import SEEN
from funcmq.forwarder.live import Live
from funcmq.forwarder.tables import endpoints

log = logging.getLogger("funcmq.heartbeats")

PREFETCH = 200
WRITE_EVERY_MS = 5_000


class Heartbeats:
    """The consumer of the queue `status`."""

    def __init__(self, database: Database, live: Live) -> None:
        self._database, self._live = database, live
        self._written: dict[str, int] = {}

    async def start(self, link: Link) -> None:
        """Remember what was written, then consume for as long as the link lives."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(endpoints.c.seen, endpoints.c.status).where(endpoints.c.deleted == 0))
            for row in rows:
                if row.status:
                    self._live.beat(codec.decode(Heartbeat, row.status), row.seen)
        link.consume(topology.STATUS, self._take, prefetch=PREFETCH)

    async def _take(self, delivery: Delivery) -> None:
        try:
            beat = messages.unpack(delivery.kind, delivery.body)
            if isinstance(beat, Heartbeat) and beat.endpoint == delivery.key:
                self._note(beat, delivery.body, now_ms())
            elif not isinstance(beat, Told):  # an answer is heard by whoever asked
                log.warning("a %s with the key %s is not a heartbeat of that endpoint", delivery.kind, delivery.key)
        except FuncmqError as broken:
            log.warning("a heartbeat of %s cannot be read: %s", delivery.key, broken.message)
        await delivery.ack()

    def _note(self, beat: Heartbeat, body: bytes, now: int) -> None:
        before = self._live.clock_said(beat.endpoint)
        self._live.beat(beat, now)
        if (said := self._live.clock_said(beat.endpoint)) and not before:
            log.warning("endpoint %s on %s: %s", beat.endpoint, beat.host, said, extra={"action": "clock_is_off"})
        if now - self._written.get(beat.endpoint, 0) >= WRITE_EVERY_MS:
            self._written[beat.endpoint] = now
            self._database.write.later(SEEN, (now, body, beat.endpoint))
