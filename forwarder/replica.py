"""One `funcmq serve` among several: what it has claimed, and what it tells the others.

On SQLite there are no others: everything is held, nobody is told, and no queue is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from funcmq.broker import topology
from funcmq.broker.errors import FuncmqError
from funcmq.broker.link import Link
from funcmq.broker.signing import PublicKey
from funcmq.forwarder.claims import Claims, Held
from funcmq.forwarder.collector import Collector
from funcmq.forwarder.database import Database
from funcmq.forwarder.door import Known
from funcmq.forwarder.live import Live
from funcmq.forwarder.notices import BUNDLES, CLAIMS, RIGHTS, Notices

log = logging.getLogger("funcmq.replica")

Work = Callable[[], Coroutine[None, None, None]]


class Replica:
    """See the module.

    :param jobs: what only one of all serves does; `results`: whether this one takes its share of them, and of the endpoints' results.
    """

    def __init__(self, database: Database, link: Link, jobs: tuple[str, ...], *, results: bool) -> None:
        self._several, self.results, self._link = not database.exclusive, results, link
        self.live = Live()
        self.claims = Claims(database, jobs if results else (), results=results, took=self._took)
        self.notices = Notices(link, self.claims.id, self.live)
        self._collector: Collector | None = None
        self._joined = False
        self._made: set[str] = set()
        self._fresh: asyncio.Queue[str] = asyncio.Queue()

    def runs(self, said: bytes) -> None:
        """An endpoint said to this serve what runs."""
        if self._several and not self.claims.alone:
            self.notices.forward(said)

    def watch(self, endpoint: str, _key: PublicKey) -> None:
        """There is a new endpoint, whose queues were just made: some serve takes in its results."""
        self._made.add(endpoint)
        self.claims.look()
        self._tell(CLAIMS)

    async def unwatch(self, endpoint: str) -> None:
        """An endpoint is deleted: nobody does any more."""
        if self._collector is not None:
            await self._collector.unwatch(endpoint)
        self._tell(CLAIMS)

    def send_soon(self, look: Callable[[], None]) -> Callable[[], None]:
        """What wakes the reconciler, whichever serve runs it."""

        def wake() -> None:
            look()
            self._tell(BUNDLES)

        return wake

    def join(self, known: Known, collector: Collector, look: Callable[[], None]) -> list[Work]:
        """The work of this serve as one of several: hear the others, and keep its claims."""
        self._collector = collector
        known.tellers.append(lambda: self._tell(RIGHTS))
        self.notices.hear({RIGHTS: known.look_again, CLAIMS: self.claims.look, BUNDLES: look})
        return [*([self.notices.run] if self._several else []), *([self.claims.run, self._declare_fresh] if self.results else [])]

    async def on_up(self, link: Link) -> None:
        """The broker is there, or there again."""
        await link.declare(topology.fixed())
        if self._several:
            await link.declare(topology.serve(self.claims.id))
            self.notices.missed()

    async def leave(self) -> None:
        """An orderly end: the others take over at once."""
        if not self._several:
            return
        if self.results:
            await self.claims.release()
            self._tell(CLAIMS)
        await self.notices.close()

    def _tell(self, word: str) -> None:
        if self._several:
            self.notices.tell(word)

    async def _took(self, held: Held) -> None:
        assert self._collector is not None, "after join"
        for endpoint in await self._collector.keep_to(held.keys):
            if endpoint not in self._made:
                self._fresh.put_nowait(endpoint)
        self._made.difference_update(held.keys)
        if held.freed or not self._joined:
            self._joined = True
            self._tell(CLAIMS)

    async def _declare_fresh(self) -> None:
        """The queues of endpoints that are new here, in case the broker's data was lost."""
        while True:
            endpoint = await self._fresh.get()
            await self._link.ready()
            try:
                await self._link.declare(topology.endpoint(endpoint))
            except FuncmqError as failed:
                log.warning("the queues of endpoint %s are looked at later: %s", endpoint, failed.message)
