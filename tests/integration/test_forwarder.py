"""The front door with a real RabbitMQ, and a small endpoint and client made from the shared contract."""

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
import pytest_asyncio

from funcmq.broker import api, codec, messages, signing, topology
from funcmq.broker.connection import Broker, check
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import (
    AlreadyRunning,
    Busy,
    Conflict,
    FuncmqError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    NotLoggedIn,
    PayloadTooLarge,
    VersionMismatch,
)
from funcmq.broker.http import Api
from funcmq.broker.ids import group_id, new_hex, new_id, sha256
from funcmq.broker.link import Link
from funcmq.broker.messages import (
    Dispatch,
    FunctionRecord,
    FunctionRef,
    Heartbeat,
    Inline,
    Options,
    Outcome,
    Receipt,
    Refused,
    Results,
    Running,
    Task,
    Work,
)
from funcmq.broker.signing import PrivateKey
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import Running as Serving
from funcmq.forwarder.service import serving
from funcmq.forwarder.settings import ServeSettings, load

HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


def settings_for(node: Node, folder: Path) -> ServeSettings:
    environ = {
        "FUNCMQ_BROKER_URL": node.url,
        "FUNCMQ_MANAGEMENT_URL": node.management_url,
        "FUNCMQ_DATABASE_URL": f"sqlite:///{folder}/funcmq.db",
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


@pytest_asyncio.fixture
async def fabric(rabbitmq: Node, tmp_path: Path) -> AsyncIterator[Fabric]:
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(settings_for(rabbitmq, tmp_path)))
        await running.door.link.ready()
        made = Fabric(running, rabbitmq, stack)
        assert running.code is not None
        made.admin = await made.login(running.code)
        yield made


# ---- the way of a task


@pytest.mark.asyncio
async def test_a_submitted_bundle_lies_in_the_task_queue_as_it_was_signed(fabric: Fabric) -> None:
    """The bytes that the user signed are the bytes that the endpoint gets."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(n) for n in range(5)])
    bundle = user.sign(work)
    answer = await user.post(bundle)
    assert answer == api.SubmitAnswer(bundle=bundle_id(bundle), accepted=5)
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(1, None, bundle)


@pytest.mark.asyncio
async def test_a_result_is_stored_acknowledged_streamed_and_read(fabric: Fabric) -> None:
    """A result reaches the listener at once and the store for good, as the exact bytes that the endpoint signed."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)])
    async with endpoint.connected(), listening(user, work.group) as stream:
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        data = await endpoint.finish(work, [outcome_of(task.id) for task in work.tasks])
        assert await stream.get() == ("results/1", data)
        answer = await user.query(*(task.id for task in work.tasks))
    assert answer.bundles == [data]
    assert [task.state for task in answer.tasks] == ["succeeded", "succeeded"]
    view = await user.view(work.tasks[0].id)
    assert (view.state, view.host, view.attempt, view.function_name) == ("succeeded", "here", 1, "f")
    assert view.ended >= view.started > 0


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


@pytest.mark.asyncio
async def test_who_listens_late_sees_results_that_come_to_the_store_after(fabric: Fabric) -> None:
    """A result that was published before a stream was bound, and is stored after its listener was committed, is sent as a copy."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        data = endpoint.results(work.user, work.group, [outcome_of(work.tasks[0].id)])
        # the topic exchange is passed by: this is a result on whose way the stream was not bound yet
        async with Link("late", lambda: as_broker(fabric.node)) as link, listening(user, work.group) as stream:
            queue = topology.results_queue(endpoint.id)
            await publish_to_queue(link, queue, "results/1", data)
            assert await stream.get() == ("results/1", data)


async def as_broker(node: Node) -> Broker:
    return node.broker


async def publish_to_queue(link: Link, queue: str, kind: str, body: bytes) -> None:
    await link.ready()
    channel = await link.open_channel()
    await channel.default_exchange.publish(aio_pika.Message(body, type=kind), queue)


@pytest.mark.asyncio
async def test_receipts_and_running_move_a_task_along(fabric: Fabric) -> None:
    """A task is published, received, running, succeeded, in the words of the interface."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    task = work.tasks[0].id
    async with endpoint.connected():
        answer = await user.post(user.sign(work))
        await endpoint.next_dispatch()
        await endpoint.report("receipt/1", codec.encode(Receipt(1, endpoint.id, endpoint.journal, [answer.bundle], now_ms())), work.group)
        await eventually(user, task, "received")
        await endpoint.report("running/1", codec.encode(Running(1, endpoint.id, [task], now_ms())), work.group)
        await eventually(user, task, "running")
        await endpoint.finish(work, [outcome_of(task)])
        assert (await user.view(task)).state == "succeeded"
    counts = await user.api.call("GET", f"/groups/{work.group}", None, api.GroupAnswer)
    assert counts.counts == {"succeeded": 1}
    assert counts.tasks == [task.hex()]


