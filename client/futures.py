"""TaskFuture: the answer to one task, which both threads and coroutines can wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from funcmq.broker.errors import TaskCancelled
from funcmq.broker.ids import created_at, short
from funcmq.broker.messages import Outcome, Slot

if TYPE_CHECKING:
    from funcmq.client.bundler import Sent
    from funcmq.client.options import Scope

T = TypeVar("T")
log = logging.getLogger("funcmq.client")

# the words of concurrent.futures, whose own functions compare them
_PENDING, _RUNNING, _FINISHED = "PENDING", "RUNNING", "FINISHED"
_NOBODY: list[Any] = []
"""Stands for the empty lists of futures that nobody waits for; nothing is ever added to it."""


class FutureAsArgument(TypeError):
    """A TaskFuture was passed to another task."""


class Owner(Protocol):
    """What a future asks of the connection that it belongs to."""

    thread: int
    """Ident of the thread whose event loop resolves futures; 0 while there is none."""
    pid: int
    """The process of that thread."""
    guard: threading.Lock
    """Held while the state of a future changes; for moments only, and nothing foreign is called under it."""

    def cancel_task(self, future: TaskFuture[Any]) -> bool:
        """Drop a task that was not sent (True), or ask its endpoint to end it (False).  Thread-safe."""

    def explain(self, future: TaskFuture[Any]) -> str:
        """In one sentence, why the task has not ended.  Thread-safe; returns what is known now and looks again in the background."""

    def endpoint_name(self, future: TaskFuture[Any]) -> str:
        """Name of the task's endpoint."""


