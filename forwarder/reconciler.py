"""What nobody confirmed is sent again, and what went missing; what no endpoint will ever take is ended.

Every wait here has a reason.  A bundle counts as unconfirmed a minute after it was last given to the broker, as missing only on evidence
(`evidence`), and as expired five minutes after its last task's time was up without any sign from its endpoint, which would have ended it
itself.  Signs that wait in an endpoint's result queue are read first.

Any number of front doors may do this at the same time: each change of a row says what the row was, and only the first one fits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import and_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import topology
from funcmq.broker.errors import FuncmqError
from funcmq.broker.link import Link
from funcmq.forwarder import bundles as bundle_rows
from funcmq.forwarder import missing
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.evidence import Spans, Witness
from funcmq.forwarder.queues import Queues
from funcmq.forwarder.sender import Sender, Sending
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import PENDING, bundles, tasks
from funcmq.forwarder.tasks import end_here

log = logging.getLogger("funcmq.reconciler")

LOOK_EVERY_S = 10.0
MOST = 100
"""Bundles in one round."""
SILENCE_EVERY_MS = 3_600_000
"""Between two looks for endpoints that went silent: who waits for 14 days can wait for an hour more."""
MOST_TASKS = 5_000
"""Tasks that one transaction ends."""


SPANS = Spans()


def _always() -> bool:
    return True


class Reconciler:
    """`run` looks every few seconds, and when `look` was called.

    :param mine: whether this front door is the one that does it now.
    """

    def __init__(self, database: Database, sender: Sender, link: Link, spans: Spans = SPANS, *, mine: Callable[[], bool] = _always) -> None:
        self._database, self._sender, self._link, self._spans, self._mine = database, sender, link, spans, mine
        self._queues = Queues(link)
        self._wanted = asyncio.Event()
        self._looked: dict[str, int] = {}
        self._began = self._judged = 0

    def look(self) -> None:
        """Something waits to be sent now."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            more = False
            if self._mine():
                try:
                    more = await self.round(now_ms())
                except FuncmqError as failed:
                    log.warning("the reconciler tries again: %s", failed.message)
            if not more:
                await self._rest()

    async def round(self, now: int) -> bool:
        """Everything once; whether there is more to do at once."""
        done = await self.send_unconfirmed(now)
        if self._link.up:
            done += await self.send_missing(now) + await self.expire(now)
            if now - self._judged >= SILENCE_EVERY_MS:
                self._judged = now
                await self.lose_silent(now)
        return done >= MOST

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._wanted.wait()
        except TimeoutError:
            return
        self._wanted.clear()

    async def send_unconfirmed(self, now: int) -> int:
        """Send again what was given to the broker a minute ago and not confirmed; how many that were."""
        async with self._database.read() as connection:
            found = await bundle_rows.unconfirmed(connection, now - self._spans.unconfirmed, MOST)
        for one in found:
            sending = await self._database.write(partial(bundle_rows.send_unconfirmed, found=one, now=now))
            await self._send(sending, "not confirmed")
        return len(found)

    async def _send(self, sending: Sending | None, why: str) -> None:
        """The row is written; what is not confirmed now is sent again in a minute.

        :raises Busy: the broker does not confirm, and would keep the others of this round waiting as long.
        """
        if sending is not None:
            log.info("bundle %d is sent again (%d): %s", sending.seq, sending.dispatch, why, extra={"action": "sent_again"})
            await self._sender.send(sending)

    async def send_missing(self, now: int) -> int:
        """Send again what its endpoint should have received by now, or leave it alone; how many that were."""
        async with self._database.read() as connection:
            waiting = await missing.waiting(connection, now, self._spans)
        self._looked = {endpoint: at for endpoint, at in self._looked.items() if endpoint in waiting}
        return sum([await self._send_missing_of(endpoint, now) for endpoint in waiting])

    async def _send_missing_of(self, endpoint: str, now: int) -> int:
        witness = await self._witness(endpoint, now)
        async with self._database.read() as connection:
            found = await missing.suspects(connection, endpoint, witness, now, self._spans, MOST)
        if not found or not await self._all_read(endpoint):
            return 0
        for one in found:
            await self._send(await self._database.write(partial(missing.repeat, suspect=one, now=now)), "it went missing")
        return len(found)

    async def _witness(self, endpoint: str, now: int) -> Witness:
        async with self._database.read() as connection:
            heard = await missing.heard(connection, endpoint)
        if now - self._looked.get(endpoint, 0) < self._spans.look:
            return Witness(heard, empty=False)
        self._looked[endpoint] = now
        waiting = await self._queues.ready(topology.tasks_queue(endpoint))
        if waiting is None:
            log.warning("the queues of endpoint %s are made again", endpoint, extra={"action": "queues_missing"})
            await self._link.declare(topology.endpoint(endpoint))
        return Witness(heard, empty=not waiting)

    async def _all_read(self, endpoint: str) -> bool:
        """Whether nothing that the endpoint said waits to be read."""
        return not await self._queues.ready(topology.results_queue(endpoint))

    async def expire(self, now: int) -> int:
        """End what was to start long ago and was never received; how many bundles that were."""
        overdue = select(bundles.c.seq, bundles.c.endpoint_id).where(PENDING, bundles.c.expires < now - self._spans.forgotten)
        async with self._database.read() as connection:
            rows = (await connection.execute(overdue.order_by(bundles.c.seq).limit(MOST))).all()
        quiet = {endpoint: await self._all_read(endpoint) for endpoint in {row.endpoint_id for row in rows}}
        found = [row.seq for row in rows if quiet[row.endpoint_id]]
        if found:
            await self._database.write(lambda connection: _expire(connection, found, now))
        return len(found)

    async def lose_silent(self, now: int) -> None:
        """End what was received by endpoints that have given no sign for 14 days; not before they could have given one to this process."""
        self._began = self._began or now
        if now - self._began < self._spans.forgotten:
            return
        async with self._database.read() as connection:
            rows = await missing.silent(connection, now - self._spans.silent, MOST_TASKS)
        quiet = {endpoint: await self._all_read(endpoint) for endpoint in {row.endpoint_id for row in rows}}
        ids = [row.id for row in rows if quiet[row.endpoint_id]]
        days = self._spans.silent // 86_400_000
        said = f"Its endpoint has given no sign for {days} days; it may have run."
        if ids:
            await self._database.write(lambda connection: end_here(connection, ids, State.LOST_HERE, "TaskLost", said, now))


async def _expire(connection: AsyncConnection, found: list[int], now: int) -> None:
    """Bundles first: what was received since it was looked at stays as it is."""
    pending = update(bundles).where(and_(PENDING, bundles.c.seq.in_(found))).values(state=int(State.EXPIRED_HERE)).returning(bundles.c.seq)
    ended = [row.seq for row in await connection.execute(pending)]
    waiting = select(tasks.c.id).where(tasks.c.bundle.in_(ended), tasks.c.state == int(State.ACCEPTED))
    ids = [row.id for row in await connection.execute(waiting)]
    await end_here(connection, ids, State.EXPIRED_HERE, "TaskExpired", "Its endpoint never took it.", now)
