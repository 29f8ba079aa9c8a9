"""Real parts that tests share, started once per run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from funcmq.broker.link import Broker
from funcmq.dev.rabbitmq import Node
from funcmq.dev.stack import Options, Stack

WORKERS = 2


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rabbitmq() -> AsyncIterator[Node]:
    """A private RabbitMQ node.  Without rabbitmq-server the tests fail, and say how to install it."""
    async with Node() as node:
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
