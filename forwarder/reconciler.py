"""What nobody confirmed is sent again; what no endpoint will ever take is ended.

Every wait here has a reason: a bundle counts as unconfirmed a minute after it was last given to the broker, and as expired five minutes
after its last task's time was up without any sign from its endpoint, which would have ended it itself.
"""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import FuncmqError
from funcmq.forwarder import bundles as bundle_rows
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.sender import Sender
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import PENDING, bundles, tasks
from funcmq.forwarder.tasks import end_here

log = logging.getLogger("funcmq.reconciler")

UNCONFIRMED_MS = 60_000
FORGOTTEN_MS = 300_000
LOOK_EVERY_S = 10.0
MOST = 100
"""Bundles in one round."""


class Reconciler:
    """`run` looks every few seconds, and when `look` was called."""

    def __init__(self, database: Database, sender: Sender) -> None:
        self._database, self._sender = database, sender
        self._wanted = asyncio.Event()

    def look(self) -> None:
        """Something waits to be sent now."""
        self._wanted.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            more = False
            try:
                more = await self.send_unconfirmed(now_ms()) + await self.expire(now_ms()) >= MOST
            except FuncmqError as failed:
                log.warning("the reconciler tries again: %s", failed.message)
            if not more:
                await self._rest()

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
            found = await bundle_rows.unconfirmed(connection, now - UNCONFIRMED_MS, MOST)
        for seq in found:
            await self._send(seq, now)
        return len(found)

    async def _send(self, seq: int, now: int) -> None:
        sending = await self._database.write(lambda connection: bundle_rows.send_again(connection, seq, now))
        if sending is not None:
            log.info("bundle %d is sent again (%d)", seq, sending.dispatch, extra={"action": "sent_again"})
            await self._sender.send(sending)

    async def expire(self, now: int) -> int:
        """End what was to start long ago and was never received; how many bundles that were."""
        overdue = select(bundles.c.seq).where(PENDING, bundles.c.expires < now - FORGOTTEN_MS).limit(MOST)
        async with self._database.read() as connection:
            found = [row.seq for row in await connection.execute(overdue)]

        async def write(connection: AsyncConnection) -> None:
            waiting = select(tasks.c.id).where(tasks.c.bundle.in_(found), tasks.c.state == int(State.ACCEPTED))
            ids = [row.id for row in await connection.execute(waiting)]
            await end_here(connection, ids, State.EXPIRED_HERE, "TaskExpired", "Its endpoint never took it.", now)
            await connection.execute(update(bundles).where(PENDING, bundles.c.seq.in_(found)).values(state=int(State.EXPIRED_HERE)))

        if found:
            await self._database.write(write)
        return len(found)
