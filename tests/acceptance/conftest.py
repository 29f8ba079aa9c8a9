"""A client of the stack that acceptance tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from funcmq import Client
from funcmq.dev.stack import Stack

LIMIT_S = 40


@pytest_asyncio.fixture
async def fx(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of the stack."""
    stack.use(monkeypatch)
    async with asyncio.timeout(LIMIT_S), Client() as client:
        yield client
