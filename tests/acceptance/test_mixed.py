"""Mixed tasks, ten thousand in the long form, through every way in: each ends right, once, and nobody's neighbour suffers."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import as_completed

import pytest

from funcmq import Client, Executor, TaskFuture, errors
from funcmq.dev.stack import Stack

SEED = 20_26
TASKS = pytest.mark.parametrize("count", [1_000, pytest.param(4_000, marks=pytest.mark.long)])
"""Through Client and through Executor each; map has half of it: 10,000 together."""


def work(number: int, seconds: float) -> int:
    """Sleep, then square; every twentieth raises."""
    time.sleep(seconds)
    if number % 20 == 7:
        raise ValueError(f"number {number}")
    return number * number


def plan(count: int) -> list[tuple[int, float]]:
    """Numbers and how long each sleeps: 0 to 50 ms."""
    dice = random.Random(SEED)
    return [(number, dice.random() * 0.05) for number in range(count)]


def check(number: int, future: TaskFuture[int], cancelled: bool) -> str:
    """The end that this task must have; a cancelled one may have been faster than its cancel."""
    error = future.exception()
    if isinstance(error, errors.TaskCancelled):
        assert cancelled, f"{number} was not cancelled by anybody"
        return "cancelled"
    if number % 20 == 7:
        assert isinstance(error, ValueError), error
        assert isinstance(error, errors.TaskFailed)
        assert f"number {number}" in str(error)
        return "failed"
    assert error is None, error
    assert future.result() == number * number
    return "succeeded"


@TASKS
@pytest.mark.timeout(150)
@pytest.mark.asyncio
async def test_mixed_tasks_through_the_client(wide: Stack, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Every future of an async Client ends right, and cancelled ones mostly end as cancelled."""
    wide.use(monkeypatch)
    async with Client() as fx:
        futures = [fx.submit(work, *call) for call in plan(count)]
        for future in futures[::50]:
            future.cancel()
        async with asyncio.timeout(120):
            await fx.gather(futures, errors="return")
    ends = [check(number, future, number % 50 == 0) for number, future in enumerate(futures)]
    assert ends.count("failed") == count // 20
    assert ends.count("cancelled") >= count // 50 * 0.8


@TASKS
@pytest.mark.timeout(150)
def test_mixed_tasks_through_the_executor(wide: Stack, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The same through a concurrent.futures.Executor, consumed with the standard library's own as_completed."""
    wide.use(monkeypatch)
    with Executor() as executor:
        futures = [executor.submit(work, *call) for call in plan(count)]
        for future in futures[::50]:
            future.cancel()
        assert len(list(as_completed(futures, timeout=120))) == count
    ends = [check(number, future, number % 50 == 0) for number, future in enumerate(futures)]
    assert ends.count("failed") == count // 20


@TASKS
@pytest.mark.timeout(150)
@pytest.mark.asyncio
async def test_mixed_calls_through_map(wide: Stack, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """map gives every outcome in its place, failures included."""
    wide.use(monkeypatch)
    calls = plan(count // 2)
    numbers, seconds = zip(*calls, strict=True)
    async with Client() as fx, asyncio.timeout(120):
        outcomes = [outcome async for outcome in fx.map(work, numbers, seconds, errors="return")]
    assert len(outcomes) == len(calls)
    for number, outcome in enumerate(outcomes):
        if number % 20 == 7:
            assert isinstance(outcome, ValueError)
        else:
            assert outcome == number * number
