"""Waiting for many futures on an event loop, at the cost of one callback each."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar

from funcmq.client.chunks import Errors, check_errors
from funcmq.client.futures import TaskFuture

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Things put in from any thread, taken out on the event loop where it was made."""

    def __init__(self) -> None:
        self._things: collections.deque[T] = collections.deque()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._event = asyncio.Event()

    def put(self, thing: T) -> None:
        """Thread-safe."""
        self._things.append(thing)
        if threading.get_ident() == self._thread:
            self._event.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._event.set)

    async def get_all(self, timeout: float | None = None) -> list[T]:
        """What is there; waits for the first.  Nothing, after timeout seconds."""
        if not self._things:
            self._event.clear()
            if not self._things:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await self._event.wait()
        things = []
        while self._things:
            things.append(self._things.popleft())
        return things


def check(tasks: Iterable[TaskFuture[T]]) -> list[TaskFuture[T]]:
    """:raises TypeError: one of them is no TaskFuture."""
    tasks = list(tasks)
    for task in tasks:
        if not isinstance(task, TaskFuture):
            raise TypeError(f"TaskFutures are needed, not {type(task).__name__}.")
    return tasks


async def gather(tasks: Iterable[TaskFuture[T]], errors: Errors) -> list[Any]:
    """See `Client.gather`.  Cancelling it cancels no task."""
    check_errors(errors)
    tasks = check(tasks)
    countdown = _Countdown(len(tasks), stop_at_error=errors == "raise")
    for task in tasks:
        task.add_done_callback(countdown)
    await countdown.wait()
    outcomes = [(task.exception(0), task) for task in tasks]
    if errors == "skip":
        return [task.result(0) for error, task in outcomes if error is None]
    return [task.result(0) if error is None else error for error, task in outcomes]


class _Countdown:
    """A done callback for many futures.  `wait` returns when all have ended, or raises the first error where that is wanted."""

    def __init__(self, count: int, *, stop_at_error: bool) -> None:
        self._count, self._stop_at_error = count, stop_at_error
        self._ended: list[Any] = []
        self._mailbox: Mailbox[BaseException | None] = Mailbox()

    def __call__(self, future: TaskFuture[Any]) -> None:
        """Thread-safe: list.append is."""
        self._ended.append(None)
        if self._stop_at_error and (error := future.exception(0)) is not None:
            self._mailbox.put(error)
        elif len(self._ended) >= self._count:
            self._mailbox.put(None)

    async def wait(self) -> None:
        while self._count:
            for error in await self._mailbox.get_all():
                if error is not None:
                    raise error
                return


async def as_completed(tasks: Iterable[TaskFuture[T]]) -> AsyncIterator[TaskFuture[T]]:
    """See `Client.as_completed`."""
    tasks = check(tasks)
    ended: Mailbox[Any] = Mailbox()
    for task in tasks:
        task.add_done_callback(ended.put)
    left = len(tasks)
    while left:
        for task in await ended.get_all():
            left -= 1
            yield task
