"""A client is killed at a random moment: a new process with an empty cache has every result, byte for byte, and submits nothing again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from funcmq import Client
from funcmq.broker.errors import NotFound
from funcmq.broker.ids import new_hex
from funcmq.dev.stack import Stack

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

TASKS = 120
KILLS = 3
MANY_KILLS = 20
LAST_S = 2.5
"""A client is killed within this time of its first submission: before, while and after its tasks are accepted and answered."""

PROGRAM = """
import asyncio, sys
from funcmq import Client
from tests.acceptance.test_attach import TASKS, work
async def main():
    async with Client() as fx:
        view = fx.on(group=sys.argv[1])
        print("go", flush=True)
        tasks = []
        for number in range(TASKS):
            tasks.append(view.submit(work, number, sys.argv[2]))
            if number % 8 == 0:
                await asyncio.sleep(0.1)
        await fx.gather(tasks)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def content(number: int) -> bytes:
    """What the result of a task is, to the byte: from a few bytes to more than travels inline between daemon and worker."""
    block = hashlib.sha256(b"%d" % number).digest()
    return block * (1 + (number % 5) * 700)


def work(number: int, log: str) -> bytes:
    """Note that it ran, outside of the system, and take a moment now and then."""
    import time  # noqa: PLC0415  travels by value

    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % number)
    os.close(file)
    time.sleep(0.05 if number % 10 == 0 else 0)
    return content(number)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.long)])
@pytest.mark.asyncio
async def test_a_killed_clients_results_are_all_there(kills: int, stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was accepted before the kill has run once and is read whole by somebody who knows only the group's name."""
    stack.use(monkeypatch)
    chance = random.Random(os.environ.get("FUNCMQ_TEST_SEED", "attach"))
    moments = [chance.uniform(0, LAST_S) for _ in range(kills)]
    found = [await _one(f"killed/{new_hex()}", tmp_path / new_hex(), moment, monkeypatch, tmp_path) for moment in moments]
    print(f"tasks accepted before each kill, of {TASKS}: {found}")  # noqa: T201  a figure that the report wants
    assert any(found)


async def _one(name: str, log: Path, after_s: float, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Start, kill, attach; how many tasks were accepted."""
    root = Path(__file__).resolve().parents[2]
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, name, str(log), cwd=root, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert client.stdout is not None
    await client.stdout.readline()
    await asyncio.sleep(after_s)  # the random moment
    client.kill()
    await client.wait()
    monkeypatch.setenv("FUNCMQ_HOME", str(folder / new_hex()))  # no pins, no cache: as on another machine
    async with Client() as fx, asyncio.timeout(120):
        results = await _attach(fx, name)
        views = await fx.tasks(group=name, limit=10 * TASKS) if results else []
        if len(views) > len(results):  # a request of the killed client was still being served
            results = await _attach(fx, name)
    ran = Counter(map(int, log.read_text().split())) if results else Counter[int]()
    assert {view.id for view in views} == results.keys()
    assert {view.state for view in views} <= {"succeeded"}
    assert sorted(results.values()) == sorted(content(number) for number in ran)
    assert set(ran.values()) <= {1}
    assert sorted(ran) == list(range(len(ran)))
    return len(results)


async def _attach(fx: Client, name: str) -> dict[str, bytes]:
    """The results of a group by task; none where the client was killed before its first bundle."""
    try:
        tasks = [task async for task in fx.attach(name)]
    except NotFound:
        return {}
    return dict(zip((task.id for task in tasks), await fx.gather(tasks), strict=True))
