"""Nobody answers for somebody else: results forged by a broker administrator are worth nothing, and two users share nothing."""

from __future__ import annotations

import asyncio
import time

import pytest

from funcmq import Client, errors
from funcmq.broker import api, codec, signing, topology, values
from funcmq.broker.connection import Broker
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.messages import Outcome, Results, Signed, Unsigned
from funcmq.dev.stack import Stack


def slow(seconds: float) -> str:
    """Take a while, so that a forgery has time to come first."""
    time.sleep(seconds)
    return "genuine"


def forgery(stack: Stack, task: bytes, group: str, user: str, key: signing.PrivateKey) -> bytes:
    """A result bundle as the endpoint would send it, signed by a key that is not the endpoint's."""
    outcome = Outcome(task, "succeeded", values.pack("forged"), None, 1, 1, 1, 1)
    body = codec.encode(Results(1, stack.endpoint_id, key.public.id, new_hex(), user, group, 1, [outcome]))
    return key.sign(signing.RESULTS, body)


async def ended(door: Api, task: str) -> api.QueryAnswer:
    """What the store has of a task, once it has an end: the stream may be quicker than the store."""
    async with asyncio.timeout(30):
        while True:
            stored = await door.call("POST", "/tasks/query", api.TasksRequest(tasks=[task]), api.QueryAnswer)
            if stored.tasks[0].state in api.ENDS:
                return stored
            await asyncio.sleep(0.05)


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_a_forged_result_is_refused(stack: Stack, broker_of_stack: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all rights on the broker one can write into the results exchange and into a stream; neither client nor store believes it."""
    stack.use(monkeypatch)

    async def administrator() -> Broker:
        return broker_of_stack

    async with Api(stack.url, stack.token) as door, Link("forger", administrator) as link, Client() as fx:
        me = await door.call("GET", "/me", None, api.Me)
        future = fx.submit(slow, 3.0)
        await fx.flush()
        stranger = signing.PrivateKey.generate()
        forged = forgery(stack, bytes.fromhex(future.id), fx.group, me.user, stranger)
        unsigned = codec.encode(Signed(Unsigned(), codec.decode(Signed, forged).body))
        for _ in range(50):
            for body in (forged, unsigned, b"garbage", forged[:-1]):
                await link.publish(topology.RESULTS, topology.results_key(stack.endpoint_id, fx.group), "results/1", body)
        assert await future == "genuine"
        stored = await ended(door, future.id)
        assert [task.state for task in stored.tasks] == ["succeeded"]
        assert all(b"forged" not in bundle for bundle in stored.bundles)


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_unsigned_work_never_runs(stack: Stack, broker_of_stack: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage and unsigned bundles in the task queue end as dead letters; the work around them is untouched."""
    stack.use(monkeypatch)

    async def administrator() -> Broker:
        return broker_of_stack

    async def listed(door: Api, sizes: set[int]) -> bool:
        letters = await door.list("/dead?limit=1000", api.DeadLetter)
        return sizes <= {letter.size for letter in letters if letter.reason == "rejected" and not letter.bundle}

    async with Link("forger", administrator) as link, Client() as fx, Api(stack.url, stack.token) as door:
        await link.ready()
        bodies = [b"garbage" * (1000 + number) for number in range(20)]
        futures = []
        for body in bodies:
            await link.publish(topology.TASKS, stack.endpoint_id, "bundle/1", body)
            futures.append(fx.submit(slow, 0.0))
        assert await fx.gather(futures) == ["genuine"] * len(bodies)
        async with asyncio.timeout(60):
            while not await listed(door, {len(body) for body in bodies}):
                await asyncio.sleep(0.1)


@pytest.mark.timeout(60)
@pytest.mark.asyncio
async def test_two_users_share_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second user neither sees nor cancels the first one's tasks, groups and endpoint, and may not send it work."""
    stack.use(monkeypatch)
    async with Api(stack.url, stack.token) as admin, Client() as fx:
        future = fx.submit(slow, 0.0)
        await future
        name = f"user-{new_hex()[-8:]}"
        made = await admin.call("POST", "/users", api.UserRequest(name=name), api.UserAnswer)
        async with Api(stack.url) as nobody:
            token = await nobody.call("POST", "/login", api.LoginRequest(code=made.code or ""), api.TokenAnswer)
        async with Api(stack.url, token.token) as other:
            for path in (f"/tasks/{future.id}", f"/groups/{fx.group}", f"/endpoints/{stack.endpoint_id}"):
                with pytest.raises(errors.NotFound):
                    await other.tell("GET", path)
            assert await other.list("/endpoints", api.EndpointView) == []
            assert await other.list("/tasks", api.TaskView) == []
            query = await other.call("POST", "/tasks/query", api.TasksRequest(tasks=[future.id]), api.QueryAnswer)
            assert (query.tasks, query.bundles) == ([], [])
            with pytest.raises(errors.NotFound):
                await other.call("POST", "/sessions", api.SessionRequest(groups=[fx.group]), api.SessionAnswer)
