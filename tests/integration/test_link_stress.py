"""A link on a wire that is cut, refused and swallowed at moments drawn by a fixed seed: it never hangs, and loses nothing confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from funcmq.broker.connection import Broker
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Busy, Unreachable
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.topology import Exchange, Queue, Topology
from funcmq.broker.transport import Choice, Way, Ways
from funcmq.broker.tunnel import Tunnel
from tests.forwarder_rig import Fabric, sqlite_url
from tests.proxy import Proxy, proxy

PUBLISHERS = 20
QUIET_S = 30.0
"""How long all may take to come through once the wire is left alone."""


async def trouble(wire: Proxy, dice: random.Random, turns: int) -> None:
    """Do so many bad things to the wire, a moment apart, and leave it in order."""
    for _ in range(turns):
        await asyncio.sleep(dice.expovariate(1 / 0.15))
        match dice.randrange(4):
            case 0 | 1:
                wire.cut()
            case 2:
                wire.refuse(True)
                wire.cut()
                await asyncio.sleep(dice.uniform(0, 0.5))
                wire.refuse(False)
            case 3:
                wire.swallow(True)
                await asyncio.sleep(dice.uniform(0, 0.5))
                if dice.random() < 0.5:
                    wire.cut()
                wire.swallow(False)


class Traffic:
    """Publishers and a consumer of one queue, who note what was confirmed and what came."""

    def __init__(self, link: Link) -> None:
        self.link, self.name = link, f"test.{new_hex()}"
        self.confirmed: set[bytes] = set()
        self.got: set[bytes] = set()
        self.arrived = asyncio.Event()
        self.enough = asyncio.Event()

    async def take(self, delivery: Delivery) -> None:
        self.got.add(delivery.body)
        await delivery.ack()
        self.arrived.set()

    async def publish(self, number: int) -> None:
        """One after another, each until it is confirmed; one more after `enough`."""
        for count in itertools.count():
            last, body = self.enough.is_set(), b"%d.%d" % (number, count)
            while body not in self.confirmed:
                with contextlib.suppress(Unreachable, Busy):
                    await self.link.publish(self.name, "k", "t/1", body)
                    self.confirmed.add(body)
                await asyncio.sleep(0.002)
            if last:
                return

    async def all_arrived(self) -> None:
        while not self.confirmed <= self.got:
            self.arrived.clear()
            await self.arrived.wait()


async def stress(link: Link, wire: Proxy, seed: int, turns: int) -> int:
    """Publish and consume while there is trouble; returns how many messages passed.  Raises TimeoutError where something hangs."""
    traffic = Traffic(link)
    queue = Queue(traffic.name, {"x-queue-type": "quorum"}, ((traffic.name, "k"),))
    await link.declare(Topology((Exchange(traffic.name, "direct"),), (queue,)))
    link.consume(traffic.name, traffic.take)
    async with asyncio.TaskGroup() as group:
        publishers = [group.create_task(traffic.publish(number)) for number in range(PUBLISHERS)]
        await trouble(wire, random.Random(seed), turns)
        traffic.enough.set()
        async with asyncio.timeout(QUIET_S):
            await asyncio.wait(publishers)
            await traffic.all_arrived()
    await link.delete(Topology(queues=(queue,)))
    return len(traffic.confirmed)


async def stress_port(broker: Broker, seed: int, turns: int) -> int:
    """As `stress`, on the wire to the broker's own port."""

    async def ask() -> Broker:
        return Broker((f"amqp://127.0.0.1:{wire.port}/",), broker.user, broker.password)

    async with proxy(urlsplit(broker.urls[0]).port or 0) as wire, Link("stress", ask) as link:
        return await stress(link, wire, seed, turns)


@pytest.mark.asyncio
async def test_a_bad_wire_hangs_nobody_and_loses_nothing(broker: Broker) -> None:
    """Whenever the wire is cut, refused or swallowed: afterwards every publish is confirmed, and all that was confirmed arrives."""
    assert await stress_port(broker, 1, 20) > PUBLISHERS


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(2, 12))
async def test_a_bad_wire_for_long(broker: Broker, seed: int) -> None:
    """The same, with ten other seeds and longer."""
    assert await stress_port(broker, seed, 150) > PUBLISHERS


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database is enough here."""
    return sqlite_url(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(3))
async def test_a_bad_wire_to_the_front_door(fabric: Fabric, broker: Broker, seed: int) -> None:
    """The same through a tunnel."""

    async def ask() -> Broker:
        return broker

    token = fabric.admin.api._headers["Authorization"].partition(" ")[2]
    async with contextlib.AsyncExitStack() as stack:
        wire = await stack.enter_async_context(proxy(urlsplit(fabric.running.url).port or 0))
        front = await stack.enter_async_context(Api(f"http://127.0.0.1:{wire.port}", token))
        ways = Ways(Tunnel(front), Choice(Way.TUNNEL))
        link = await stack.enter_async_context(Link("stress", ask, ways=ways))
        assert await stress(link, wire, seed, 40) > PUBLISHERS
