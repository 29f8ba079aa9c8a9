"""Laws of the tunnel, with a real front door and a real RabbitMQ: the same bytes, no rights, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq.broker.connection import Broker, check
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Busy, NotAllowed, NotLoggedIn, Unreachable
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.topology import Exchange, Queue, Topology
from funcmq.broker.transport import Choice, Way, Ways
from funcmq.broker.tunnel import Tunnel
from tests.forwarder_rig import Fabric, sqlite_url

pytestmark = pytest.mark.asyncio


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database is enough here."""
    return sqlite_url(tmp_path)


@contextlib.asynccontextmanager
async def tunnelled(front: Api, broker: Broker) -> AsyncIterator[Link]:
    """A link that goes through the front door only."""

    async def ask() -> Broker:
        return broker

    async with Link("test", ask, ways=Ways(Tunnel(front), Choice(Way.TUNNEL))) as link:
        yield link


@pytest_asyncio.fixture
async def link(fabric: Fabric, broker: Broker) -> AsyncIterator[Link]:
    """Of the broker's administrator."""
    async with tunnelled(fabric.admin.api, broker) as it:
        yield it


async def test_large_messages_pass_both_ways_unchanged(link: Link) -> None:
    """What is published through a tunnel arrives through it, byte for byte, whatever its size."""
    name, got = f"test.{new_hex()}", asyncio.Queue[Delivery]()
    await link.declare(Topology((Exchange(name, "direct"),), (Queue(name, {}, ((name, "k"),)),)))
    bodies = [b"", b"x", bytes(range(256)) * 40_000]

    async def take(delivery: Delivery) -> None:
        await got.put(delivery)
        await delivery.ack()

    link.consume(name, take)
    for body in bodies:
        await link.publish(name, "k", "t/1", body)
    assert [(await got.get()).body for _ in bodies] == bodies
    await link.delete(Topology(queues=(Queue(name, {}),)))
