"""Every tool of asyncio and concurrent.futures that the interface lists, used as it is written there."""

import asyncio
import concurrent.futures
import time
from collections.abc import Iterator

import pytest
from tqdm import tqdm
from tqdm.asyncio import tqdm as async_tqdm

from funcmq import Client, Executor, TaskFuture, errors
from funcmq.broker.ids import new_hex
from tests.client_rig import double, fail, nap

pytestmark = pytest.mark.usefixtures("configured")

SOON_S = 30.0


@pytest.fixture
def ex(configured: None) -> Iterator[Executor]:
    with Executor() as executor:
        yield executor


# asyncio, with a Client


@pytest.mark.asyncio
async def test_asyncio_gather(fx: Client) -> None:
    """Results in order, exceptions in their places where they are asked for; the first one otherwise."""
    assert await asyncio.gather(*(fx.submit(double, number) for number in range(5))) == [0, 2, 4, 6, 8]
    value, error = await asyncio.gather(fx.submit(double, 1), fx.submit(fail, "so"), return_exceptions=True)
    assert value == 2
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match="so"):
        await asyncio.gather(fx.submit(double, 1), fx.submit(fail, "so"))


@pytest.mark.asyncio
async def test_asyncio_wait_for_and_timeout(fx: Client) -> None:
    """A wait that is timed out or cancelled leaves the task alone: it goes on to its result."""
    task = fx.submit(nap, 1.5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(task, 0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await task
    waiting = asyncio.ensure_future(task)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not task.cancelled()
    assert await asyncio.wait_for(task, SOON_S) == 1.5


@pytest.mark.asyncio
async def test_asyncio_task_group(fx: Client) -> None:
    """A TaskGroup awaits tasks of the fabric like any coroutine, and ends with their errors."""

    async def quadruple(number: int) -> int:
        return await fx.submit(double, await fx.submit(double, number))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(quadruple(number)) for number in range(4)]
    assert [task.result() for task in tasks] == [0, 4, 8, 12]

    async def one(task: TaskFuture[None]) -> None:
        await task

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(one(fx.submit(fail, "so")))
    assert isinstance(raised.value.exceptions[0], ValueError)


@pytest.mark.asyncio
async def test_asyncio_as_completed(fx: Client) -> None:
    """asyncio's own, ours, and tqdm's give each result once, those that end first first."""
    tasks = [fx.submit(nap, 1.0), fx.submit(double, 2)]
    assert [await one for one in asyncio.as_completed(tasks, timeout=SOON_S)] == [4, 1.0]
    assert [task async for task in fx.as_completed([*tasks, fx.submit(double, 3)])][-1].done()
    assert sorted([await one for one in async_tqdm.as_completed([fx.submit(double, n) for n in range(3)], disable=True)]) == [0, 2, 4]


@pytest.mark.asyncio
async def test_asyncio_wait_says_what_to_do_instead(fx: Client) -> None:
    """asyncio.wait takes no future that another thread may end: TypeError at once; wrapped, it works."""
    task = fx.submit(double, 4)
    with pytest.raises(TypeError, match="ensure_future"):
        await asyncio.wait([task])  # type: ignore[type-var]
    done, pending = await asyncio.wait([asyncio.ensure_future(task)], timeout=SOON_S)
    assert [one.result() for one in done] == [8]
    assert pending == set()


@pytest.mark.asyncio
async def test_a_thread_may_wait_for_a_clients_future(fx: Client) -> None:
    """result() blocks in any other thread, and raises in the client's own instead of dead-locking."""
    task = fx.submit(nap, 0.3)
    with pytest.raises(RuntimeError, match="await"):
        task.result()
    assert await asyncio.to_thread(task.result, SOON_S) == 0.3
    assert task.result() == 0.3


# concurrent.futures, with an Executor


def test_concurrent_futures_wait(ex: Executor) -> None:
    """Its three ways of waiting, and its time-out, which leaves tasks alone."""
    slow, quick, bad = ex.submit(nap, 1.5), ex.submit(double, 1), ex.submit(fail, "so")
    assert concurrent.futures.wait([slow], 0.01).not_done == {slow}
    first = concurrent.futures.wait([slow, quick], SOON_S, concurrent.futures.FIRST_COMPLETED)
    assert quick in first.done
    broken = concurrent.futures.wait([slow, bad], SOON_S, concurrent.futures.FIRST_EXCEPTION)
    assert bad in broken.done
    assert concurrent.futures.wait([slow, quick, bad], SOON_S).not_done == set()
    assert slow.result(0) == 1.5


def test_concurrent_futures_as_completed_and_tqdm(ex: Executor) -> None:
    """Each future once, as it ends, with a bar around it."""
    futures = [ex.submit(double, number) for number in range(20)]
    seen = list(tqdm(concurrent.futures.as_completed(futures, SOON_S), total=20, disable=True))
    assert sorted(future.result(0) for future in seen) == list(range(0, 40, 2))
    with pytest.raises(TimeoutError):
        list(concurrent.futures.as_completed([ex.submit(nap, 2)], 0.01))


@pytest.mark.asyncio
async def test_asyncio_wrap_future_and_run_in_executor(ex: Executor) -> None:
    """An Executor serves a foreign event loop: wrapped futures, run_in_executor, and a plain await."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SOON_S):
        assert await asyncio.wrap_future(ex.submit(double, 5)) == 10
        assert await loop.run_in_executor(ex, double, 4) == 8
        assert await asyncio.gather(ex.submit(double, 6), loop.run_in_executor(ex, double, 7)) == [12, 14]
        with pytest.raises(ValueError, match="so"):
            await loop.run_in_executor(ex, fail, "so")


def test_done_callbacks_and_cancel(ex: Executor) -> None:
    """A callback is called once, also when it is added late; cancel() of what runs asks its endpoint."""
    seen: list[object] = []
    future = ex.submit(double, 1)
    future.add_done_callback(seen.append)
    assert future.result(SOON_S) == 2
    future.add_done_callback(seen.append)
    assert seen == [future, future]
    sleeper = ex.submit(nap, 60)
    ex.flush()
    assert sleeper.cancel() is False
    with pytest.raises(concurrent.futures.CancelledError):
        sleeper.result(SOON_S)
    assert isinstance(sleeper.exception(), errors.TaskCancelled)


# Views


def test_leaving_a_view_waits_for_its_own(ex: Executor) -> None:
    """`with ex.on(…)` ends when what was submitted through it has ended, and shuts nothing else down."""
    other = ex.submit(nap, 2.0)
    with ex.on(group=new_hex()) as inner:
        mine = inner.submit(nap, 0.2)
        mapped = inner.map(double, range(3))
    assert mine.done()
    assert not other.done()
    assert list(mapped) == [0, 2, 4]
    with pytest.raises(RuntimeError, match="after shutdown"):
        inner.submit(double, 1)
    view = ex.on(group=new_hex())
    ended = view.submit(nap, 60)
    view.shutdown(cancel_futures=True)
    assert ended.cancelled()
    assert ex.submit(double, 3).result(SOON_S) == 6
    assert ex.on(group=new_hex()).submit(double, 4).result(SOON_S) == 8
    assert other.result(SOON_S) == 2.0


@pytest.mark.asyncio
async def test_leaving_a_clients_view_leaves_the_client(fx: Client) -> None:
    """`async with fx.on(…)` ends when all is accepted; the client goes on."""
    began = time.monotonic()
    async with fx.on(group=new_hex()) as inner:
        task = inner.submit(nap, 1.5)
    assert task.state != "pending"
    assert time.monotonic() - began < SOON_S
    assert await fx.submit(double, 2) == 4
    assert await task == 1.5


def test_sync_twins(ex: Executor) -> None:
    """Everything that a Client can look up, an Executor can, by the same words and without an event loop."""
    view = ex.on(group=f"twins/{new_hex()}")
    futures = [view.submit(double, number) for number in range(3)]
    assert [future.result(SOON_S) for future in futures] == [0, 2, 4]
    assert [future.result(SOON_S) for future in ex.attach(view.group)] == [0, 2, 4]
    assert [future.id for future in view.attach()] == [future.id for future in futures]
    assert ex.task(futures[0].id[-8:]).result(SOON_S) == 0
    assert len(view.tasks(group=view.group, state="succeeded", function=double, endpoint="dev", since="10m", limit=2)) == 2
    assert ex.retry(futures[2].id).result(SOON_S) == 4
    assert [row.name for row in ex.endpoints() if row.online] == ["dev"]
    assert ex.cancel(view.group) == 0
    assert ex.submit(ex.register(double), 5).result(SOON_S) == 10
