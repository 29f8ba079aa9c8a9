"""Front doors and the broker killed under load: nothing is lost, nothing runs twice, and nobody who waits sees an error."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq import Client, TaskFuture
from funcmq.broker.ids import new_hex
from funcmq.dev.postgres import PostgresNode
from funcmq.dev.stack import Options, Stack
from tests.acceptance.neighbours import noted, ran_once

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

KILLS = pytest.mark.parametrize(("count", "kills"), [(2_000, 3), pytest.param(10_000, 20, marks=pytest.mark.long)])
LIMIT_S = 800
SEED = 20_26


@pytest_asyncio.fixture
async def shared(postgres: PostgresNode, tmp_path: Path) -> AsyncIterator[Stack]:
    """A fabric on PostgreSQL with two front doors at one port."""
    url = await postgres.create(name := new_hex())
    async with Stack(Options(data=tmp_path / "data", workers=2, database=url)) as stack:
        await stack.start_front_door()
        yield stack
    await postgres.drop(name)


@pytest_asyncio.fixture
async def alone(tmp_path: Path) -> AsyncIterator[Stack]:
    """A fabric on SQLite with its one front door."""
    async with Stack(Options(data=tmp_path / "data", workers=2)) as stack:
        yield stack


async def kill_and_replace(stack: Stack, dice: random.Random) -> None:
    """Kill -9 one of the front doors, whichever; there are as many again when this returns."""
    await stack.kill_front_door(dice.choice(stack.front_doors))
    await stack.start_front_door()


async def load_under_kills(stack: Stack, log: Path, count: int, kills: int, *, broker_kills: int = 0) -> None:
    """Submit in as many parts as there are kills, each killed while its requests are under way, and wait for every result."""
    dice, tasks = random.Random(SEED), list[TaskFuture[int]]()
    async with asyncio.timeout(LIMIT_S), Client() as fx:
        for part in range(kills):
            until = count * (part + 1) // kills
            tasks += [fx.submit(noted, str(log), number) for number in range(len(tasks), until)]
            await begun(tasks)
            await kill_and_replace(stack, dice)
            if part < broker_kills:
                await stack.restart_broker()
        assert await fx.gather(tasks) == [number * 3 for number in range(count)]
    assert ran_once(log, count)


async def begun(tasks: list[TaskFuture[int]]) -> None:
    """Return when some of the newest part is accepted, and some is not: requests are being made."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while tasks[-1].state == "pending" and tasks[-200].state == "pending":
                await asyncio.sleep(0)


@KILLS
@pytest.mark.asyncio
async def test_two_front_doors_on_one_port_killed_in_turn(
    shared: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, kills: int
) -> None:
    """On PostgreSQL with two front doors sharing a port, one killed in the middle of requests, again and again."""
    shared.use(monkeypatch)
    assert len(shared.front_doors) == 2
    await load_under_kills(shared, tmp_path / "executions", count, kills)


@KILLS
@pytest.mark.asyncio
async def test_the_one_front_door_killed_and_restarted(
    alone: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, kills: int
) -> None:
    """On SQLite with the one front door killed in the middle of a request and restarted, and RabbitMQ killed and restarted once besides."""
    alone.use(monkeypatch)
    await load_under_kills(alone, tmp_path / "executions", count, kills, broker_kills=min(3, kills // 3))