async def eventually(user: User, task: bytes, state: str) -> None:
    """Return when the store says so; the test's own time-out ends it otherwise."""
    while (await user.query(task)).tasks[0].state != state:
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_the_same_bundle_again_changes_nothing(fabric: Fabric) -> None:
    """A repeated POST of a confirmed bundle gives the same answer and sends nothing."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    bundle = user.sign(user.work(endpoint.id, function, [call_task()]))
    first = await user.post(bundle)
    await settled(fabric)
    assert await user.post(bundle) == first
    marker = user.sign(user.work(endpoint.id, function, [call_task()]))
    await user.post(marker)
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).bundle == bundle
        assert (await endpoint.next_dispatch()).bundle == marker


async def settled(fabric: Fabric) -> None:
    """Return when rows that may be written later are written: they go with the next transaction."""

    async def nothing(_: object) -> None:
        return

    await fabric.running.door.database.write(nothing)


@pytest.mark.asyncio
async def test_ids_and_keys_known_before_are_the_same_task(fabric: Fabric) -> None:
    """A known task is `same`, other content under its id is refused, a known key stands for its first task; the rest goes on."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    first, keyed = call_task(1), call_task(2, key="k")
    before = user.work(endpoint.id, function, [first, keyed])
    await user.post(user.sign(before))
    other = Task(keyed.id, 0, 0, Inline("msgpack", b"\x09"))
    tasks = [first, other, call_task(3, key="k"), call_task(4)]
    answer = await user.post(user.sign(user.work(endpoint.id, function, tasks, options=before.options)))
    assert answer.accepted == 1
    group = before.group
    same = [(verdict.index, verdict.verdict, verdict.id, verdict.group, verdict.code) for verdict in answer.verdicts]
    assert same == [
        (0, "same", first.id.hex(), group, ""),
        (1, "refused", "", "", "Conflict"),
        (2, "same", keyed.id.hex(), group, ""),
    ]
    async with endpoint.connected():
        await endpoint.next_dispatch()
        assert (await endpoint.next_dispatch()).only == [3]


@pytest.mark.asyncio
async def test_the_first_result_wins(fabric: Fabric) -> None:
    """A second result for a task that has one changes nothing, is acknowledged and counted."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        first = await endpoint.finish(work, [outcome_of(work.tasks[0].id, 1)])
        await endpoint.finish(work, [outcome_of(work.tasks[0].id, 2)])
        await endpoint.report("results/1", first, work.group)
        assert (await endpoint.orders.get()).bundles == [(bundle_id(first), "")]
    assert (await user.query(work.tasks[0].id)).bundles == [first]


@pytest.mark.asyncio
async def test_a_refusal_fails_the_tasks_of_its_bundle_and_a_result_still_wins(fabric: Fabric) -> None:
    """A signed refusal ends what was open, with its code; a result that comes after all replaces that end."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    task = work.tasks[0].id
    async with endpoint.connected(), listening(user, work.group) as stream:
        answer = await user.post(user.sign(work))
        await endpoint.next_dispatch()
        refusal = Refused(1, endpoint.id, endpoint.key.public.id, now_ms(), answer.bundle, "NotAllowed", "No such key here.")
        data = endpoint.key.sign(signing.REFUSED, codec.encode(refusal))
        await endpoint.report("refused/1", data, "-")
        assert await stream.get() == ("refused/1", data)
        told = (await user.query(task)).tasks
        assert told == [api.TaskState(id=task.hex(), state="failed", failure=("NotAllowed", "No such key here."))]
        await endpoint.finish(work, [outcome_of(task)])
        assert (await user.view(task)).state == "succeeded"


