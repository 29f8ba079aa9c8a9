"""Real parts that tests share, started once per run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from funcmq.broker.connection import Broker
from funcmq.dev.postgres import PostgresNode
from funcmq.dev.rabbitmq import Node
from funcmq.dev.stack import Options, Stack

WORKERS = 2
"""Of an endpoint, where a test does not need more."""


SHARED = ("other", "wide", "stack", "rabbitmq", "postgres")
"""Fixtures that take seconds to start: tests that use one of them run in one process, so that it starts once."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Say which tests stay together when they run two at a time."""
    fixtures = getattr(item, "fixturenames", ())
    group = next((name for name in SHARED if name in fixtures), item.nodeid.partition("::")[0])
    item.add_marker(pytest.mark.xdist_group(group))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rabbitmq() -> AsyncIterator[Node]:
    """A private RabbitMQ node.  Without rabbitmq-server the tests fail, and say how to install it."""
    async with Node() as node:
        yield node


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres() -> AsyncIterator[PostgresNode]:
    """A private PostgreSQL server.  Without PostgreSQL the tests fail, and say how to install it."""
    async with PostgresNode() as node:
        yield node


@pytest_asyncio.fixture
async def broker(rabbitmq: Node) -> Broker:
    """The node's internal user, for an AMQP link.  All tests share the vhost `/`: use random endpoint ids."""
    return rabbitmq.broker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack() -> AsyncIterator[Stack]:
    """A whole fabric with one endpoint, `dev`, of two workers.  `stack.use(monkeypatch)` makes it the one that is configured."""
    async with Stack(Options(workers=WORKERS)) as running:
        yield running


@pytest_asyncio.fixture
async def broker_of_stack(stack: Stack) -> Broker:
    """The administrator of the fabric's RabbitMQ: for those who want to do there what nobody else may."""
    assert isinstance(stack.source, Node)
    return stack.source.broker


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wide() -> AsyncIterator[Stack]:
    """A fabric whose endpoint has eight workers."""
    async with Stack(Options(workers=8)) as running:
        yield running


@pytest_asyncio.fixture
async def own() -> AsyncIterator[Stack]:
    """A fabric of this test alone, which may break it."""
    async with Stack(Options(workers=WORKERS)) as running:
        yield running
