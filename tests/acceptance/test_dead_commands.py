"""`funcmq dead` on the command line, against a whole fabric."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from funcmq.broker import topology
from funcmq.broker.connection import Broker
from funcmq.broker.link import Link
from funcmq.dev.process import run
from funcmq.dev.stack import Stack


async def dead(stack: Stack, *words: str) -> tuple[int, str]:
    return await run([sys.executable, "-m", "funcmq", "dead", *words], os.environ | stack.environment)


@pytest.mark.asyncio
async def test_garbage_is_listed_shown_and_sent_once_more(stack: Stack, broker_of_stack: Broker) -> None:
    """What the daemon cannot read comes to the dead letters, which its administrator sees; sent once more it comes back, counted."""

    async def ask() -> Broker:
        return broker_of_stack

    async def listed(times: int) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                status, said = await dead(stack, "list", "-o", "json")
                assert status == 0, said
                found: list[dict[str, Any]] = [row for row in json.loads(said) if row["kind"] == "odd/1" and row["times"] == times]
                if found:
                    return found[0]

    async with Link("fuzz", ask) as link:
        await link.publish(topology.TASKS, stack.endpoint_id, "odd/1", b"nonsense of this test")
    letter = await listed(1)
    assert (letter["reason"], letter["state"], letter["endpoint_name"], letter["bundle"]) == ("rejected", "unknown", "dev", "")
    status, said = await dead(stack, "show", letter["id"][-8:])
    assert status == 0
    assert "It is no bundle." in said
    status, said = await dead(stack, "reinject", letter["id"][-8:])
    assert (status, said) == (0, "Sent once more to dev.")
    await listed(2)
    status, said = await dead(stack, "show", "00000000")
    assert status == 6
    assert "no dead letter" in said