@pytest.mark.asyncio
async def test_a_cancel_is_a_request_to_the_endpoint(fabric: Fabric) -> None:
    """Open tasks are asked for over AMQP and at the next lease, ended ones not."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)])
    done, open_ = work.tasks
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        await endpoint.finish(work, [outcome_of(done.id)])
        body = api.TasksRequest(tasks=[done.id.hex(), open_.id.hex(), new_hex()])
        assert (await user.api.call("POST", "/tasks/cancel", body, api.CancelAnswer)).asked == 1
        assert (await endpoint.orders.get()).tasks == [open_.id]
        assert (await endpoint.take_lease()).cancels == [open_.id.hex()]
        answer = await user.api.call("POST", f"/groups/{work.group}/cancel", None, api.CancelAnswer)
        assert answer.asked == 1


# ---- what must not come in


@pytest.mark.asyncio
async def test_bundles_that_are_not_the_callers_are_refused_whole(fabric: Fabric) -> None:
    """Forged, altered, unknown or untrusted keys, strangers' bundles, endpoints and groups: a named error, and nothing is stored."""
    user, other = await fabric.user("ann"), await fabric.user("bob")
    endpoint, foreign = await fabric.endpoint(user), await fabric.endpoint(other)
    function = await user.register()

    def work(**changes: Any) -> Work:
        return user.work(changes.pop("at", endpoint.id), function, [call_task()], **changes)

    good = user.sign(work())
    altered = bytearray(good)
    altered[-3] ^= 1  # the argument
    stranger = PrivateKey.generate()
    await refuses(user, bytes(altered), NotAllowed)
    await refuses(user, stranger.sign(signing.BUNDLE, codec.encode(work())), NotAllowed)
    await refuses(user, stranger.sign(signing.BUNDLE, codec.encode(work(key=stranger.public.id))), NotAllowed)
    await refuses(user, user.key.sign(signing.RESULTS, codec.encode(work())), NotAllowed)
    await refuses(user, codec.encode(messages.Signed(messages.Unsigned(), codec.encode(work()))), NotAllowed)
    await refuses(other, good, NotAllowed)
    await refuses(user, user.sign(work(at=foreign.id)), NotFound)
    await refuses(user, user.sign(work(at=new_hex())), NotFound)
    await refuses(user, user.sign(work(v=2)), VersionMismatch)
    await refuses(user, b"\x93garbage", InvalidRequest)
    await refuses(user, user.sign(work(signed_at=now_ms() + HOUR_MS)), InvalidRequest)
    large = [call_task(args=Inline("pickle", bytes(600_000))) for _ in range(2)]
    await refuses(user, user.sign(user.work(endpoint.id, function, large)), PayloadTooLarge)
    await refuses(user, bytes(9_000_000), PayloadTooLarge)
    theirs = other.work(foreign.id, await other.register(), [call_task()])
    await other.post(other.sign(theirs))
    await refuses(user, user.sign(work(group=theirs.group)), NotFound)
    async with endpoint.connected():
        pass
    endpoint.trusted = []
    await endpoint.take_lease()
    with pytest.raises(NotAllowed) as untrusted:
        await user.post(good)
    assert f"funcmq endpoint trust {endpoint.name}" in untrusted.value.hint
    assert await user.api.list("/tasks", api.TaskView) == []


async def refuses(user: User, bundle: bytes, error: type[FuncmqError]) -> None:
    with pytest.raises(error) as refused:
        await user.post(bundle)
    assert type(refused.value) is error, refused.value


