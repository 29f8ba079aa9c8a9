"""The daemon's lease: asked for at the start, renewed at every reconnect, given back when nothing is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable

import msgspec

import funcmq
from funcmq.broker import api
from funcmq.broker.connection import Broker
from funcmq.broker.errors import Busy, Conflict, FuncmqError, Unreachable
from funcmq.broker.http import Api
from funcmq.endpoint.journal import Identity
from funcmq.endpoint.trust import TrustedKeys

log = logging.getLogger("funcmq.lease")

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 15.0
TRUSTED_S = 1.0
"""Between two looks at the file of trusted keys."""


class Fenced(Exception):
    """A later lease of this endpoint exists.  Not a FuncmqError: the link must end, not try again."""


class Lease:
    """The lease of one run.

    :param takeover: treat the journal that holds the endpoint as gone.
    :param cancelled: told the tasks that were cancelled while nobody listened, at every renewal.
    """

    def __init__(
        self,
        front: Api,
        endpoint: str,
        journal: Identity,
        trusted: TrustedKeys,
        cancelled: Callable[[list[bytes]], Awaitable[None]],
        *,
        takeover: bool,
    ) -> None:
        self._front, self._path = front, f"/endpoints/{endpoint}/lease"
        self._journal, self._trusted, self._cancelled = journal, trusted, cancelled
        self._takeover = takeover
        self._held: api.Lease | None = None
        self._told: list[str] = []
        self._used = False

    @property
    def epoch(self) -> int:
        """Of the lease held; 0 before the first."""
        return 0 if self._held is None else self._held.epoch

    @property
    def gone(self) -> int:
        """When a journal of this endpoint was given up for gone last (ms); 0 never."""
        return 0 if self._held is None else self._held.gone

    @property
    def cancels(self) -> list[bytes]:
        """Tasks that were cancelled before this lease was given."""
        return [bytes.fromhex(task) for task in self._held.cancels] if self._held else []

    async def obtain(self, waiting: Callable[[str], None]) -> None:
        """Get the next epoch, however long the front door is away; `waiting` is told why it takes long.  Cancelling is safe.

        :raises FuncmqError: the front door refuses, and will go on refusing.
        """
        wait = FIRST_WAIT_S
        while True:
            try:
                self._held = await self._ask(None)
            except (Unreachable, Busy) as away:
                log.warning("no lease yet: %s", away.message, extra={"action": "lease_waits"})
                waiting(away.message)
                await asyncio.sleep(wait)
                wait = min(wait * 2, LONGEST_WAIT_S)
            else:
                log.info("lease %d is held", self._held.epoch, extra={"action": "lease"})
                return

    async def broker(self) -> Broker:
        """For the link, before every connect: the first time by the lease just obtained, then by a renewal of it.

        :raises Fenced: somebody has a later one.
        """
        assert self._held is not None, "obtained before there is a link"
        if self._used:
            await self._renew(self._held)
            await self._cancelled(self.cancels)
        self._used = True
        return Broker(tuple(self._held.brokers), self._held.user, self._held.password)

    async def watch_trusted(self) -> None:
        """Tell the front door when the trusted keys have changed, so that it refuses, and takes, the right work.  Ends by being cancelled.

        :raises Fenced: somebody has a later lease.
        """
        wait = TRUSTED_S
        while True:
            await asyncio.sleep(wait)
            wait = TRUSTED_S
            if self._held is not None and self._trusted.ids() != self._told:
                try:
                    await self._renew(self._held)
                except FuncmqError as later:
                    log.warning("the front door was not told who is trusted now: %s", later.message, extra={"action": "trusted_waits"})
                    wait = LONGEST_WAIT_S

    async def _renew(self, held: api.Lease) -> None:
        try:
            renewed = await self._ask(held.epoch)
        except Conflict as later:
            raise Fenced from later
        # a renewal leaves the password as it is, and does not tell it
        self._held = msgspec.structs.replace(renewed, password=renewed.password or held.password)

    async def give_back(self) -> None:
        """Let any journal have the endpoint.  If the front door is away, this journal keeps it."""
        with contextlib.suppress(FuncmqError):
            await self._front.tell("DELETE", self._path)

    async def _ask(self, epoch: int | None) -> api.Lease:
        trusted = self._trusted.ids()
        request = api.LeaseRequest(
            journal=self._journal.id,
            birth=self._journal.birth,
            epoch=epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            release=funcmq.__version__,
            trusted=trusted,
            takeover=self._takeover and epoch is None,
        )
        lease = await self._front.call("POST", self._path, request, api.Lease)
        self._told = trusted
        return lease
