"""The result forwarder: from the endpoints' result queues into the store, and back the word that it is there.

Order within a batch: one commit, then the acks, then `stored` to the endpoints, then copies to listeners that came lately.  A crash in
between repeats what follows the commit; every step may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import messages, topology
from funcmq.broker.consumer import Consumer, Delivery
from funcmq.broker.errors import FuncmqError
from funcmq.broker.link import Link
from funcmq.broker.messages import Receipt, Refused, Running
from funcmq.broker.signing import PublicKey
from funcmq.forwarder import results, sessions
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.live import Live
from funcmq.forwarder.reports import ResultBundle, Source, Unbelieved, read_refusal, read_results
from funcmq.forwarder.results import Kept
from funcmq.forwarder.sender import Sender

log = logging.getLogger("funcmq.collector")

PREFETCH = 64
MOST_MESSAGES = 128
FEW = 8
MOST_BYTES = 16 * 1024 * 1024
LINGER_S = 0.1
"""How long a lone result waits for company: those who wait for it have it from their stream already, and each commit, ack and `stored`
serves all that came meanwhile.
"""
RETRY_S = 1.0


@dataclass(slots=True)
class _Batch:
    """Messages of one round, sorted by what they are."""

    deliveries: list[Delivery] = field(default_factory=list)
    found: list[ResultBundle] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    unbelieved: list[tuple[str, Unbelieved]] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    refusals: list[tuple[Refused, bytes]] = field(default_factory=list)


class Collector:
    """See the module.  `watch` and `unwatch` may be called at any time on the loop that runs `run`."""

    def __init__(self, database: Database, link: Link, sender: Sender, live: Live, runs: Callable[[bytes], None] = lambda _: None) -> None:
        """:param runs: told the words of an endpoint that says what runs."""
        self._database, self._link, self._sender, self._live, self._runs = database, link, sender, live, runs
        self._arrived: asyncio.Queue[tuple[Source, Delivery]] = asyncio.Queue()
        self._consumers: dict[str, Consumer] = {}
        self.conflicts = 0
        """Results that came for tasks which had ended with another one."""
        self.replaced = 0
        """Results of tasks that the front door had ended itself."""
        self.stored = 0
        """Results that are in the store, those that were there before included."""

    def watch(self, endpoint: str, key: PublicKey) -> None:
        """Take in what this endpoint reports, from now on."""
        if endpoint in self._consumers:
            return
        source = Source(endpoint, key)

        async def arrived(delivery: Delivery) -> None:
            self._arrived.put_nowait((source, delivery))

        self._consumers[endpoint] = self._link.consume(topology.results_queue(endpoint), arrived, prefetch=PREFETCH)

    async def keep_to(self, keys: Mapping[str, PublicKey]) -> list[str]:
        """Take in what these endpoints report, and no others; those that are new."""
        fresh = [endpoint for endpoint in keys if endpoint not in self._consumers]
        for endpoint in fresh:
            self.watch(endpoint, keys[endpoint])
        for endpoint in [endpoint for endpoint in self._consumers if endpoint not in keys]:
            await self.unwatch(endpoint)
        return fresh

    async def unwatch(self, endpoint: str) -> None:
        """Somebody else does, or it is deleted and its queue goes."""
        consumer = self._consumers.pop(endpoint, None)
        if consumer is not None:
            await consumer.cancel()

    def watched(self) -> list[str]:
        """Endpoints whose reports are taken in here."""
        return list(self._consumers)

    async def run(self) -> None:
        """Until cancelled; what was not acked then is delivered again."""
        async with asyncio.TaskGroup() as group:
            while True:
                batch = await self._collect()
                kept, groups = await self._store(batch)
                group.create_task(self._tell(batch, kept, groups), name="tell")

    async def _collect(self) -> _Batch:
        """What has arrived, within bounds; waits for one message, and a moment for more."""
        batch, size = _Batch(), 0
        source, delivery = await self._arrived.get()
        if self._arrived.qsize() < FEW:
            await asyncio.sleep(LINGER_S)
        while True:
            self._sort(batch, source, delivery)
            size += len(delivery.body)
            if self._arrived.empty() or len(batch.deliveries) >= MOST_MESSAGES or size >= MOST_BYTES:
                return batch
            source, delivery = self._arrived.get_nowait()

    def _sort(self, batch: _Batch, source: Source, delivery: Delivery) -> None:
        batch.deliveries.append(delivery)
        try:
            message = messages.unpack(delivery.kind, delivery.body)
            if delivery.kind == "results/1":
                self._sort_results(batch, source, delivery)
            elif delivery.kind == "refused/1":
                batch.refusals.append((read_refusal(source, delivery.body), delivery.body))
            elif isinstance(message, Receipt) and message.endpoint == source.endpoint:
                batch.receipts.append(message)
            elif isinstance(message, Running) and message.endpoint == source.endpoint:
                self._live.started(message.tasks, message.at, now_ms(), message.host)
                self._runs(delivery.body)
            else:
                _warn(source, f"a {delivery.kind} has no place here")
        except FuncmqError as refused:
            _warn(source, refused.message)

    def _sort_results(self, batch: _Batch, source: Source, delivery: Delivery) -> None:
        self._live.reported(source.endpoint, now_ms())
        read = read_results(source, delivery.body)
        if isinstance(read, Unbelieved):
            _warn(source, read.reason)
            batch.unbelieved.append((source.endpoint, read))
            return
        batch.found.append(read)
        said = int(delivery.timestamp * 1000) or read.body.signed_at
        batch.stamps.append(said - self._live.clock_margin(source.endpoint))

    async def _store(self, batch: _Batch) -> tuple[list[Kept], list[str | None]]:
        async def write(connection: AsyncConnection) -> tuple[list[Kept], list[str | None]]:
            now = now_ms()
            await results.note_receipts(connection, batch.receipts, now)
            kept = await results.store(connection, batch.found, now) if batch.found else []
            return kept, [await results.refuse(connection, refusal, now) for refusal, _ in batch.refusals]

        if not (batch.found or batch.receipts or batch.refusals):
            return [], []
        while True:
            try:
                return await self._database.write(write)
            except FuncmqError as failed:
                log.warning("results wait for the database: %s", failed.message)
                await asyncio.sleep(RETRY_S)

    async def _tell(self, batch: _Batch, kept: list[Kept], groups: list[str | None]) -> None:
        for delivery in batch.deliveries:
            await delivery.ack()
        self._count(batch, kept)
        answers: dict[str, list[tuple[str, str]]] = {}
        for bundle, end in zip(batch.found, kept, strict=True):
            answers.setdefault(bundle.body.endpoint, []).append((bundle.id, end.reason))
        for endpoint, unbelieved in batch.unbelieved:
            answers.setdefault(endpoint, []).append((unbelieved.id, unbelieved.reason))
        await asyncio.gather(*(self._sender.stored(endpoint, said) for endpoint, said in answers.items()))
        stored = [bundle for bundle, end in zip(batch.found, kept, strict=True) if not end.reason]
        if stored:
            await self._copy_results(stored, min(batch.stamps))
        for (_, body), group in zip(batch.refusals, groups, strict=True):
            await self._copy_refusal(body, group)

    def _count(self, batch: _Batch, kept: list[Kept]) -> None:
        for bundle, end in zip(batch.found, kept, strict=True):
            self._live.ended([outcome.id for outcome in bundle.body.results])
            self.stored += 0 if end.reason else len(bundle.body.results)
            if end.reason:
                log.warning("results of endpoint %s are refused: %s", bundle.body.endpoint, end.reason, extra={"action": "results_refused"})
            if end.replaced:
                self.replaced += end.replaced
                said = "%d tasks of endpoint %s had been given up, and have a result after all"
                log.warning(said, end.replaced, bundle.body.endpoint, extra={"action": "replaced"})
            if end.conflicts:
                self.conflicts += end.conflicts
                log.warning(
                    "%d tasks of endpoint %s had another result before", end.conflicts, bundle.body.endpoint, extra={"action": "conflict"}
                )

    async def _copy_results(self, stored: Sequence[ResultBundle], earliest: int) -> None:
        """To everybody who may have begun to listen after these were published and read the store before they were in it."""
        async with self._database.read() as connection:
            late = await sessions.listening(connection, list({bundle.body.group for bundle in stored}), earliest)
        copies = [(session, bundle.data) for bundle in stored for session in late.get(bundle.body.group, ())]
        await asyncio.gather(*(self._sender.copy(session, "results/1", data) for session, data in copies))

    async def _copy_refusal(self, body: bytes, group: str | None) -> None:
        """Streams are not bound to refusals, so everybody who listens to the group gets a copy."""
        if group is None:
            log.warning("an endpoint refused a bundle that it was never sent, or has received", extra={"action": "stray_refusal"})
            return
        async with self._database.read() as connection:
            listeners = await sessions.listening(connection, [group], 0)
        await asyncio.gather(*(self._sender.copy(session, "refused/1", body) for session in listeners.get(group, ())))


def _warn(source: Source, reason: str) -> None:
    log.warning("a report of endpoint %s is not believed: %s", source.endpoint, reason, extra={"action": "report_refused"})
