"""A daemon among real parts: RabbitMQ, Parsl, real workers, and a front door that answers what a daemon asks and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cloudpickle
from aiohttp import web

from funcmq.broker import api, codec, messages, topology, values
from funcmq.broker.connection import Broker
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Conflict, FuncmqError, NotFound
from funcmq.broker.ids import new_hex, new_id, sha256
from funcmq.broker.link import Link
from funcmq.broker.messages import Dispatch, FunctionRecord, FunctionRef, Options, Outcome, Refused, Results, Signed, Task, Work
from funcmq.broker.signing import BUNDLE, REFUSED, RESULTS, PrivateKey
from funcmq.endpoint import leftovers
from funcmq.endpoint.config import EndpointConfig, PoolConfig, template
from funcmq.endpoint.journal import open_journal
from tests.proxy import Proxy, proxy

WORKERS = 2


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class FrontDoor:
    """Leases and function records; `epoch` may be raised from outside, as another daemon would."""

    broker: Broker
    epoch: int = 0
    leases: list[api.LeaseRequest] = field(default_factory=list)
    given_back: int = 0
    functions: dict[str, bytes] = field(default_factory=dict)
    cancels: list[str] = field(default_factory=list)
    url: str = ""

    async def lease(self, request: web.Request) -> web.Response:
        asked = codec.decode(api.LeaseRequest, await request.read())
        self.leases.append(asked)
        if asked.epoch is None:
            self.epoch += 1
        elif asked.epoch != self.epoch:
            return self.error(Conflict("A later lease exists."))
        lease = api.Lease(
            epoch=self.epoch, brokers=list(self.broker.urls), user=self.broker.user, password=self.broker.password, cancels=self.cancels
        )
        return web.Response(body=codec.encode(lease), content_type=api.MSGPACK)

    async def give_back(self, request: web.Request) -> web.Response:
        self.given_back += 1
        return web.Response(status=204)

    async def function(self, request: web.Request) -> web.Response:
        record = self.functions.get(request.match_info["id"])
        return self.error(NotFound("There is no such function.")) if record is None else web.Response(body=record, content_type=api.RAW)

    def error(self, error: FuncmqError) -> web.Response:
        return web.Response(status=error.http, body=codec.encode(api.ErrorAnswer(error=api.ErrorBody.of(error))), content_type=api.MSGPACK)

    def register(self, function: Callable[..., Any]) -> FunctionRef:
        module = sys.modules[function.__module__]
        cloudpickle.register_pickle_by_value(module)  # workers do not have the tests
        code = cloudpickle.dumps(function)
        cloudpickle.unregister_pickle_by_value(module)
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        record = codec.encode(FunctionRecord(1, "pickle", function.__name__, minor, code, None))
        self.functions[sha256(record)] = record
        return FunctionRef(sha256(record), function.__name__)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[FrontDoor]:
        app = web.Application()
        app.router.add_post("/v1/endpoints/{id}/lease", self.lease)
        app.router.add_delete("/v1/endpoints/{id}/lease", self.give_back)
        app.router.add_get("/v1/functions/{id}", self.function)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


@dataclass
class Rig:
    """An endpoint's files, its queues, its user, and everything that it has said."""

    door: FrontDoor
    link: Link
    wires: Proxy
    folder: Path
    endpoint: str = field(default_factory=new_hex)
    user: str = field(default_factory=new_hex)
    group: str = field(default_factory=new_hex)
    key: PrivateKey = field(default_factory=PrivateKey.generate)
    endpoint_key: PrivateKey = field(default_factory=PrivateKey.generate)
    outcomes: dict[bytes, Outcome] = field(default_factory=dict)
    copies: dict[bytes, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    receipts: list[messages.Receipt] = field(default_factory=list)
    running: list[bytes] = field(default_factory=list)
    heartbeats: list[messages.Heartbeat] = field(default_factory=list)
    bundles: list[str] = field(default_factory=list)
    storing: bool = True
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    # -- files ----------------------------------------------------------------------------------------------------------

    @property
    def config(self) -> EndpointConfig:
        home = self.folder / "endpoints" / "rig"
        pool = PoolConfig("local", workers_per_node=WORKERS, min_blocks=1)
        return EndpointConfig(
            name="rig",
            id=self.endpoint,
            url=self.door.url,
            folder=home,
            run_dir=home / "run",
            journal_dir=self.folder / "journal",
            stop_grace=5.0,
            pools=(pool,),
        )

    def write_files(self) -> None:
        config = self.config
        config.folder.mkdir(parents=True, mode=0o700)
        self.endpoint_key.save(config.key)
        config.token.write_text("token")
        config.token.chmod(0o600)
        config.trusted_keys.write_text(f"ed25519 {self.key.public.text} {self.user} rig\n")
        text = template("rig", self.endpoint, self.door.url, WORKERS, journal_dir=str(config.journal_dir))
        (config.folder / "endpoint.toml").write_text(text + 'stop_grace = "5s"\n' if "stop_grace" not in text else text)

    # -- work -----------------------------------------------------------------------------------------------------------

    def work(self, function: FunctionRef, calls: list[tuple[Any, ...]], **options: Any) -> Work:
        options.setdefault("not_after", now_ms() + 3_600_000)
        tasks = [Task(new_id(), 0, 0, values.pack((args, {}))) for args in calls]
        return Work(
            Work.VERSION, self.user, self.key.public.id, "", self.endpoint, self.group, now_ms(), [function], [Options(**options)], tasks
        )

    async def send(self, work: Work, *, key: PrivateKey | None = None, dispatch: int = 1, only: list[int] | None = None) -> str:
        body = codec.encode(work)
        await self.send_raw((key or self.key).sign(BUNDLE, body), dispatch, only)
        return sha256(body)

    async def send_raw(self, bundle: bytes, dispatch: int = 1, only: list[int] | None = None) -> None:
        await self.link.publish(topology.TASKS, self.endpoint, "bundle/1", codec.encode(Dispatch(dispatch, only, bundle)))

    async def control(self, kind: str, message: Any) -> None:
        await self.link.publish(topology.CONTROL, self.endpoint, kind, codec.encode(message))

    async def submit(self, function: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> list[bytes]:
        work = self.work(self.door.register(function), list(calls), **options)
        await self.send(work)
        return [task.id for task in work.tasks]

    def cut(self) -> None:
        """Reset every connection of the daemon to the broker."""
        self.wires.cut()

    # -- what comes back ------------------------------------------------------------------------------------------------

    async def on_result(self, delivery: Delivery) -> None:
        message = messages.unpack(delivery.kind, delivery.body)
        match message:
            case messages.Receipt():
                self.receipts.append(message)
            case messages.Running():
                self.running += message.tasks
            case Signed() if delivery.kind == "refused/1":
                self.endpoint_key.public.verify(REFUSED, message)
                self.refused.append(codec.decode(Refused, message.body))
            case Signed():
                await self.on_results(message)
        await delivery.ack()
        async with self.arrived:
            self.arrived.notify_all()

    async def on_results(self, signed: Signed) -> None:
        self.endpoint_key.public.verify(RESULTS, signed)
        results = codec.decode(Results, signed.body)
        assert (results.user, results.group) == (self.user, self.group)
        for outcome in results.results:
            assert self.outcomes.setdefault(outcome.id, outcome) == outcome, "a second, different end"
            self.copies[outcome.id] = self.copies.get(outcome.id, 0) + 1
        self.bundles.append(sha256(signed.body))
        if self.storing:
            await self.control("stored/1", messages.Stored(1, [(sha256(signed.body), "")]))

    async def on_status(self, delivery: Delivery) -> None:
        beat = messages.unpack(delivery.kind, delivery.body)
        if beat.endpoint == self.endpoint:
            self.heartbeats.append(beat)
        await delivery.ack()
        async with self.arrived:
            self.arrived.notify_all()

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds), self.arrived:
            await self.arrived.wait_for(lambda: bool(condition()))

    async def ends(self, ids: list[bytes], seconds: float = 30.0) -> list[Outcome]:
        await self.until(lambda: all(task in self.outcomes for task in ids), seconds)
        return [self.outcomes[task] for task in ids]

    async def values(self, ids: list[bytes], seconds: float = 30.0) -> list[Any]:
        found = []
        for outcome in await self.ends(ids, seconds):
            assert outcome.value is not None, outcome
            found.append(values.unpack(outcome.value))
        return found

    # -- the daemon as a process ----------------------------------------------------------------------------------------

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """The daemon, as `funcmq endpoint start` detaches it; returns when its lease is asked for."""
        leases = len(self.door.leases)
        environment = os.environ | {"FUNCMQ_HOME": str(self.folder)}
        with (self.folder / "daemon.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "funcmq.endpoint", "rig", *arguments, env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        while len(self.door.leases) == leases and process.returncode is None:
            await asyncio.sleep(0.02)
        return process

    @property
    def pid(self) -> int:
        """Of the daemon started last."""
        return self.processes[-1].pid

    async def end(self) -> None:
        """End what is left of the daemons."""
        for process in self.processes:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    def assert_clean(self) -> None:
        """No process of any daemon of this endpoint lives, and its journal is free."""
        journal = open_journal(self.config.journal_dir)
        mark = journal.identity.id
        journal.close()
        assert leftovers.find(mark) == []

    def forget(self) -> None:
        """What was heard so far."""
        for heard in (self.outcomes, self.copies, self.refused, self.receipts, self.running, self.heartbeats, self.bundles):
            heard.clear()
        self.storing = True


@contextlib.asynccontextmanager
async def rig(broker: Broker, folder: Path) -> AsyncIterator[Rig]:
    """A rig whose front door serves and whose queues exist; no daemon runs yet."""

    async def ask() -> Broker:
        return broker

    async with proxy(urlsplit(broker.urls[0]).port or 5672) as wires, Link("rig", ask) as link:
        wired = Broker((f"amqp://127.0.0.1:{wires.port}/",), broker.user, broker.password)
        async with FrontDoor(wired).serve() as door:
            await link.ready()
            async with served(Rig(door, link, wires, folder)) as it:
                yield it


@contextlib.asynccontextmanager
async def served(it: Rig) -> AsyncIterator[Rig]:
    """Its files and queues, and what it hears."""
    link = it.link
    it.write_files()
    queues = topology.endpoint(it.endpoint)
    status = f"rig.{it.endpoint}"
    await link.declare(topology.fixed())
    await link.declare(queues)
    heard = topology.Queue(status, {"x-queue-type": "classic", "x-expires": 600_000}, ((topology.STATUS, it.endpoint),))
    await link.declare(topology.Topology(queues=(heard,)))
    consumers = [link.consume(topology.results_queue(it.endpoint), it.on_result, prefetch=200), link.consume(status, it.on_status)]
    try:
        yield it
    finally:
        for consumer in consumers:
            await consumer.cancel()
        await link.delete(queues)