class TaskFuture(concurrent.futures.Future[T]):
    """A task that was submitted.  Await it, or use it as any `concurrent.futures.Future`.

    A wait that is cancelled or times out leaves the task alone; only `cancel()` ends it.  Made by `submit`, never by hand.
    """

    # One of these is made for every task.  The standard library's own __init__ makes a Condition, which costs more than all the rest: here
    # it comes with the first thread that waits (`_condition`), and whatever is rarely set lives on the class.
    task_id: bytes
    endpoint_id: str = ""
    group: str = ""
    """Id of the task's group, '' until it is sent."""
    outcome: Outcome | None = None
    sent: Sent | None = None
    end: str = ""
    known: str = ""
    """What the store or the endpoint said last, where that is later than what `sent` knows."""
    place: tuple[int, str] = (0, "")
    """Since when it is said to run (ms), and on which host."""
    cancel_wanted = False
    key: str = ""
    _state = _PENDING
    _result: T | None = None
    _exception: BaseException | None = None
    _waiters: list[Any] = _NOBODY
    _done_callbacks: list[Callable[[Any], object]] = _NOBODY
    _made: threading.Condition | None = None
    _woken: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] | None = None

    def __init__(
        self, owner: Owner, task_id: bytes, name: str, scope: Scope | None = None, call: tuple[str, Slot | None] = ("", None)
    ) -> None:
        self.owner, self.task_id, self.name, self.scope = owner, task_id, name, scope
        self.function, self.args = call

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """What threads wait on: `result()`, `concurrent.futures.wait` and `as_completed` take it before anything else."""
        with self.owner.guard:
            if self._made is None:
                self._waiters = []
                self._made = threading.Condition()
            return self._made

    @property
    def id(self) -> str:
        """32 hex digits.  It can change once: where the task's `key` was used before, the future stands for that task."""
        return self.task_id.hex()

    @property
    def state(self) -> str:
        """`pending` (not accepted yet), accepted, published, received, running; then succeeded, failed, cancelled, expired or lost."""
        if self.end:
            return self.end
        if self.known:
            return self.known
        return self.sent.state if self.sent else "pending"

    @property
    def waiting_for(self) -> str:
        """In one sentence, what the task waits for; '' when it has ended.  A look at it refreshes it in the background."""
        return "" if self.done() else self.owner.explain(self)

    @property
    def endpoint(self) -> str:
        """Name of the endpoint that runs it; '' while that is not known."""
        return self.owner.endpoint_name(self)

    @property
    def timeline(self) -> dict[str, float]:
        """Seconds since the epoch of what has happened so far, in order: submitted, accepted, received, started, ended."""
        stamps = {"submitted": created_at(self.task_id)}
        if self.sent and self.sent.accepted:
            stamps["accepted"] = self.sent.accepted
        if self.outcome:
            told = {"received": self.outcome.received, "started": self.outcome.started, "ended": self.outcome.ended}
            stamps |= {name: stamp / 1000 for name, stamp in told.items() if stamp}
        return stamps

    @property
    def stdout(self) -> str:
        """The tail of what the task printed, '' until it has ended."""
        return self.outcome.stdout if self.outcome else ""

    @property
    def stderr(self) -> str:
        """The tail of what the task wrote to stderr, '' until it has ended."""
        return self.outcome.stderr if self.outcome else ""

    @property
    def host(self) -> str:
        """Name of the host that ran it, '' until it has ended."""
        return self.outcome.host if self.outcome else ""

    def cancel(self) -> bool:
        """True when the task was not yet sent: it never runs.  Otherwise ask its endpoint, and return False: the future ends as
        `TaskCancelled`, or with its result if that was first."""
        return False if self.done() else self.owner.cancel_task(self)

    def cancelled(self) -> bool:
        """Whether it ended as `TaskCancelled`."""
        return self.end == "cancelled"

    def done(self) -> bool:
        """Whether it has ended."""
        return self._state is _FINISHED

    def running(self) -> bool:
        """Whether the endpoint has said that it runs."""
        return self._state is _RUNNING

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value, or raise what the task ended with.

        :raises RuntimeError: called on the thread that would have to deliver the result.
        :raises TimeoutError: not done within timeout seconds; the task goes on.
        """
        if self._state is _FINISHED:
            return self._now()
        self._not_here(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `result`, but returns the exception (None for a success)."""
        if self._state is _FINISHED:
            return self._exception
        self._not_here(timeout)
        return super().exception(timeout)

    def _now(self) -> T:
        if self._exception is not None:
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # noqa: PLW0642  as the standard library does: the traceback would hold it for ever
        return self._result  # type: ignore[return-value]

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` when it has ended, on the thread that ends it; at once where it has.

        :raises TypeError: asyncio.wait asks, which cannot work.
        """
        if getattr(fn, "__module__", "") == "asyncio.tasks":  # asyncio.wait: its callback may run on its own loop only
            raise TypeError("asyncio.wait takes asyncio's own futures: give it asyncio.ensure_future(task), or use `gather`.")
        with self.owner.guard:
            if self._state is not _FINISHED:
                if self._done_callbacks is _NOBODY:
                    self._done_callbacks = []
                self._done_callbacks.append(fn)
                return
        self._call(fn)

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:
            log.exception("a callback of %r failed", self)

    def _not_here(self, timeout: float | None) -> None:
        if timeout == 0:
            return
        if os.getpid() != self.owner.pid:
            raise RuntimeError(f"{self!r} belongs to the parent process, which alone sees its result.")
        if threading.get_ident() == self.owner.thread:
            raise RuntimeError(f"result() of {self!r} would block the event loop that delivers it; use `await` instead.")

    def __await__(self) -> Generator[Any, None, T]:
        if self._state is not _FINISHED:
            yield from self._wait().__await__()
        return self._now()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        entry = (threading.get_ident(), loop, loop.create_future())
        with self.owner.guard:
            if self._state is _FINISHED:
                return
            if self._woken is None:
                self._woken = []
            self._woken.append(entry)
        try:
            await entry[2]
        finally:
            with contextlib.suppress(ValueError):
                self._woken.remove(entry)

    def _wake(self, woken: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]]) -> None:
        here = threading.get_ident()
        for thread, loop, waiter in list(woken):
            if thread == here:
                _release(waiter)
            else:
                with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits there any more
                    loop.call_soon_threadsafe(_release, waiter)

    def __reduce__(self) -> NoReturn:
        raise FutureAsArgument(f"{self!r} is not a value yet, and cannot be an argument of another task: await it, and pass its result.")

    def __repr__(self) -> str:
        age = f" for {time.time() - created_at(self.task_id):.1f} s" if not self.done() else ""
        where = f" on {self.endpoint}" if self.endpoint else ""
        return f"<TaskFuture {short(self.id)} {self.name}: {self.state}{where}{age}>"

    def finish(self, end: str, value: T | None = None, error: BaseException | None = None, outcome: Outcome | None = None) -> bool:
        """End the future, once: False when it has ended before.  For the connection's use."""
        with self.owner.guard:
            if self._state is _FINISHED:
                return False
            self.end, self.outcome, self.args = end, outcome, None
            self._result, self._exception = value, error
            self._state = _FINISHED
        if self._made is not None:
            self._tell_threads(self._made)
        if self._woken is not None:
            self._wake(self._woken)
        for fn in self._done_callbacks:
            self._call(fn)
        return True

    def _tell_threads(self, condition: threading.Condition) -> None:
        with condition:
            for waiter in self._waiters:
                (waiter.add_exception if self._exception is not None else waiter.add_result)(self)
            condition.notify_all()

    def started(self) -> None:
        """The endpoint says that it runs.  For the connection's use."""
        with self.owner.guard:
            if self._state is _PENDING:
                self._state = _RUNNING
        self.known = "running"


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def cancelled_error(future: TaskFuture[Any]) -> TaskCancelled:
    """What a task that never left ends with."""
    return TaskCancelled("The task was cancelled before it was sent.", task=future.id)
