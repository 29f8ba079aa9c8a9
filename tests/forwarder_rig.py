"""A front door for tests, with a small endpoint and client made from the shared contract."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from funcmq.broker import api, codec, messages, signing, topology
from funcmq.broker.connection import Broker
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import (
    FuncmqError,
)
from funcmq.broker.http import Api
from funcmq.broker.ids import group_id, new_hex, new_id, sha256
from funcmq.broker.link import Link
from funcmq.broker.messages import (
    Dispatch,
    FunctionRecord,
    FunctionRef,
    Inline,
    Options,
    Outcome,
    Results,
    Task,
    Work,
)
from funcmq.broker.signing import PrivateKey
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import Running as Serving
from funcmq.forwarder.settings import ServeSettings, load

HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder}/funcmq.db"


def settings_for(node: Node, database: str) -> ServeSettings:
    """Settings of a front door with this database URL."""
    environ = {
        "FUNCMQ_BROKER_URL": node.url,
        "FUNCMQ_MANAGEMENT_URL": node.management_url,
        "FUNCMQ_DATABASE_URL": database,
        "FUNCMQ_BROKER_AUTH_PORT": str(node.auth_port),
        "FUNCMQ_PORT": "0",
    }
    return load({}, environ)


@dataclass
class User:
    """A user with a key, logged in."""

    id: str
    name: str
    api: Api
    key: PrivateKey = field(default_factory=PrivateKey.generate)

    async def register(self, name: str = "f") -> FunctionRef:
        record = codec.encode(FunctionRecord(1, "pickle", name, "3.11", b"code of " + name.encode(), None))
        answer = await self.api.send_raw("/functions", record, api.FunctionAnswer)
        return FunctionRef(answer.id, name)

    def work(self, endpoint: str, function: FunctionRef, tasks: list[Task], **changes: Any) -> Work:
        fields: dict[str, Any] = {
            "v": 1,
            "user": self.id,
            "key": self.key.public.id,
            "run_as": "",
            "endpoint": endpoint,
            "group": group_id(self.id, "g"),
            "signed_at": now_ms(),
            "functions": [function],
            "options": [Options(not_after=now_ms() + HOUR_MS)],
            "tasks": tasks,
        }
        return Work(**(fields | changes))

    def sign(self, work: Work) -> bytes:
        return self.key.sign(signing.BUNDLE, codec.encode(work))

    async def post(self, bundle: bytes) -> api.SubmitAnswer:
        return await self.api.send_raw("/tasks", bundle, api.SubmitAnswer)

    async def query(self, *ids: bytes) -> api.QueryAnswer:
        body = api.TasksRequest(tasks=[task.hex() for task in ids])
        return await self.api.call("POST", "/tasks/query", body, api.QueryAnswer)

    async def view(self, task: bytes) -> api.TaskView:
        return await self.api.call("GET", f"/tasks/{task.hex()}", None, api.TaskView)


def call_task(number: int = 1, **changes: Any) -> Task:
    return Task(**({"id": new_id(), "function": 0, "options": 0, "args": Inline("msgpack", bytes([number]))} | changes))


def outcome_of(task: bytes, number: int = 1, **changes: Any) -> Outcome:
    now = now_ms()
    fields: dict[str, Any] = {
        "id": task,
        "state": "succeeded",
        "value": Inline("msgpack", bytes([number])),
        "failure": None,
        "attempt": 1,
        "received": now,
        "started": now,
        "ended": now,
        "host": "here",
    }
    return Outcome(**(fields | changes))


class Endpoint:
    """A daemon in short: a lease, a link, and what arrived."""

    def __init__(self, answer: api.EndpointAnswer, key: PrivateKey, door: Api) -> None:
        self.id, self.name, self.key, self.api = answer.id, answer.name, key, door
        self.journal = new_hex()
        self.lease: api.Lease | None = None
        self.trusted: list[str] = []
        self.link: Link | None = None
        self.work: asyncio.Queue[Delivery] = asyncio.Queue()
        self.orders: asyncio.Queue[Any] = asyncio.Queue()

    async def take_lease(self, **changes: Any) -> api.Lease:
        fields: dict[str, Any] = {
            "journal": self.journal,
            "birth": 1,
            "epoch": None,
            "host": "here",
            "pid": 1,
            "release": "0",
            "trusted": self.trusted,
        }
        request = api.LeaseRequest(**(fields | changes))
        return await self.api.call("POST", f"/endpoints/{self.id}/lease", request, api.Lease)

    @contextlib.asynccontextmanager
    async def connected(self, *, take: bool = True) -> AsyncIterator[Link]:
        self.lease = await self.take_lease()
        async with Link(f"endpoint {self.name}", self._credentials) as link:
            if take:
                link.consume(topology.tasks_queue(self.id), self._take)
            consumer = link.consume(topology.control_queue(self.id), self._order)
            await consumer.ready.wait()
            self.link = link
            yield link

    async def _credentials(self) -> Broker:
        assert self.lease is not None
        return Broker(tuple(self.lease.brokers), self.lease.user, self.lease.password)

    async def _take(self, delivery: Delivery) -> None:
        self.work.put_nowait(delivery)

    async def _order(self, delivery: Delivery) -> None:
        self.orders.put_nowait(messages.unpack(delivery.kind, delivery.body))
        await delivery.ack()

    async def next_dispatch(self) -> Dispatch:
        delivery = await self.work.get()
        await delivery.ack()
        return codec.decode(Dispatch, delivery.body)

    def results(self, user: str, group: str, outcomes: list[Outcome], **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "v": 1,
            "endpoint": self.id,
            "key": self.key.public.id,
            "journal": self.journal,
            "user": user,
            "group": group,
            "signed_at": now_ms(),
            "results": outcomes,
        }
        return self.key.sign(signing.RESULTS, codec.encode(Results(**(fields | changes))))

    async def report(self, kind: str, body: bytes, group: str) -> None:
        assert self.link is not None
        await self.link.publish(topology.RESULTS, topology.results_key(self.id, group), kind, body)

    async def finish(self, work: Work, outcomes: list[Outcome]) -> bytes:
        """Report results and wait until they are stored; their exact bytes."""
        data = self.results(work.user, work.group, outcomes)
        await self.report("results/1", data, work.group)
        stored = await self.orders.get()
        assert stored.bundles == [(bundle_id(data), "")]
        return data


def bundle_id(data: bytes) -> str:
    return sha256(codec.decode(messages.Signed, data).body)


class Fabric:
    """A front door, its administrator, and makers of users and endpoints."""

    def __init__(self, running: Serving, node: Node, stack: contextlib.AsyncExitStack) -> None:
        self.running, self.node, self._stack = running, node, stack
        self.admin: User

    async def api(self, token: str = "") -> Api:
        return await self._stack.enter_async_context(Api(self.running.url, token))

    async def login(self, code: str, key: PrivateKey | None = None) -> User:
        key = key or PrivateKey.generate()
        request = api.LoginRequest(code=code, key=key.public.text, comment="test")
        answer = await (await self.api()).call("POST", "/login", request, api.TokenAnswer)
        return User(answer.user, answer.user_name, await self.api(answer.token), key)

    async def user(self, name: str) -> User:
        answer = await self.admin.api.call("POST", "/users", api.UserRequest(name=name), api.UserAnswer)
        assert answer.code is not None
        return await self.login(answer.code)

    async def endpoint(self, owner: User, name: str = "") -> Endpoint:
        key = PrivateKey.generate()
        request = api.EndpointRequest(name=name or new_hex()[-8:] + "-lab", key=key.public.text)
        answer = await owner.api.call("POST", "/endpoints", request, api.EndpointAnswer)
        endpoint = Endpoint(answer, key, await self.api(answer.token))
        endpoint.trusted = [owner.key.public.id]
        return endpoint


@contextlib.asynccontextmanager
async def listening(user: User, group: str) -> AsyncIterator[asyncio.Queue[tuple[str | None, bytes]]]:
    """A session on one group, and what its stream brings."""
    session = await user.api.call("POST", "/sessions", api.SessionRequest(groups=[group]), api.SessionAnswer)
    stream = session.streams[0]
    arrived: asyncio.Queue[tuple[str | None, bytes]] = asyncio.Queue()

    async def take(delivery: Delivery) -> None:
        arrived.put_nowait((delivery.kind, delivery.body))
        await delivery.ack()

    async def credentials() -> Broker:
        return Broker(tuple(stream.urls), stream.user, stream.password)

    async with Link("client", credentials) as link:
        await link.consume(stream.queue, take).ready.wait()
        yield arrived


async def as_broker(node: Node) -> Broker:
    return node.broker


async def publish_to_queue(link: Link, queue: str, kind: str, body: bytes) -> None:
    await link.ready()
    channel = await link.open_channel()
    await channel.default_exchange.publish(aio_pika.Message(body, type=kind), queue)


async def eventually(user: User, task: bytes, state: str) -> None:
    """Return when the store says so; the test's own time-out ends it otherwise."""
    while (await user.query(task)).tasks[0].state != state:
        await asyncio.sleep(0.01)


async def settled(fabric: Fabric) -> None:
    """Return when rows that may be written later are written: they go with the next transaction."""

    async def nothing(_: object) -> None:
        return

    await fabric.running.door.database.write(nothing)


async def refuses(user: User, bundle: bytes, error: type[FuncmqError]) -> None:
    with pytest.raises(error) as refused:
        await user.post(bundle)
    assert type(refused.value) is error, refused.value