@pytest.mark.asyncio
async def test_a_wrong_task_does_not_take_its_neighbours_along(fabric: Fabric) -> None:
    """Unknown function, time that is up and arguments of another kind are verdicts on that task alone."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    unknown = FunctionRef("0" * 64, "g")
    options = [Options(not_after=now_ms() + HOUR_MS), Options(not_after=now_ms() - 1000)]
    tasks = [
        call_task(function=1),
        call_task(options=1),
        call_task(),
        call_task(args=messages.Uri("pickle", "file:///x", "0" * 64, 1)),
    ]
    bundle = user.sign(user.work(endpoint.id, function, tasks, functions=[function, unknown], options=options))
    answer = await user.post(bundle)
    assert answer.accepted == 1
    assert [(verdict.index, verdict.code) for verdict in answer.verdicts] == [
        (0, "NotFound"),
        (1, "TaskExpired"),
        (3, "EnvironmentMismatch"),
    ]
    assert await user.post(bundle) == answer
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).only == [2]
        assert await endpoint.api.fetch_raw(f"/functions/{function.id}")
        with pytest.raises(NotFound):
            await endpoint.api.fetch_raw(f"/functions/{unknown.id}")


@pytest.mark.asyncio
async def test_an_endpoint_reports_about_its_own_work_only(fabric: Fabric) -> None:
    """Results that are forged, of another endpoint's task, another group or unknown tasks are refused with a reason and change no task."""
    user = fabric.admin
    mine, other = await fabric.endpoint(user), await fabric.endpoint(user)
    function = await user.register()
    work = user.work(mine.id, function, [call_task()])
    task = work.tasks[0].id
    await user.post(user.sign(work))
    elsewhere = group_id(user.id, "elsewhere")
    async with other.connected(), mine.connected():
        forged = [
            (other, other.results(user.id, work.group, [outcome_of(task)])),
            (
                other,
                other.key.sign(signing.RESULTS, codec.decode(messages.Signed, mine.results(user.id, work.group, [outcome_of(task)])).body),
            ),
            (other, mine.results(user.id, work.group, [outcome_of(task)])),
            (mine, mine.results(user.id, elsewhere, [outcome_of(task)])),
            (mine, mine.results(new_hex(), work.group, [outcome_of(task)])),
            (mine, mine.results(user.id, work.group, [outcome_of(new_id())])),
            (mine, mine.results(user.id, work.group, [])),
            (
                mine,
                mine.key.sign(signing.BUNDLE, codec.decode(messages.Signed, mine.results(user.id, work.group, [outcome_of(task)])).body),
            ),
        ]
        for sender, data in forged:
            await sender.report("results/1", data, work.group)
            identifier, reason = (await sender.orders.get()).bundles[0]
            assert identifier == bundle_id(data)
            assert reason
        await mine.report("results/1", b"garbage", work.group)
        refusal = Refused(1, other.id, other.key.public.id, now_ms(), bundle_id(user.sign(work)), "NotAllowed", "")
        await other.report("refused/1", other.key.sign(signing.REFUSED, codec.encode(refusal)), "-")
        await mine.finish(work, [outcome_of(task)])
    assert (await user.view(task)).state == "succeeded"


# ---- leases


@pytest.mark.asyncio
async def test_a_journal_that_comes_back_fences_the_one_before(fabric: Fabric) -> None:
    """The next epoch is answered when the connections of the last are closed; the last can neither renew nor log in again."""
    endpoint = await fabric.endpoint(fabric.admin)
    first = await endpoint.take_lease()
    connection = await aio_pika.connect(Broker(tuple(first.brokers), first.user, first.password).login(first.brokers[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    second = await endpoint.take_lease()
    assert (first.epoch, second.epoch) == (1, 2)
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(first.brokers), first.user, first.password))
    await check(Broker(tuple(second.brokers), second.user, second.password))
    with pytest.raises(Conflict):
        await endpoint.take_lease(epoch=1)
    renewed = await endpoint.take_lease(epoch=2)
    assert (renewed.epoch, renewed.user, renewed.password) == (2, second.user, "")
    await connection.close()


@pytest.mark.asyncio
async def test_another_journal_waits_until_the_lease_is_given_back(fabric: Fabric) -> None:
    """Another journal is told who runs; it gets the lease when that one gave it back."""
    endpoint = await fabric.endpoint(fabric.admin)
    lease = await endpoint.take_lease(host="login3", pid=77)
    with pytest.raises(AlreadyRunning) as running:
        await endpoint.take_lease(journal=new_hex())
    assert (running.value.details["host"], running.value.details["pid"]) == ("login3", 77)
    with pytest.raises(Conflict):
        await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease?epoch=7")
    await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease?epoch={lease.epoch}")
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(lease.brokers), lease.user, lease.password))
    assert (await endpoint.take_lease(journal=new_hex())).epoch == 2


