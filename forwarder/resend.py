"""Results that an endpoint holds, and that do not come: it is asked to send them again (design §3.8).

The evidence: for a minute its result queue was empty at every look and nothing came through it, while its heartbeats said that some of its
results are not stored.  Each time that this is asked for again the wait doubles, up to ten minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from funcmq.broker import topology
from funcmq.broker.errors import FuncmqError
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.live import ONLINE_MS, Live
from funcmq.forwarder.queues import Queues
from funcmq.forwarder.sender import Sender

log = logging.getLogger("funcmq.resend")

QUIET_MS = 60_000
LONGEST_MS = 600_000
LOOK_EVERY_S = 10.0


@dataclass(slots=True)
class _Quiet:
    since: int
    asked: int = 0


class Stragglers:
    """Since when nothing came from endpoints that hold results.  A core without I/O; times in ms.

    :param quiet: how long that must last.
    """

    def __init__(self, quiet: int = QUIET_MS) -> None:
        self._span = quiet
        self._quiet: dict[str, _Quiet] = {}

    def look(self, endpoint: str, arrived: int, now: int, *, holds: bool, empty: bool) -> bool:
        """Whether to ask this endpoint now.

        :param arrived: when its last results came, 0 if none did.
        :param holds: whether it says that it has results which are not stored.
        :param empty: whether its result queue is.
        """
        known = self._quiet.get(endpoint)
        if not holds or not empty or (known and arrived >= known.since):
            self._quiet.pop(endpoint, None)
            return False
        if known is None:
            self._quiet[endpoint] = _Quiet(now)
            return False
        if now - known.since < min(LONGEST_MS, self._span * 2**known.asked):
            return False
        known.since, known.asked = now, known.asked + 1
        return True


class Resender:
    """The shell around `Stragglers`.

    :param mine: the endpoints whose results this front door takes in: nobody else knows what came.
    """

    def __init__(
        self, sender: Sender, queues: Queues, live: Live, mine: Callable[[], Iterable[str]], stragglers: Stragglers | None = None
    ) -> None:
        self._sender, self._queues, self._live, self._mine = sender, queues, live, mine
        self._stragglers = stragglers or Stragglers()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                for endpoint in list(self._mine()):
                    await self.look(endpoint, now_ms())
            except FuncmqError as away:
                log.debug("no look at result queues: %s", away.message)

    async def look(self, endpoint: str, now: int) -> None:
        """Look at one endpoint, and ask it if need be.

        :raises Unreachable: the broker does not answer.
        """
        sign = self._live.sign(endpoint)
        holds = sign is not None and now - sign.seen <= ONLINE_MS and sign.heartbeat.unstored > 0
        empty = holds and not await self._queues.ready(topology.results_queue(endpoint))
        if self._stragglers.look(endpoint, self._live.reported_at(endpoint), now, holds=holds, empty=empty):
            log.warning("endpoint %s holds results that do not come: it is asked for them", endpoint, extra={"action": "resend"})
            await self._sender.resend(endpoint)
