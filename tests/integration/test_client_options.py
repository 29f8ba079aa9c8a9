"""Laws of the options of `on()`, each as the interface words it."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq import Client, errors
from funcmq.broker import api
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack
from tests.client_rig import double, hold, nap
from tests.conftest import WORKERS

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


def append(path: str, text: str) -> int:
    """Write a line outside of the system; how many there are now."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{text}\n".encode())
    os.close(file)
    return len(Path(path).read_text().split())


def stumble(path: str, times: int) -> int:
    """Fail so many times before it works."""
    if (tries := append(path, "try")) <= times:
        raise ValueError(f"try {tries}")
    return tries


@pytest_asyncio.fixture
async def gone(stack: Stack) -> AsyncIterator[str]:
    """Name of an endpoint of this user that was never started."""
    name = f"away-{new_hex()[-8:]}"
    async with Api(stack.url, stack.token) as front:
        request = api.EndpointRequest(name=name, key=PrivateKey.generate().public.text)
        await front.call("POST", "/endpoints", request, api.EndpointAnswer)
        yield name
        await front.tell("DELETE", f"/endpoints/{name}")


@contextlib.asynccontextmanager
async def busy(fx: Client, folder: Path) -> AsyncIterator[None]:
    """All workers are at work for as long as this lasts."""
    tasks = [fx.submit(hold, str(folder)) for _ in range(WORKERS)]
    while len(list(folder.glob("began-*"))) < WORKERS:
        await asyncio.sleep(0.02)
    yield
    (folder / "go").touch()
    await fx.gather(tasks)


async def test_of_several_endpoints_the_online_one_is_taken(fx: Client, stack: Stack, gone: str) -> None:
    """A list stands for the online one of them with most free capacity, chosen before signing; a name that does not exist is an error."""
    for names in ([gone, "dev"], ["dev", gone], [gone, stack.endpoint_id]):
        task = fx.on(names).submit(double, 4)
        assert await task == 8
        assert task.endpoint == "dev"
    assert [one async for one in fx.on([gone, "dev"]).map(double, range(3))] == [0, 2, 4]
    with pytest.raises(errors.NotFound, match="nowhere"):
        await fx.on(["dev", "nowhere"]).submit(double, 1)


async def test_an_offline_endpoint_is_waited_for_or_not(fx: Client, gone: str, capfd: pytest.CaptureFixture[str]) -> None:
    """offline="wait" says so in one line and waits; offline="fail" is EndpointOffline, and nothing is sent."""
    waiting = [fx.on(gone).submit(double, number) for number in range(3)]
    await fx.flush()
    assert [line for line in capfd.readouterr().err.splitlines() if gone in line] == [
        f"funcmq: {gone}: endpoint offline; tasks for it wait until it is back."
    ]
    assert {task.waiting_for for task in waiting} == {"endpoint offline"}
    refused = fx.on(gone, offline="fail").submit(double, 1)
    with pytest.raises(errors.EndpointOffline, match=gone):
        await refused
    assert refused.id not in [view.id for view in await fx.tasks(limit=10)]
    assert await fx.on("dev", offline="fail").submit(double, 1) == 2
    assert await fx.on([gone, "dev"], offline="fail").submit(double, 1) == 2
    assert await fx.on(gone).cancel() == 3


async def test_retry_is_a_number_of_further_tries(fx: Client, tmp_path: Path) -> None:
    """retry=2 runs a function that raises up to twice more, on its own error's word; without it, once."""
    assert await fx.on(retry=2).submit(stumble, str(tmp_path / "a"), 2) == 3
    task = fx.on(retry=1).submit(stumble, str(tmp_path / "b"), 5)
    with pytest.raises(ValueError, match="try 2"):
        await task
    for retry in (0, "infra", "never"):
        with pytest.raises(ValueError, match="try 1"):
            await fx.on(retry=retry).submit(stumble, str(tmp_path / f"c{retry}"), 1)


async def test_expires_is_the_time_until_it_must_have_started(fx: Client, tmp_path: Path) -> None:
    """What has not started by then ends as TaskExpired and never runs; what has started in time goes on."""
    started = fx.on(expires="5s").submit(nap, 1.0)
    async with busy(fx, tmp_path):
        late = fx.on(expires=0.5).submit(append, str(tmp_path / "late"), "ran")
        with pytest.raises(errors.TaskExpired):
            await late
    assert late.state == "expired"
    assert not (tmp_path / "late").exists()
    assert await started == 1.0


async def test_priority_orders_a_users_own_tasks(fx: Client, tmp_path: Path) -> None:
    """Of what waits for a worker, the highest priority starts first, as far as two workers can tell."""
    path = tmp_path / "order"
    async with busy(fx, tmp_path):
        order = [fx.on(priority=priority).submit(append, str(path), f"{priority}") for priority in (0, -10, 10, 3)]
        await fx.flush()
        while {task.state for task in order} != {"received"}:
            await asyncio.sleep(0.02)
    await fx.gather(order)
    lines = [int(line) for line in path.read_text().split()]
    assert lines.index(10) < lines.index(0)
    assert lines.index(3) < lines.index(-10)


async def test_a_key_names_one_task(fx: Client) -> None:
    """Two submissions with one key are one task, in one burst, later, and from another client."""
    view = fx.on(key="run-" + new_hex())
    first, second = view.submit(time.time_ns), view.submit(time.time_ns)
    assert await first == await second
    assert first.id == second.id
    third = view.submit(time.time_ns)
    assert await third == await first
    async with Client() as other:
        again = other.on(key=view.scope.key).submit(time.time_ns)
        assert await again == await first
        assert again.group == first.group != other.group


async def test_bad_values_are_refused_at_once(fx: Client) -> None:
    """Each at the line that says it, by its name, before anything is sent."""
    for option, value in (("key", ""), ("key", "x" * 256), ("retry", -1), ("expires", "8d"), ("priority", 11), ("offline", "maybe")):
        with pytest.raises(ValueError, match=option):
            fx.on(**{option: value})
    for option, value in (("key", 3), ("walltme", 1), ("endpoint", []), ("priority", "high"), ("retry", 1.5)):
        with pytest.raises(TypeError, match=option):
            fx.on(**{option: value})
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            [one async for one in fx.map(double, [1], chunksize=wrong)]
    with pytest.raises(TypeError, match="chunksize"):
        [one async for one in fx.map(double, [1], chunksize=1.5)]  # type: ignore[arg-type]
    task = fx.submit(double, 1)
    for place in (task, [task], {"deep": (1, task)}):
        with pytest.raises(TypeError, match=task.id[-8:]):
            fx.submit(print, place)
    with pytest.raises(TypeError, match="key"):
        [one async for one in fx.on(key="k").map(double, [1])]
    await task