@pytest.mark.asyncio
async def test_a_takeover_sends_the_old_journals_work_again(fabric: Fabric) -> None:
    """What the old journal had received is sent to the new one; what must not run twice is lost, and says so."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    never = Options(retry="never", not_after=now_ms() + HOUR_MS)
    tasks = [call_task(1), call_task(2, options=1), call_task(3)]
    work = user.work(endpoint.id, await user.register(), tasks, options=[Options(not_after=now_ms() + HOUR_MS), never])
    bundle = user.sign(work)
    async with endpoint.connected():
        answer = await user.post(bundle)
        await endpoint.next_dispatch()
        await endpoint.report("receipt/1", codec.encode(Receipt(1, endpoint.id, endpoint.journal, [answer.bundle], now_ms())), work.group)
        await eventually(user, tasks[0].id, "received")
        await endpoint.finish(work, [outcome_of(tasks[2].id)])
    endpoint.journal = new_hex()
    await endpoint.take_lease(takeover=True, birth=now_ms() + 1)
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(2, [0], bundle)
    states = [task.state for task in (await user.query(*(task.id for task in tasks))).tasks]
    assert sorted(states) == ["lost", "published", "succeeded"] or sorted(states) == ["accepted", "lost", "succeeded"]


@pytest.mark.asyncio
async def test_heartbeats_make_an_endpoint_online(fabric: Fabric) -> None:
    """An endpoint that holds its lease and beats is online; one that gave the lease back is not."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    await user.post(user.sign(work))
    assert (await user.view(work.tasks[0].id)).waiting_for.startswith("endpoint offline")
    async with endpoint.connected(take=False) as link:
        assert endpoint.lease is not None
        beat = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now_ms(), "login3", 9, "0", [], {user.id: 17}, 2, 0)
        await link.publish(topology.STATUS, endpoint.id, "heartbeat/1", codec.encode(beat))
        while not (seen := await user.api.call("GET", f"/endpoints/{endpoint.name}", None, api.EndpointView)).online:
            await asyncio.sleep(0.01)
        assert (seen.queued, seen.running, seen.id) == (17, 2, endpoint.id)
    await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease")
    assert not (await user.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)).online


@pytest.mark.asyncio
async def test_a_deleted_endpoint_is_cut_off_and_its_work_is_lost(fabric: Fabric) -> None:
    """Its connections close, its token ends, and its open tasks end as lost with a reason."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    await user.post(user.sign(work))
    lease = await endpoint.take_lease()
    connection = await aio_pika.connect(Broker(tuple(lease.brokers), lease.user, lease.password).login(lease.brokers[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    await user.api.tell("DELETE", f"/endpoints/{endpoint.name}")
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotLoggedIn):
        await endpoint.take_lease()
    with pytest.raises(NotFound):
        await user.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)
    told = (await user.query(work.tasks[0].id)).tasks[0]
    assert told.state == "lost"
    assert told.failure is not None
    await connection.close()


# ---- who may what


@pytest.mark.asyncio
async def test_strangers_find_nothing(fabric: Fabric) -> None:
    """Every route with another user's id answers as if it did not exist, and changes nothing."""
    owner, stranger = await fabric.user("ann"), await fabric.user("eve")
    endpoint = await fabric.endpoint(owner)
    function = await owner.register()
    work = owner.work(endpoint.id, function, [call_task()])
    await owner.post(owner.sign(work))
    task, group = work.tasks[0].id, work.group
    session = await owner.api.call("POST", "/sessions", api.SessionRequest(groups=[group]), api.SessionAnswer)
    me = await owner.api.call("GET", "/me", None, api.Me)
    attempts: list[tuple[str, str, api.Record | None]] = [
        ("GET", f"/tasks/{task.hex()}", None),
        ("GET", f"/tasks?endpoint={endpoint.id}", None),
        ("GET", f"/groups/{group}", None),
        ("POST", f"/groups/{group}/cancel", None),
        ("GET", f"/endpoints/{endpoint.id}", None),
        ("GET", f"/endpoints/{endpoint.name}", None),
        ("PATCH", f"/endpoints/{endpoint.id}", api.EndpointPatch(allow=["eve"])),
        ("DELETE", f"/endpoints/{endpoint.id}", None),
        ("GET", f"/functions/{function.id}", None),
        ("POST", "/sessions", api.SessionRequest(groups=[group])),
        ("POST", f"/sessions/{session.id}/groups", api.SessionRequest(groups=[])),
        ("DELETE", f"/sessions/{session.id}", None),
        ("DELETE", f"/tokens/{me.token}", None),
        ("DELETE", f"/keys/{owner.key.public.id}", None),
    ]
    for method, path, body in attempts:
        with pytest.raises(NotFound):
            await stranger.api.tell(method, path, body)
    forbidden: list[tuple[str, str, api.Record | None]] = [
        ("POST", f"/endpoints/{endpoint.id}/lease", None),
        ("DELETE", f"/endpoints/{endpoint.id}/lease", None),
        ("POST", "/users", api.UserRequest(name="mallory")),
        ("GET", "/users", None),
    ]
    for method, path, body in forbidden:
        with pytest.raises(NotAllowed):
            await stranger.api.tell(method, path, body)
    assert (await stranger.query(task)) == api.QueryAnswer(tasks=[], bundles=[])
    body = api.TasksRequest(tasks=[task.hex()])
    assert (await stranger.api.call("POST", "/tasks/cancel", body, api.CancelAnswer)).asked == 0
    assert await stranger.api.list("/tasks", api.TaskView) == []
    assert await stranger.api.list(f"/tasks?group={group}", api.TaskView) == []
    assert await stranger.api.list("/endpoints", api.EndpointView) == []
    assert await stranger.api.list("/functions", api.FunctionView) == []
    assert (await owner.view(task)).state in ("accepted", "published")


