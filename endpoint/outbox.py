"""Result bundles on their way to the store, until the front door says `stored`.

What the broker has not confirmed is published until it is.  What it has confirmed is sent again only on evidence: a later bundle is stored
and this one is not for a minute, or the front door asks.  Each repeat doubles the wait, up to ten minutes (design §3.8).  After a restart
everything that is not stored is sent once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from funcmq.broker.errors import Busy, NotFound, Unreachable

log = logging.getLogger("funcmq.outbox")

EVIDENCE_S = 60.0
LONGEST_S = 600.0
HELD_BYTES = 16 * 1024 * 1024
"""Bytes of unconfirmed bundles kept in memory; the rest is read from the journal again."""
SENDERS = 8
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0


@dataclass(slots=True)
class _Entry:
    order: int
    body: tuple[str, bytes] | None
    sending: bool = True
    confirmed: float = 0.0
    suspect: float = 0.0
    repeats: int = 0


class Outbox:
    """Which bundles are not stored, and which of them to send now.  Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._orders = 0
        self._held = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        """Bundles not stored."""
        return len(self._entries)

    def add(self, bundle: str, body: tuple[str, bytes] | None) -> None:
        """A new bundle, to be sent: its routing key and bytes, or None where only the journal has them."""
        if body is not None and self._held + len(body[1]) > HELD_BYTES:
            body = None
        self._held += len(body[1]) if body else 0
        self._entries[bundle] = _Entry(self._orders, body)
        self._empty.clear()
        self._orders += 1

    async def all_stored(self) -> None:
        """Wait until it is empty."""
        await self._empty.wait()

    def body(self, bundle: str) -> tuple[str, bytes] | None:
        """Key and bytes, if they are still in memory."""
        entry = self._entries.get(bundle)
        return entry.body if entry else None

    def wanted(self, bundle: str) -> bool:
        """Whether it is still to be sent."""
        entry = self._entries.get(bundle)
        return entry is not None and entry.sending

    def confirmed(self, bundle: str, now: float) -> None:
        """The broker has it."""
        if entry := self._entries.get(bundle):
            entry.sending, entry.confirmed = False, now
            self._forget_body(entry)

    def stored(self, bundle: str, now: float) -> bool:
        """The front door has it, or refused it for good; whether it was still here.  Older ones that it does not have become suspect."""
        entry = self._entries.pop(bundle, None)
        if entry is None:
            return False
        self._forget_body(entry)
        if not self._entries:
            self._empty.set()
        for other in self._entries.values():
            if other.order > entry.order:
                break
            if not other.suspect:
                other.suspect = now
        return True

    def overdue(self, now: float) -> list[str]:
        """Bundles whose sending has to be repeated now."""
        due = [name for name, entry in self._entries.items() if entry.suspect and not entry.sending and now >= entry.suspect + _wait(entry)]
        for name in due:
            entry = self._entries[name]
            entry.sending, entry.suspect, entry.repeats = True, now, entry.repeats + 1
        return due

    def asked(self, now: float) -> list[str]:
        """The front door saw nothing come for a minute: bundles whose sending has to be repeated now.  What was repeated before has its
        time first; the front door asks again.
        """
        ready = [(name, entry) for name, entry in self._entries.items() if not entry.sending]
        due = [name for name, entry in ready if not entry.repeats or now >= entry.confirmed + _wait(entry)]
        for name in due:
            entry = self._entries[name]
            entry.sending, entry.repeats = True, entry.repeats + 1
            entry.suspect = now if entry.suspect else 0.0
        return due

    @property
    def unconfirmed(self) -> int:
        """Bundles that the broker has not confirmed."""
        return sum(entry.sending for entry in self._entries.values())

    def _forget_body(self, entry: _Entry) -> None:
        if entry.body is not None:
            self._held -= len(entry.body[1])
            entry.body = None


def _wait(entry: _Entry) -> float:
    return min(LONGEST_S, EVIDENCE_S * float(2**entry.repeats))


class Sender:
    """Publishes what the outbox wants, a few at a time, until it is confirmed.

    :param fetch: key and bytes from the journal, None when it holds them no more.
    :param publish: raises Unreachable, Busy or NotFound where trying again may help.
    """

    def __init__(
        self,
        outbox: Outbox,
        fetch: Callable[[str], Awaitable[tuple[str, bytes] | None]],
        publish: Callable[[str, bytes], Awaitable[None]],
    ) -> None:
        self._outbox, self._fetch, self._publish = outbox, fetch, publish
        self._todo: asyncio.Queue[str] = asyncio.Queue()
        self._quiet = asyncio.Event()
        self._quiet.set()

    def send(self, bundles: Iterable[str]) -> None:
        """See to it that these reach the broker."""
        for bundle in bundles:
            self._quiet.clear()
            self._todo.put_nowait(bundle)

    async def run(self) -> None:
        """Send; ends only by being cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._work(), name=f"sender {number}")

    async def all_confirmed(self) -> None:
        """Wait until the broker has everything."""
        await self._quiet.wait()

    async def _work(self) -> None:
        while True:
            bundle = await self._todo.get()
            await self._deliver(bundle)
            if self._todo.empty() and not self._outbox.unconfirmed:
                self._quiet.set()

    async def _deliver(self, bundle: str) -> None:
        wait = FIRST_WAIT_S
        while self._outbox.wanted(bundle):
            message = self._outbox.body(bundle) or await self._fetch(bundle)
            if message is None:
                return
            try:
                await self._publish(*message)
            except (Unreachable, Busy, NotFound) as later:
                log.warning("a result bundle waits: %s", later.message, extra={"action": "results_wait"})
                await asyncio.sleep(wait)
                wait = min(LONGEST_WAIT_S, wait * 2)
            else:
                self._outbox.confirmed(bundle, time.monotonic())
