"""One `funcmq serve`: its parts, started and ended in order.

Started: database, the private listener that RabbitMQ asks (before anybody can log in there), broker link, result forwarder, front door.
Ended the other way round: the front door first, so that whoever has been answered can rely on it; the database last, when all that was
handed in is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from funcmq.broker.connection import Broker
from funcmq.broker.errors import ConfigurationError, Conflict
from funcmq.broker.link import Link
from funcmq.broker.signing import PrivateKey
from funcmq.forwarder import (
    broker_auth,
    routes_dead,
    routes_endpoints,
    routes_functions,
    routes_orders,
    routes_people,
    routes_root,
    routes_sessions,
    routes_tasks,
)
from funcmq.forwarder.broker_auth import BrokerAuth
from funcmq.forwarder.collector import Collector
from funcmq.forwarder.database import Database, opened
from funcmq.forwarder.dead import DeadLetters
from funcmq.forwarder.door import Door
from funcmq.forwarder.heartbeats import Heartbeats
from funcmq.forwarder.management import Management
from funcmq.forwarder.metrics import Metrics, Parts
from funcmq.forwarder.own_key import open_key
from funcmq.forwarder.queues import Queues
from funcmq.forwarder.reconciler import Reconciler
from funcmq.forwarder.replica import Replica
from funcmq.forwarder.resend import Resender
from funcmq.forwarder.retention import Retention
from funcmq.forwarder.routes_amqp import Tunnels
from funcmq.forwarder.sender import Sender
from funcmq.forwarder.settings import ServeSettings
from funcmq.forwarder.tally import Submitted
from funcmq.forwarder.web import build

log = logging.getLogger("funcmq.serve")

GRACE_S = 5.0
"""How long requests that are being answered may take at the end."""

RECONCILER, RETENTION = "reconciler", "retention"
"""The jobs that one serve of all does: to send again and give up, and to forget."""

Work = Callable[[], Coroutine[None, None, None]]

TABLES = [
    routes_people.routes,
    routes_endpoints.routes,
    routes_orders.routes,
    routes_functions.routes,
    routes_tasks.routes,
    routes_sessions.routes,
    routes_dead.routes,
]


@dataclass(frozen=True, slots=True)
class Running:
    """A front door that answers.  `code` is the administrator's one-time code on a new database."""

    url: str
    auth_port: int
    code: str | None
    door: Door


@contextlib.asynccontextmanager
async def serving(settings: ServeSettings) -> AsyncIterator[Running]:
    """A front door for as long as the context lasts; it answers `/health` at once and `/ready` when the broker is there too.

    :raises AlreadyRunning: another process serves from this SQLite file.
    :raises ConfigurationError: an address cannot be listened on.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(opened(settings.database))
        shared, http = not database.exclusive, "http" in settings.only
        auth, auth_port = broker_auth.build(BrokerAuth(database, settings.vhost)), 0
        if http:
            private = _listening(auth, settings.broker_auth_host, settings.broker_auth_port, shared=shared)
            auth_port = await stack.enter_async_context(private)
        management = Management(settings.management_url, settings.management_user, settings.management_password)
        await stack.enter_async_context(management)
        key = await asyncio.to_thread(open_key, settings.key_file)

        async def on_up(link: Link) -> None:
            await replica.on_up(link)

        link = Link("funcmq serve", _credentials(settings.broker), on_up=on_up)
        replica = Replica(database, link, (RECONCILER, RETENTION), results="results" in settings.only)
        door, work = _assemble(settings, database, link, management, key, replica)
        await stack.enter_async_context(link)
        code = await _first_code(door) if http else None
        stack.push_async_callback(replica.leave)
        await stack.enter_async_context(_together(work))
        if settings.metrics_port:
            numbers = routes_root.numbers_only(door)
            await stack.enter_async_context(_listening(numbers, settings.metrics_host, settings.metrics_port))
        if not http:
            yield Running("", 0, None, door)
            return
        port = await stack.enter_async_context(_listening(_public(door), settings.host, settings.port, shared=shared))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield Running(f"http://{host}:{port}", auth_port, code, door)


def _assemble(
    settings: ServeSettings, database: Database, link: Link, management: Management, key: PrivateKey | None, replica: Replica
) -> tuple[Door, list[Work]]:
    live, sender = replica.live, Sender(link, database.write)
    collector, heartbeats = Collector(database, link, sender, live, replica.runs), Heartbeats(database, live)
    reconciler = Reconciler(database, sender, link, mine=partial(replica.claims.holds, RECONCILER))
    submitted = Submitted()
    door = Door(
        settings=settings,
        database=database,
        link=link,
        management=management,
        sender=sender,
        live=live,
        watch=replica.watch,
        unwatch=replica.unwatch,
        send_soon=replica.send_soon(reconciler.look),
        submitted=submitted,
        key=key,
        metrics=Metrics(Parts(database, link, live, sender, collector, submitted, settings.release)),
    )

    resender = Resender(sender, Queues(link), live, collector.watched)
    retention = Retention(database, settings.results_days, mine=partial(replica.claims.holds, RETENTION))
    dead = DeadLetters(database, door.send_soon)

    async def listen() -> None:
        dead.start(link)
        await heartbeats.start(link)

    join = replica.join(door.known, collector, reconciler.look)
    return door, [*join, *([listen, collector.run, reconciler.run, resender.run, retention.run] if replica.results else []), link.ended]


async def _first_code(door: Door) -> str | None:
    """The first administrator's one-time code; None where there are users, or another front door was first."""
    try:
        return await routes_people.first_administrator(door)
    except Conflict:
        return None


def _credentials(broker: Broker) -> Callable[[], Coroutine[None, None, Broker]]:
    async def credentials() -> Broker:
        return broker

    return credentials


@contextlib.asynccontextmanager
async def _together(work: list[Work]) -> AsyncIterator[None]:
    """All of it at once; the first that fails ends the rest and the caller."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(), name=run.__qualname__) for run in work]
        yield
        for task in tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def _listening(app: web.Application, host: str, port: int, *, shared: bool = False) -> AsyncIterator[int]:
    """Serve an application; the port it has.  With `shared` others of this user may listen on it too, and the kernel deals out callers."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_S, handle_signals=False)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, reuse_port=(shared and sys.platform == "linux") or None).start()
        except OSError as taken:
            raise ConfigurationError(f"Cannot listen on {host}:{port}: {taken.strerror}.", hint="Choose another address or port.") from None
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _public(door: Door) -> web.Application:
    app = build(door, door, TABLES, door.metrics)
    routes_root.add(app, door, TABLES)
    Tunnels(door).add_to(app)
    return app