@pytest.mark.asyncio
async def test_guests_may_submit_and_no_more(fabric: Fabric) -> None:
    """Who is let in sees and uses the endpoint; administering it stays with its owner; who is shut out finds nothing again."""
    owner, guest = await fabric.user("ann"), await fabric.user("gus")
    endpoint = await fabric.endpoint(owner)
    share = api.EndpointPatch(allow=["gus"])
    view = await owner.api.call("PATCH", f"/endpoints/{endpoint.name}", share, api.EndpointView)
    assert view.allowed == ["gus"]
    work = guest.work(endpoint.id, await guest.register(), [call_task()])
    assert (await guest.post(guest.sign(work))).accepted == 1
    assert (await guest.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)).allowed == []
    for method, body in (("PATCH", share), ("DELETE", None)):
        with pytest.raises(NotAllowed):
            await guest.api.tell(method, f"/endpoints/{endpoint.id}", body)
    await owner.api.call("PATCH", f"/endpoints/{endpoint.name}", api.EndpointPatch(deny=["gus"]), api.EndpointView)
    await refuses(guest, guest.sign(guest.work(endpoint.id, await guest.register(), [call_task()])), NotFound)


@pytest.mark.asyncio
async def test_an_endpoints_token_is_for_that_endpoint_only(fabric: Fabric) -> None:
    """It opens neither its owner's tasks nor another endpoint's lease, nor functions that it was never sent."""
    user = fabric.admin
    mine, other = await fabric.endpoint(user), await fabric.endpoint(user)
    function = await user.register()
    for method, path in (("GET", "/tasks"), ("GET", "/me"), ("POST", "/enrolments"), ("GET", "/users"), ("GET", "/tokens")):
        with pytest.raises(NotAllowed):
            await mine.api.tell(method, path)
    with pytest.raises(NotFound):
        await mine.api.tell("GET", f"/endpoints/{other.id}")
    with pytest.raises(NotFound):
        await mine.api.fetch_raw(f"/functions/{function.id}")
    mine.id = other.id
    with pytest.raises(NotFound):
        await mine.take_lease()


