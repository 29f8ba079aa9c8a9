"""Broker or front door away: whoever was never there is named soon, and what was accepted or submitted goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from funcmq import Client, Executor, TaskFuture, errors
from funcmq.dev.ports import free_ports
from funcmq.dev.rabbitmq import Node
from funcmq.dev.stack import Stack
from tests.acceptance.by_hand import by_hand
from tests.acceptance.neighbours import act, error_of, noted, ran_once, well_said

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60)]

TASKS = 60


@contextlib.contextmanager
def frozen(stack: Stack) -> Iterator[None]:
    """RabbitMQ does nothing meanwhile: to everybody else it looks like a host that has gone."""
    assert isinstance(stack.source, Node)
    group = int((stack.source.folder / "pid").read_text())
    os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


@pytest.mark.asyncio
async def test_a_front_door_that_is_not_there_is_unreachable(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at the URL: connecting, a future and an Executor say so within seconds, with the address and what to check."""
    stack.use(monkeypatch)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    async def connect() -> None:
        with pytest.raises(errors.Unreachable) as raised:
            async with Client(url=url):
                pass
        well_said(raised.value, errors.Unreachable, url, "Check the URL")

    async def submit() -> None:
        await error_of(Client(url=url).submit(act, "good", 1), errors.Unreachable, url, "Check the URL")

    def execute() -> None:
        with pytest.raises(errors.Unreachable) as raised, Executor(url=url) as executor:
            executor.submit(act, "good", 1).result(timeout=20)
        well_said(raised.value, errors.Unreachable, url, "Check the URL")

    began = time.monotonic()
    await asyncio.gather(connect(), submit(), asyncio.to_thread(execute))
    assert time.monotonic() - began < 12


@pytest.mark.asyncio
async def test_a_broker_that_is_away_is_waited_for(fx: Client, stack: Stack, tmp_path: Path) -> None:
    """The front door keeps what it cannot publish and answers Busy, the client goes on trying, and nothing is lost or run twice."""
    log = tmp_path / "executions"
    slow = fx.submit(time.sleep, 1.0)  # it ends while the broker is away
    await fx.submit(act, "good", 0)
    async with by_hand(stack) as hand:
        function = await hand.register(act)
        work = hand.work([hand.call(5)], functions=[function])
        with frozen(stack):
            tasks = [fx.submit(noted, str(log), number) for number in range(TASKS)]
            with pytest.raises(errors.Busy) as raised:
                await hand.post(work)
            well_said(raised.value, errors.Busy, "broker", "same ids")
            assert raised.value.retry_after > 0
            assert not any(task.done() for task in tasks)
            states = {task.state for task in (await hand.query(bytes.fromhex(tasks[0].id), work.tasks[0].id)).tasks}
            assert states == {"accepted"}, "committed, though not published"
        assert await fx.gather(tasks) == [number * 3 for number in range(TASKS)]
        assert await slow is None
        assert ran_once(log, TASKS)
        assert (await hand.post(work)).accepted == 1
        assert await fx.task(work.tasks[0].id.hex()) == 15


@pytest.mark.asyncio(loop_scope="session")  # the new front door belongs to the loop that ends the stack
async def test_a_front_door_killed_during_submissions_loses_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With requests under way it is killed with `kill -9` and started again: each future ends with its result, each task ran once."""
    stack.use(monkeypatch)
    log = tmp_path / "executions"
    async with asyncio.timeout(40), Client() as fx:
        slow = fx.submit(time.sleep, 1.5)
        tasks: list[TaskFuture[int]] = []

        def submit(count: int) -> None:
            tasks.extend([fx.submit(noted, str(log), len(tasks) + number) for number in range(count)])

        submit(TASKS)
        while tasks[0].state == "pending":
            submit(1)
            await asyncio.sleep(0)
        submit(TASKS)
        await asyncio.sleep(0)  # their request is being made
        await stack.kill_front_door()
        submit(TASKS)
        while not fx._connection.fabric.trouble.since:
            await asyncio.sleep(0.01)
        assert "does not answer" in tasks[-1].waiting_for
        await stack.start_front_door()
        await stack.until_online()  # as tests after this one expect
        assert await fx.gather(tasks) == [number * 3 for number in range(len(tasks))]
        assert await slow is None
    assert ran_once(log, len(tasks))
