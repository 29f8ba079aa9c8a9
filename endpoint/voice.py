"""What the daemon says that may be lost: receipts, and which tasks run.  (Results may not: they go through the outbox.)"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from funcmq.broker import codec
from funcmq.broker.errors import Busy, NotFound, Unreachable
from funcmq.broker.link import Link
from funcmq.broker.messages import Receipt
from funcmq.broker.topology import RESULTS, results_key
from funcmq.endpoint.clock import now_ms

RECEIPT_S = 0.05
"""Results that come sooner make a receipt needless."""
MOST = 1000
"""Messages that wait to be said; more are dropped."""


class Voice:
    """One message after another, in order.

    :param is_open: whether a bundle has tasks that have not ended.
    """

    def __init__(self, link: Link, endpoint: str, journal: str, is_open: Callable[[str], bool]) -> None:
        self._link, self._endpoint, self._journal, self._is_open = link, endpoint, journal, is_open
        self._waiting: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue(MOST)
        self._receipts: dict[str, dict[str, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, kind: str, key: str, body: bytes) -> None:
        """Say this when it is its turn."""
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait((kind, key, body))

    def receive(self, group: str, bundle: str, *, always: bool) -> None:
        """This bundle is in the journal: say so in a moment, unless (and not `always`) all of it has ended by then, because then its
        results say it.
        """
        self._receipts.setdefault(group, {})[bundle] = always
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RECEIPT_S, self._send_receipts)

    async def run(self) -> None:
        """Speak; ends only by being cancelled."""
        while True:
            kind, key, body = await self._waiting.get()
            with contextlib.suppress(Unreachable, Busy, NotFound):
                await self._link.publish(RESULTS, key, kind, body)

    def _send_receipts(self) -> None:
        self._timer = None
        receipts, self._receipts = self._receipts, {}
        for group, bundles in receipts.items():
            if told := [bundle for bundle, always in bundles.items() if always or self._is_open(bundle)]:
                receipt = Receipt(Receipt.VERSION, self._endpoint, self._journal, told, now_ms())
                self.tell("receipt/1", results_key(self._endpoint, group), codec.encode(receipt))