@pytest.mark.asyncio
async def test_tokens_and_codes_end(fabric: Fabric) -> None:
    """A code works once, a revoked token never again, and the sessions made with it are cut off."""
    user = fabric.admin
    enrolment = await user.api.call("POST", "/enrolments", None, api.EnrolmentAnswer)
    request = api.EndpointRequest(name="by-code", key=PrivateKey.generate().public.text, enrolment=enrolment.code.lower())
    nobody = await fabric.api()
    assert (await nobody.call("POST", "/endpoints", request, api.EndpointAnswer)).owner == user.id
    with pytest.raises(NotLoggedIn):
        await nobody.call("POST", "/endpoints", request, api.EndpointAnswer)
    with pytest.raises(NotLoggedIn):
        await nobody.call("POST", "/login", api.LoginRequest(code="AAAA-AAAA-AAAA-AAAA-AAAA"), api.TokenAnswer)
    with pytest.raises(NotLoggedIn):
        await (await fabric.api("fx_wrong")).tell("GET", "/me")
    token = await user.api.call("POST", "/tokens", api.TokenRequest(days=1), api.TokenAnswer)
    second = await fabric.api(token.token)
    session = await second.call("POST", "/sessions", api.SessionRequest(groups=[]), api.SessionAnswer)
    stream = session.streams[0]
    connection = await aio_pika.connect(Broker(tuple(stream.urls), stream.user, stream.password).login(stream.urls[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    await user.api.tell("DELETE", f"/tokens/{token.id}")
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotLoggedIn):
        await second.tell("GET", "/me")
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(stream.urls), stream.user, stream.password))
    await connection.close()


@pytest.mark.asyncio
async def test_a_session_whose_stream_is_gone_says_so(fabric: Fabric) -> None:
    """A client whose stream expired is told to make a new session."""
    user = fabric.admin
    session = await user.api.call("POST", "/sessions", api.SessionRequest(groups=[]), api.SessionAnswer)
    path = f"/sessions/{session.id}/groups"
    await user.api.tell("POST", path, api.SessionRequest(groups=[group_id(user.id, "x")]))
    await fabric.running.door.link.delete(topology.stream(session.id))
    with pytest.raises(NotFound):
        await user.api.tell("POST", path, api.SessionRequest(groups=[group_id(user.id, "y")]))


# ---- the service


@pytest.mark.asyncio
async def test_two_services_do_not_share_a_sqlite_file(fabric: Fabric, rabbitmq: Node, tmp_path: Path) -> None:
    """The second one says who has the file."""
    with pytest.raises(AlreadyRunning):
        async with serving(settings_for(rabbitmq, tmp_path)):
            pass


@pytest.mark.asyncio
async def test_what_was_accepted_survives_a_restart(rabbitmq: Node, tmp_path: Path) -> None:
    """After a restart tokens work, tasks are there, and results that came meanwhile are taken in."""
    async with contextlib.AsyncExitStack() as stack:
        async with serving(settings_for(rabbitmq, tmp_path)) as running:
            await running.door.link.ready()
            before = Fabric(running, rabbitmq, stack)
            assert running.code is not None
            before.admin = user = await before.login(running.code)
            endpoint = await before.endpoint(user)
            work = user.work(endpoint.id, await user.register(), [call_task()])
            await user.post(user.sign(work))
            await endpoint.take_lease()
        async with Link("away", lambda: as_broker(rabbitmq)) as link:
            data = endpoint.results(user.id, work.group, [outcome_of(work.tasks[0].id)])
            await link.publish(topology.RESULTS, topology.results_key(endpoint.id, work.group), "results/1", data)
        async with serving(settings_for(rabbitmq, tmp_path)) as running:
            assert running.code is None
            user.api = await stack.enter_async_context(Api(running.url, user.api._headers["Authorization"].partition(" ")[2]))
            await eventually(user, work.tasks[0].id, "succeeded")


@pytest.mark.asyncio
async def test_an_unconfirmed_bundle_is_busy_and_sent_again(fabric: Fabric) -> None:
    """A full queue means 503; the same bytes again go out as the next dispatch once there is room."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    queue, link = topology.tasks_queue(endpoint.id), fabric.running.door.link
    full = topology.Topology(
        queues=(topology.Queue(queue, {"x-max-length": 0, "x-overflow": "reject-publish"}, ((topology.TASKS, endpoint.id),)),)
    )
    await link.delete(topology.endpoint(endpoint.id))
    await link.declare(full)
    bundle = user.sign(user.work(endpoint.id, function, [call_task()]))
    with pytest.raises(Busy):
        await user.post(bundle)
    await link.delete(full)
    assert (await user.post(bundle)).accepted == 1
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(2, None, bundle)
