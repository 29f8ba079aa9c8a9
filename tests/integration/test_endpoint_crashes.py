"""Laws of a daemon that is stopped, killed, fenced or started again: nothing is lost, and nothing runs more often than it must."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq.broker import messages
from funcmq.broker.connection import Broker
from funcmq.endpoint.journal import open_journal
from tests.endpoint_rig import Rig, rig

pytestmark = [pytest.mark.chaos, pytest.mark.asyncio, pytest.mark.timeout(120)]


@pytest_asyncio.fixture
async def endpoint(broker: Broker, tmp_path: Path) -> AsyncIterator[Rig]:
    """Everything around a daemon, and no daemon; afterwards nothing is left of those that a test started."""
    async with rig(broker, tmp_path) as it:
        yield it
        await it.end()
        it.assert_clean()


def double(x: int) -> int:
    return 2 * x


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise ValueError("no")


def die() -> None:
    os._exit(3)


def note(path: str, name: int, seconds: float) -> int:
    with open(path, "a") as file:  # noqa: PTH123 (one append, whoever else writes)
        file.write(f"{name}\n")
    time.sleep(seconds)
    return name


def large(data: bytes) -> bytes:
    return data[::-1]


async def test_killed_and_started_again_nothing_is_lost(endpoint: Rig, tmp_path: Path) -> None:
    """kill -9 with tasks running and waiting: all end right, and only what was in the pool runs twice; with retry='never' nothing does."""
    runs = tmp_path / "runs"
    process = await endpoint.start()
    many = await endpoint.submit(note, *[(str(runs), number, 0.2 if number % 20 == 0 else 0.0) for number in range(400)])
    never = await endpoint.submit(note, *[(str(runs), number, 0.3) for number in range(1000, 1006)], retry="never")
    await endpoint.until(lambda: len(endpoint.outcomes) > 50)
    process.kill()
    await process.wait()
    journal = open_journal(endpoint.config.journal_dir)
    launched = sum(task.state == 1 for bundle in (await journal.held()).bundles for task in bundle.tasks)
    journal.close()
    process = await endpoint.start()
    assert await endpoint.values(many, 60) == list(range(400))
    lost = [outcome for outcome in await endpoint.ends(never, 60) if outcome.state == "lost"]
    executed = Counter(runs.read_text().split())
    assert max(executed.values()) <= 2
    assert sum(executed.values()) - len(executed) <= launched
    assert all(executed[str(name)] <= 1 for name in range(1000, 1006))
    assert len(lost) <= launched
    process.terminate()
    assert await process.wait() == 0


async def test_results_are_sent_until_stored(endpoint: Rig) -> None:
    """What the front door has not stored comes again after a restart and when asked for, with the same bytes; what it has does not."""
    process = await endpoint.start()
    stored = await endpoint.submit(double, (1,))
    await endpoint.ends(stored)
    endpoint.storing = False
    ids = await endpoint.submit(double, (2,))
    await endpoint.ends(ids)
    await endpoint.control("order/1", messages.Order(1, "resend"))
    await endpoint.until(lambda: endpoint.copies[ids[0]] == 2)
    process.terminate()
    assert await process.wait() == 0
    assert endpoint.door.given_back == 0
    endpoint.storing = True
    process = await endpoint.start()
    await endpoint.until(lambda: endpoint.copies[ids[0]] == 3)
    process.terminate()
    assert await process.wait() == 0
    assert (endpoint.door.given_back, endpoint.copies[stored[0]]) == (1, 1)


async def test_stop_lets_running_tasks_end(endpoint: Rig) -> None:
    """SIGTERM: what runs is waited for and its results reach the front door; what waits is there at the next start."""
    process = await endpoint.start()
    running = await endpoint.submit(slow, (1.5,), (1.5,))
    waiting = await endpoint.submit(slow, (0.1,), (0.2,))
    await endpoint.until(lambda: set(running) <= set(endpoint.running))
    process.terminate()
    assert await process.wait() == 0
    assert set(endpoint.outcomes) == set(running)
    assert endpoint.door.given_back == 0
    process = await endpoint.start()
    assert await endpoint.values(waiting) == [0.1, 0.2]
    await endpoint.control("order/1", messages.Order(1, "stop"))
    assert await process.wait() == 0
    assert endpoint.door.given_back == 1


async def test_a_second_signal_stops_at_once(endpoint: Rig) -> None:
    """Twice SIGTERM does not wait for a long task; it is run again at the next start."""
    process = await endpoint.start()
    running = await endpoint.submit(slow, (60.0,))
    await endpoint.until(lambda: endpoint.running)
    process.terminate()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(4):
        assert await process.wait() == 0
    assert not endpoint.outcomes
    process = await endpoint.start()
    await endpoint.control("cancel/1", messages.Cancel(1, running))
    assert (await endpoint.ends(running))[0].state == "cancelled"
    process.terminate()
    assert await process.wait() == 0


async def test_a_later_lease_fences(endpoint: Rig) -> None:
    """A daemon that reconnects after somebody else got the lease ends with status 76 and launches nothing more."""
    daemon = await endpoint.start()
    await endpoint.values(await endpoint.submit(double, (1,)))
    endpoint.door.epoch += 1
    endpoint.cut()
    async with asyncio.timeout(30):
        assert await daemon.wait() == 76


async def test_a_second_daemon_is_refused(endpoint: Rig) -> None:
    """Another start on the same journal says who holds it, and changes nothing for the first."""
    daemon = await endpoint.start()
    second = await endpoint.start()
    assert await second.wait() == 6
    assert f"pid {daemon.pid}" in (endpoint.folder / "daemon.log").read_text()
    assert await endpoint.values(await endpoint.submit(double, (1,))) == [2]


async def test_cancels_of_the_lease_are_honoured(endpoint: Rig) -> None:
    """What was cancelled while the daemon was away does not start."""
    work = endpoint.work(endpoint.door.register(double), [(1,), (2,)])
    endpoint.door.cancels.append(work.tasks[0].id.hex())
    await endpoint.send(work)
    process = await endpoint.start()
    states = [outcome.state for outcome in await endpoint.ends([task.id for task in work.tasks])]
    assert states == ["cancelled", "succeeded"]
    process.terminate()
    assert await process.wait() == 0
