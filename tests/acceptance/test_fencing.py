"""Two daemons for one endpoint: real processes, each with a journal of its own, as on two hosts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from funcmq import Client, TaskFuture, errors
from funcmq.broker import api
from funcmq.broker.http import Api
from funcmq.dev import daemon
from funcmq.dev.process import Child, run
from funcmq.dev.stack import Stack
from funcmq.endpoint.engine import PAUSE_S

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(170)]

FENCED = 76
WORKERS = 2


def marked(path: str, number: int, seconds: float) -> int:
    """Append a line to a file outside of the system, then work."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % number)
    os.close(file)
    time.sleep(seconds)
    return number * 3


def executions(path: Path) -> Counter[int]:
    """How often each number was run."""
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


@dataclass
class Host:
    """A folder that stands for a host: files of the endpoint, run_dir and journal of its own."""

    folder: Path
    stack: Stack
    name: str

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | self.stack.environment | {"FUNCMQ_HOME": str(self.folder / "home")}

    @property
    def file(self) -> Path:
        return self.folder / "home" / "endpoints" / self.name / "endpoint.toml"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    async def init(self) -> None:
        self.folder.mkdir()
        options = ["--workers", str(WORKERS), "--run-dir", str(self.folder / "run"), "--journal-dir", str(self.folder / "journal"), "--yes"]
        status, said = await run([sys.executable, "-m", "funcmq", "endpoint", "init", self.name, *options], self._environment)
        assert status == 0, said
        daemon.adjust(self.file, self.stack.url, 0)

    def copy(self, folder: Path) -> Host:
        """The same endpoint on another host, with an empty journal."""
        other = Host(folder, self.stack, self.name)
        shutil.copytree(self.folder / "home", folder / "home")
        other.file.write_text(self.file.read_text().replace(str(self.folder), str(folder)))
        return other

    async def start(self, *options: str) -> Child:
        argv = [sys.executable, "-m", "funcmq", "endpoint", "start", self.name, "--foreground", *options]
        return await Child.start(self.name, argv, self._environment, self.log)

    async def connected(self, child: Child) -> Child:
        """Return when this daemon holds the lease and hears its queues."""
        state = self.folder / "journal" / "state.json"
        while not (state.exists() and f'"pid": {child.pid}' in (text := state.read_text()) and '"connected"' in text):
            assert child.alive, self.log.read_text()
            await asyncio.sleep(0.05)
        return child


@contextlib.asynccontextmanager
async def two_hosts(stack: Stack, folder: Path) -> AsyncIterator[tuple[Host, Host]]:
    """An endpoint on one host, and its files on another one."""
    one = Host(folder / "one", stack, "moved")
    await one.init()
    try:
        yield one, one.copy(folder / "two")
    finally:
        async with Api(stack.url, stack.token) as door:
            await door.tell("DELETE", "/endpoints/moved")


@contextlib.asynccontextmanager
async def ending(*children: Child) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGCONT)
            await child.end(daemon.GRACE_S)


async def at_work(fx: Client, log: Path) -> tuple[list[TaskFuture[int]], list[TaskFuture[int]]]:
    """Long tasks in the journal of the first host, some of them running: those that may run again, and those that must not."""
    usual = [fx.on("moved").submit(marked, str(log), number, 1.0) for number in range(6)]
    never = [fx.on("moved", retry="never").submit(marked, str(log), number, 1.0) for number in range(100, 106)]
    await fx.flush()
    async with Api(os.environ["FUNCMQ_URL"], os.environ["FUNCMQ_TOKEN"]) as door:
        while True:
            views = [await door.call("GET", f"/tasks/{task.id}", None, api.TaskView) for task in (usual[-1], never[-1])]
            if len(executions(log)) >= WORKERS and all(view.state in ("received", "running", "succeeded") for view in views):
                return usual, never
            await asyncio.sleep(0.1)


def check(log: Path, usual: list[TaskFuture[int]], never: list[TaskFuture[int]], running: int) -> None:
    """Every end is told; nothing that must not runs twice; of the others only what ran at the move."""
    ran = executions(log)
    assert [task.result() for task in usual] == [number * 3 for number in range(len(usual))]
    assert sum(ran[number] - 1 for number in range(len(usual))) <= running
    lost = 0
    for number, task in enumerate(never, 100):
        assert ran[number] <= 1
        if isinstance(task.exception(), errors.TaskLost):
            lost += 1
        else:
            assert task.result() == number * 3
    assert lost, "some were in the journal that is gone"


@pytest.mark.asyncio
async def test_a_second_host_is_refused_and_takes_over_on_request(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without --takeover the second daemon is told host, pid and time; with it the first is fenced, and the work of its journal goes on."""
    stack.use(monkeypatch)
    log = tmp_path / "executions"
    async with two_hosts(stack, tmp_path) as (one, two):
        first = await one.connected(await one.start())
        async with ending(first), Client() as fx:
            usual, never = await at_work(fx, log)
            refused = await two.start()
            assert await refused.ended() == errors.AlreadyRunning.exit
            said = two.log.read_text()
            assert re.search(rf"runs on \S+ \(pid {first.pid}\), since \d{{4}}-\d\d-\d\d \d\d:\d\d", said), said
            assert first.alive
            began = time.monotonic()
            second = await two.start("--takeover")
            async with ending(second):
                assert await first.ended() == FENCED
                took = time.monotonic() - began
                await fx.gather([*usual, *never], errors="return")
                print(f"fenced {took:.1f} s after the start of the second daemon")  # noqa: T201  a figure that the report wants
                assert await fx.on("moved", retry="never").submit(marked, str(log), 200, 0.0) == 600
    check(log, usual, never, running=2 * WORKERS)


@pytest.mark.asyncio
async def test_a_daemon_that_comes_back_as_a_zombie_launches_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stopped, overtaken and woken, it proves its channel before it launches anything, and ends fenced."""
    stack.use(monkeypatch)
    log = tmp_path / "executions"
    async with two_hosts(stack, tmp_path) as (one, two):
        first = await one.connected(await one.start())
        async with ending(first), Client() as fx:
            usual, never = await at_work(fx, log)
            os.kill(first.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            second = await two.connected(await two.start("--takeover"))
            async with ending(second):
                await fx.gather([*usual, *never], errors="return")
                await asyncio.sleep(max(0.0, PAUSE_S + 3 - (time.monotonic() - stopped)))  # long enough to count as a pause
                before = executions(log)
                os.kill(first.pid, signal.SIGCONT)
                assert await first.ended() == FENCED
                assert "launches nothing before the broker answers" in one.log.read_text()
                assert executions(log) == before, "nothing was launched after the fence"
    check(log, usual, never, running=2 * WORKERS)


@pytest.mark.asyncio
async def test_a_copy_of_a_journal_fences_the_first(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same journal on another host is the same endpoint come back: the later one wins by its epoch, and nothing is sent again."""
    stack.use(monkeypatch)
    log = tmp_path / "executions"
    async with two_hosts(stack, tmp_path) as (one, two):
        first = await one.connected(await one.start())
        async with ending(first), Client() as fx:
            assert await fx.on("moved").submit(marked, str(log), 0, 0.0) == 0
            shutil.copytree(one.folder / "journal", two.folder / "journal", ignore=shutil.ignore_patterns("lock", "state.json"))
            second = await two.connected(await two.start())
            async with ending(second):
                async with asyncio.timeout(30):
                    assert await first.ended() == FENCED
                assert await fx.gather([fx.on("moved").submit(marked, str(log), number, 0.0) for number in range(1, 5)]) == [3, 6, 9, 12]
    assert set(executions(log).values()) == {1}
