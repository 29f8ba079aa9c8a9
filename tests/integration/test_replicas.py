"""Several `funcmq serve` on one PostgreSQL: who does what, what they tell each other, and who takes over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from funcmq.broker import api, codec, topology
from funcmq.broker.errors import ConfigurationError, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.messages import Heartbeat, Running
from funcmq.broker.signing import PrivateKey
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder import endpoints, people
from funcmq.forwarder.claims import Claims, Held, fair_share
from funcmq.forwarder.database import Database, opened, parse_url
from funcmq.forwarder.service import Running as Serving
from funcmq.forwarder.service import serving
from funcmq.forwarder.settings import load
from tests.forwarder_rig import Fabric, User, call_task, eventually, now_ms, outcome_of, settings_for

SOON_S = 30.0


class Two:
    """Two front doors on one database and one broker, and their administrator at each of them."""

    def __init__(self, fabric: Fabric, other: Serving, at_other: User) -> None:
        self.fabric, self.other, self.at_other = fabric, other, at_other


@pytest_asyncio.fixture
async def two(rabbitmq: Node, postgres_url: str) -> AsyncIterator[Two]:
    async with contextlib.AsyncExitStack() as stack:
        settings = settings_for(rabbitmq, postgres_url)
        one = await stack.enter_async_context(serving(settings))
        other = await stack.enter_async_context(serving(settings))
        await one.door.link.ready()
        await other.door.link.ready()
        fabric = Fabric(one, rabbitmq, stack)
        assert one.code is not None
        assert other.code is None
        fabric.admin = user = await fabric.login(one.code)
        token = user.api._headers["Authorization"].partition(" ")[2]
        at_other = User(user.id, user.name, await stack.enter_async_context(Api(other.url, token)), user.key)
        yield Two(fabric, other, at_other)


@pytest.mark.asyncio
async def test_what_one_front_door_takes_in_the_other_shows(two: Two) -> None:
    """A bundle posted at one is run and answered; states, `running` and `online` are the same at both, whoever heard of them."""
    user, other = two.fabric.admin, two.at_other
    ends = [await two.fabric.endpoint(user) for _ in range(2)]
    for endpoint in ends:  # each front door has claimed one of them
        work = user.work(endpoint.id, await user.register(), [call_task()])
        task = work.tasks[0].id
        async with endpoint.connected() as link:
            await other.post(other.sign(work))
            await endpoint.next_dispatch()
            assert endpoint.lease is not None
            beat = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now_ms(), "login3", 9, "0", [], {user.id: 17}, 2, 0)
            await link.publish(topology.STATUS, endpoint.id, "heartbeat/1", codec.encode(beat))
            await endpoint.report("running/1", codec.encode(Running(1, endpoint.id, [task], now_ms())), work.group)
            for person in (user, other):
                await eventually(person, task, "running")
                while not (view := await person.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)).online:
                    await asyncio.sleep(0.01)
                assert view.queued == 17
            await endpoint.finish(work, [outcome_of(task)])
            assert [(await person.view(task)).state for person in (user, other)] == ["succeeded"] * 2


@pytest.mark.asyncio
async def test_rights_that_end_at_one_front_door_end_at_the_other(two: Two) -> None:
    """A token revoked at one is refused at the other at once, not when the memory of it runs out."""
    user = two.fabric.admin
    two.other.door.known.callers._ttl = 3600  # nothing but the notice makes it forget
    made = await user.api.call("POST", "/tokens", api.TokenRequest(days=1), api.TokenAnswer)
    async with Api(two.other.url, made.token) as door:
        await door.call("GET", "/me", None, api.Me)
        await user.api.tell("DELETE", f"/tokens/{made.id}")
        with pytest.raises(NotLoggedIn):
            while True:
                await door.call("GET", "/me", None, api.Me)
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_an_orderly_end_hands_everything_over(rabbitmq: Node, postgres_url: str) -> None:
    """Whoever remains takes in the results of all endpoints at once, without waiting for claims to run out."""
    settings = settings_for(rabbitmq, postgres_url)
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(serving(settings))
        await one.door.link.ready()
        fabric = Fabric(one, rabbitmq, stack)
        assert one.code is not None
        fabric.admin = user = await fabric.login(one.code)
        made = [await fabric.endpoint(user) for _ in range(3)]
        async with serving(settings) as other:
            await other.door.link.ready()
            await _claims_of(postgres_url, {2, 1})
        await _claims_of(postgres_url, {3})
        for endpoint in made:
            work = user.work(endpoint.id, await user.register(), [call_task()])
            async with endpoint.connected():
                await user.post(user.sign(work))
                await endpoint.next_dispatch()
                await endpoint.finish(work, [outcome_of(work.tasks[0].id)])


async def _claims_of(url: str, wanted: set[int]) -> None:
    """Return when the endpoints are divided so among the serves."""
    async with opened(parse_url(url)) as database:
        while await _division(database) != wanted:
            await asyncio.sleep(0.02)


async def _division(database: Database) -> set[int]:
    async with database.read() as connection:
        rows = await connection.exec_driver_sql("SELECT count(*) FROM claims WHERE kind = 'results' AND claimant <> '' GROUP BY claimant")
        return set(rows.scalars())


@pytest.mark.asyncio
async def test_claims_of_a_dead_serve_run_out(postgres_url: str) -> None:
    """One that does not renew loses its endpoints and jobs to another after the time of a claim, and not before."""
    ttl_s = 1.0
    async with asyncio.timeout(SOON_S), opened(parse_url(postgres_url)) as database:
        owner = await database.write(lambda c: people.add_user(c, "ann", False, 1))
        for number in range(3):
            key = PrivateKey.generate().public
            await database.write(lambda c, n=number, k=key: endpoints.add(c, new_hex(), owner, f"lab{n}", k, 1))
        states: list[asyncio.Queue[Held]] = [asyncio.Queue(), asyncio.Queue()]
        one, other = (Claims(database, ("job",), results=True, took=states[n].put, ttl_s=ttl_s) for n in range(2))
        dead = asyncio.create_task(one.run())
        assert len((await states[0].get()).keys) == 3
        began = asyncio.get_running_loop().time()
        dead.cancel()
        living = asyncio.create_task(other.run())
        first = await states[1].get()
        assert (len(first.keys), first.jobs) == (0, frozenset())
        while len((held := await states[1].get()).keys) != 3 or not held.jobs:
            assert not held.keys
        assert asyncio.get_running_loop().time() - began > ttl_s * 0.8
        assert other.holds("job")
        living.cancel()


@pytest.mark.asyncio
async def test_a_job_is_done_by_one_at_a_time(postgres_url: str) -> None:
    """However many serves offer to do it; when the one that does it leaves, another begins."""
    async with asyncio.timeout(SOON_S), opened(parse_url(postgres_url)) as database:
        rounds: asyncio.Queue[Held] = asyncio.Queue()
        several = [Claims(database, ("job",), results=True, took=rounds.put) for _ in range(3)]
        tasks = {claims.id: asyncio.create_task(claims.run()) for claims in several}
        for _ in several:
            await rounds.get()
        first = [claims for claims in several if claims.holds("job")]
        assert len(first) == 1
        tasks.pop(first[0].id).cancel()
        await first[0].release()
        rest = [claims for claims in several if claims is not first[0]]
        for claims in rest:
            claims.look()
        for _ in rest:
            await rounds.get()
        assert [claims.holds("job") for claims in several].count(True) == 1
        assert not first[0].holds("job")
        for task in tasks.values():
            task.cancel()


@pytest.mark.parametrize(("total", "serves", "share"), [(0, 1, 0), (1, 2, 1), (3, 2, 2), (4, 2, 2), (1000, 3, 334), (5, 0, 5)])
def test_shares_cover_everything(total: int, serves: int, share: int) -> None:
    """The shares of all serves together are never less than what there is."""
    assert fair_share(total, serves) == share
    assert share * max(1, serves) >= total


@pytest.mark.asyncio
async def test_parts_run_apart(rabbitmq: Node, postgres_url: str) -> None:
    """One process answers HTTP and another takes in results: together they are a front door."""
    everything = {
        "FUNCMQ_BROKER_URL": rabbitmq.url,
        "FUNCMQ_MANAGEMENT_URL": rabbitmq.management_url,
        "FUNCMQ_DATABASE_URL": postgres_url,
        "FUNCMQ_BROKER_AUTH_PORT": str(rabbitmq.auth_port),
        "FUNCMQ_PORT": "0",
    }
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as stack:
        results = await stack.enter_async_context(serving(load({"only": "results"}, everything)))
        http = await stack.enter_async_context(serving(load({"only": "http"}, everything)))
        assert (results.url, results.code) == ("", None)
        await results.door.link.ready()
        await http.door.link.ready()
        fabric = Fabric(http, rabbitmq, stack)
        assert http.code is not None
        user = await fabric.login(http.code)
        endpoint = await fabric.endpoint(user)
        work = user.work(endpoint.id, await user.register(), [call_task()])
        async with endpoint.connected():
            await user.post(user.sign(work))
            await endpoint.next_dispatch()
            await endpoint.finish(work, [outcome_of(work.tasks[0].id)])
        assert (await user.view(work.tasks[0].id)).state == "succeeded"


def test_an_unknown_part_is_named() -> None:
    """A typing error in `--only` starts nothing."""
    with pytest.raises(ConfigurationError, match="resluts"):
        load({"only": "http,resluts"}, {"FUNCMQ_BROKER_URL": "amqp://u:p@h"})
