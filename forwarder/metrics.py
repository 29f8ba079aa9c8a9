"""What a front door counts, in the text format of Prometheus.

The parts count plain integers of their own; nothing here runs on their way but one observation per HTTP request.  What the store says
(sessions, waiting bundles, claims) is asked when somebody scrapes, and is the same at every front door: take its maximum, not its sum.
No label names a person, a task or an endpoint, so that the numbers may be read by whoever runs the machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector as Source
from sqlalchemy import ColumnElement, Table, TextClause, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.link import Link
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.collector import Collector
from funcmq.forwarder.database import Database
from funcmq.forwarder.live import Live
from funcmq.forwarder.sender import Sender
from funcmq.forwarder.tables import PENDING, bundles, claims, dead_letters, endpoints, sessions
from funcmq.forwarder.tally import Submitted

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LATENCIES_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0)
METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"})
TUNNEL = "/v1/amqp"
"""A request that lasts as long as its connection says nothing about latency."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Whose numbers are shown."""

    database: Database
    link: Link
    live: Live
    sender: Sender
    collector: Collector
    submitted: Submitted
    release: str


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the store was found to hold."""

    endpoints: int
    sessions: int
    waiting: int
    dead: int
    claims: dict[str, int]


class Metrics:
    """The numbers of one front door, in a registry of their own.  It is the `Watch` of the HTTP shell."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._registry = parts, CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._requests = Counter("funcmq_requests", "HTTP requests.", ["method", "route", "status"], registry=self._registry)
        self._latency = Histogram(
            "funcmq_request_seconds", "Time to answer.", ["method", "route"], buckets=LATENCIES_S, registry=self._registry
        )
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def __call__(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered.  `route` is one of the table's, so that labels stay few."""
        key = (method if method in METHODS else "other", route, status)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._requests.labels(*key), self._latency.labels(*key[:2])
        found[0].inc()
        if route != TUNNEL:
            found[1].observe(seconds)

    async def expose(self) -> bytes:
        """All numbers, as text.

        :raises FuncmqError: never; when the store does not answer, its numbers are left out and `funcmq_store_up` is 0.
        """
        stored = await self._look()
        return generate_latest(self._registry) + generate_latest(_registry(_Now(self._parts, stored)))

    async def _look(self) -> _Stored | None:
        try:
            async with self._parts.database.read() as connection:
                return await _count(connection)
        except Exception:  # noqa: BLE001  # whatever the database says: a scrape tells of the rest
            return None


def _registry(source: Source) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(source)
    return registry


async def _count(connection: AsyncConnection) -> _Stored:
    async def number(table: Table, *conditions: ColumnElement[bool] | TextClause) -> int:
        return int((await connection.execute(select(func.count()).select_from(table).where(*conditions))).scalar_one())

    held = select(claims.c.kind, func.count().label("rows")).where(claims.c.claimant != "").group_by(claims.c.kind)
    return _Stored(
        endpoints=await number(endpoints, endpoints.c.deleted == 0),
        sessions=await number(sessions),
        waiting=await number(bundles, PENDING),
        dead=await number(dead_letters),
        claims={row.kind: row.rows for row in await connection.execute(held)},
    )


class _Now(Source):
    """What the parts say now."""

    def __init__(self, parts: Parts, stored: _Stored | None) -> None:
        self._parts, self._stored = parts, stored

    def collect(self) -> Iterable[Metric]:
        """One family per number."""
        yield InfoMetricFamily("funcmq", "What this front door is.", {"release": self._parts.release})
        yield from self._counted()
        yield from self._live()
        yield _gauge("store_up", "Whether the database answered this scrape.", self._stored is not None)
        if self._stored is not None:
            yield from self._from_store(self._stored)

    def _counted(self) -> Iterator[Metric]:
        parts, verdicts = self._parts, self._parts.submitted
        tasks = CounterMetricFamily("funcmq_tasks_submitted", "Tasks by verdict.", labels=["verdict"])
        for verdict in ("accepted", "same", "refused"):
            tasks.add_metric([verdict], getattr(verdicts, verdict))
        yield tasks
        yield CounterMetricFamily("funcmq_results_stored", "Results of tasks stored here.", parts.collector.stored)
        yield CounterMetricFamily("funcmq_results_replaced", "Results of tasks that had been given up.", parts.collector.replaced)
        yield CounterMetricFamily(
            "funcmq_result_conflicts", "Results that came after another one of the same task.", parts.collector.conflicts
        )
        yield CounterMetricFamily("funcmq_bundles_sent", "Bundles that the broker confirmed.", parts.sender.sent)
        yield CounterMetricFamily("funcmq_bundles_sent_again", "Of these, those sent more than once.", parts.sender.sent_again)
        sizes = parts.database.write.sizes
        yield HistogramMetricFamily("funcmq_transaction_operations", "Requests that shared one transaction.", sizes.cumulative(), sizes.sum)

    def _live(self) -> Iterator[Metric]:
        link = self._parts.link
        yield _gauge("broker_link_up", "Whether the link to RabbitMQ is up.", link.up)
        yield _gauge("broker_link_blocked", "Whether RabbitMQ takes no messages now, short of memory or disk.", link.blocked)
        yield _gauge("endpoints_online", "Endpoints with a heartbeat in the last 30 s.", self._parts.live.online(now_ms()))
        yield _gauge("tasks_running", "Tasks of over a second that endpoints said to be running.", len(self._parts.live.running()))

    def _from_store(self, stored: _Stored) -> Iterator[Metric]:
        yield _gauge("endpoints_registered", "Endpoints in the store.", stored.endpoints)
        yield _gauge("sessions", "Result streams of clients.", stored.sessions)
        yield _gauge("bundles_waiting", "Bundles that no endpoint has received yet.", stored.waiting)
        yield _gauge("dead_letters", "What could not be delivered: `funcmq dead list`.", stored.dead)
        held = GaugeMetricFamily("funcmq_claims", "Work that some front door has claimed, by kind.", labels=["kind"])
        for kind, rows in sorted(stored.claims.items()):
            held.add_metric([kind], rows)
        yield held


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"funcmq_{name}", says, float(value))
