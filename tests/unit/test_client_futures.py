"""Laws of TaskFuture: threads and coroutines may wait for it, and no wait ever harms the task."""

import asyncio
import concurrent.futures
import os
import pickle
import threading
from typing import Any

import cloudpickle
import pytest

from funcmq.broker.errors import TaskCancelled
from funcmq.broker.ids import new_id
from funcmq.client import waiting
from funcmq.client.futures import FutureAsArgument, TaskFuture


class Owner:
    """An owner whose loop runs on the thread that made it, if `here`."""

    def __init__(self, here: bool = False) -> None:
        self.thread = threading.get_ident() if here else 0
        self.pid = os.getpid()
        self.guard = threading.Lock()
        self.cancels: list[str] = []

    def cancel_task(self, future: TaskFuture[Any]) -> bool:
        self.cancels.append(future.id)
        return False

    def explain(self, future: TaskFuture[Any]) -> str:
        return "a reason"

    def endpoint_name(self, future: TaskFuture[Any]) -> str:
        return "polaris"


def future_of(owner: Owner | None = None) -> TaskFuture[Any]:
    return TaskFuture(owner or Owner(), new_id(), "f")


@pytest.mark.asyncio
async def test_a_cancelled_wait_leaves_the_task_alone() -> None:
    """Time-outs and cancelled waits of every kind ask nobody to cancel, and the future still ends with its value."""
    owner = Owner(here=True)
    future = future_of(owner)

    async def wait() -> Any:
        return await future

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.gather(future, wait())
    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert owner.cancels == []
    future.finish("succeeded", 7)
    assert await future == 7
    assert not future._woken


@pytest.mark.asyncio
async def test_all_ways_of_waiting_see_the_value() -> None:
    """await, gather, TaskGroup, as_completed, wrap_future and a thread's result() all give the same."""
    future = future_of()

    async def wait() -> Any:
        return await future

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait()) for _ in range(2)]
        tasks.append(group.create_task(asyncio.to_thread(future.result, 5)))
        many = asyncio.gather(future, asyncio.wrap_future(future))
        asyncio.get_running_loop().call_later(0.01, future.finish, "succeeded", "v")
        for ended in asyncio.as_completed([future]):
            assert await ended == "v"
    assert {task.result() for task in tasks} == {"v"}
    assert await many == ["v", "v"]
    assert concurrent.futures.wait([future]).done == {future}


@pytest.mark.asyncio
async def test_a_foreign_thread_wakes_the_loop() -> None:
    """A future that ends on another thread wakes those who await it here."""
    future = future_of()
    threading.Timer(0.01, future.finish, ("succeeded", 3)).start()
    async with asyncio.timeout(5):
        assert await future == 3


def test_result_on_the_delivering_thread_raises() -> None:
    """result() and exception() where they would block their own delivery raise instead; after the end they answer."""
    future = future_of(Owner(here=True))
    with pytest.raises(RuntimeError, match="await"):
        future.result()
    with pytest.raises(RuntimeError, match="await"):
        future.exception(1.0)
    future.finish("succeeded", 1)
    assert future.result() == 1


def test_a_future_is_no_argument() -> None:
    """Pickling a future raises a TypeError that names it."""
    future = future_of()
    with pytest.raises(FutureAsArgument, match=future.id[-8:]):
        pickle.dumps(future)
    with pytest.raises(FutureAsArgument):
        cloudpickle.dumps([future])


def test_it_ends_once() -> None:
    """The first end stands; later ones are told so."""
    future = future_of()
    assert future.finish("succeeded", 1)
    assert not future.finish("failed", error=ValueError())
    assert (future.result(), future.state, future.cancelled()) == (1, "succeeded", False)


def test_a_cancelled_future_says_so() -> None:
    """It ends as TaskCancelled, which is also the standard library's CancelledError."""
    future = future_of()
    future.finish("cancelled", error=TaskCancelled())
    assert future.cancelled()
    assert future.done()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert list(concurrent.futures.as_completed([future], timeout=1)) == [future]


@pytest.mark.asyncio
async def test_gather_knows_three_ways_with_errors() -> None:
    """ "return" keeps places, "skip" leaves out, "raise" raises as soon as one fails."""
    good, bad, never = future_of(), future_of(), future_of()
    good.finish("succeeded", 1)
    error = ValueError("bad")
    bad.finish("failed", error=error)
    assert await waiting.gather([bad, good], "return") == [error, 1]
    assert await waiting.gather([bad, good], "skip") == [1]
    with pytest.raises(ValueError, match="bad"):
        await waiting.gather([never, bad, good], "raise")
    with pytest.raises(ValueError, match="errors"):
        await waiting.gather([good], "ignore")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int"):
        await waiting.gather([3], "raise")  # type: ignore[list-item]


@pytest.mark.asyncio
async def test_as_completed_follows_the_ends() -> None:
    """Futures come in the order in which they end."""
    futures = [future_of() for _ in range(3)]
    for index in (2, 0, 1):
        futures[index].finish("succeeded", index)
    loop_futures = [future async for future in waiting.as_completed(futures)]
    assert sorted(future.result() for future in loop_futures) == [0, 1, 2]
    first, second = future_of(), future_of()
    coming = waiting.as_completed([first, second])
    second.finish("succeeded", "b")
    assert await anext(coming) is second
    first.finish("succeeded", "a")
    assert await anext(coming) is first


def test_its_repr_tells_the_state() -> None:
    """Short id, name, state and endpoint are what a person looks for."""
    future = future_of()
    future.started()
    assert repr(future).startswith(f"<TaskFuture {future.id[-8:]} f: running on polaris for")
    assert future.running()
    assert future.waiting_for == "a reason"
