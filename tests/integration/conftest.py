"""Front doors on both databases, and a client of the shared fabric."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq import Client
from funcmq.broker.ids import new_hex
from funcmq.dev.postgres import PostgresNode
from funcmq.dev.rabbitmq import Node
from funcmq.dev.stack import Stack
from funcmq.forwarder.database import parse_url, upgrade
from funcmq.forwarder.service import serving
from tests.client_rig import LIMIT_S
from tests.forwarder_rig import Fabric, settings_for, sqlite_url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(postgres: PostgresNode) -> str:
    """The name of an empty database with this release's tables, to copy."""
    await upgrade(parse_url(await postgres.create("migrated")))
    return "migrated"


@pytest_asyncio.fixture
async def postgres_url(postgres: PostgresNode, template: str) -> str:
    """The URL of an empty PostgreSQL database of this test alone, with this release's tables; it goes with the server."""
    return await postgres.create(new_hex(), template)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind: tests that use it run on both."""
    return sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest_asyncio.fixture
async def fabric(rabbitmq: Node, database_url: str) -> AsyncIterator[Fabric]:
    """A front door on either database, with its administrator logged in."""
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(settings_for(rabbitmq, database_url)))
        await running.door.link.ready()
        made = Fabric(running, rabbitmq, stack)
        assert running.code is not None
        made.admin = await made.login(running.code)
        yield made


@pytest.fixture
def configured(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared fabric is the one that is configured."""
    stack.use(monkeypatch)


@pytest_asyncio.fixture
async def fx(configured: None) -> AsyncIterator[Client]:
    """A client of it."""
    async with asyncio.timeout(LIMIT_S), Client() as client:
        yield client
