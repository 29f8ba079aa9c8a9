"""TaskFuture: the answer to one task, which both threads and coroutines can wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from funcmq.broker.errors import TaskCancelled
from funcmq.broker.ids import created_at, short
from funcmq.broker.messages import Outcome, Slot

if TYPE_CHECKING:
    from funcmq.client.bundler import Sent
    from funcmq.client.options import Scope

T = TypeVar("T")


class FutureAsArgument(TypeError):
    """A TaskFuture was passed to another task."""


class Owner(Protocol):
    """What a future asks of the connection that it belongs to."""

    thread: int
    """Ident of the thread whose event loop resolves futures; 0 while there is none."""
    pid: int
    """The process of that thread."""

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

    # One of these is made for every task, so what is rarely set lives on the class.
    task_id: bytes
    endpoint_id: str = ""
    group: str = ""
    """Id of the task's group, '' until it is sent."""
    outcome: Outcome | None = None
    sent: Sent | None = None
    end: str = ""
    known: str = ""
    """What the store or the endpoint said last, where that is later than what `sent` knows."""
    cancel_wanted = False
    key: str = ""
    _woken: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] | None = None

    def __init__(
        self, owner: Owner, task_id: bytes, name: str, scope: Scope | None = None, call: tuple[str, Slot | None] = ("", None)
    ) -> None:
        super().__init__()
        self.owner, self.task_id, self.name, self.scope = owner, task_id, name, scope
        self.function, self.args = call

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

    def result(self, timeout: float | None = None) -> T:
        """Wait for the value, or raise what the task ended with.

        :raises RuntimeError: called on the thread that would have to deliver the result.
        :raises TimeoutError: not done within timeout seconds; the task goes on.
        """
        self._not_here(timeout)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As `result`, but returns the exception (None for a success)."""
        self._not_here(timeout)
        return super().exception(timeout)

    def _not_here(self, timeout: float | None) -> None:
        if timeout == 0 or self.done():
            return
        if os.getpid() != self.owner.pid:
            raise RuntimeError(f"{self!r} belongs to the parent process, which alone sees its result.")
        if threading.get_ident() == self.owner.thread:
            raise RuntimeError(f"result() of {self!r} would block the event loop that delivers it; use `await` instead.")

    def __await__(self) -> Generator[Any, None, T]:
        if not self.done():
            yield from self._wait().__await__()
        return super().result(0)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        entry = (threading.get_ident(), loop, loop.create_future())
        with self._condition:
            first = self._woken is None
            if self._woken is None:
                self._woken = []
            self._woken.append(entry)
        if first:
            self.add_done_callback(self._wake)
        elif self.done():
            return
        try:
            await entry[2]
        finally:
            with contextlib.suppress(ValueError):
                self._woken.remove(entry)

    def _wake(self, _: concurrent.futures.Future[T]) -> None:
        here = threading.get_ident()
        for thread, loop, waiter in list(self._woken or ()):
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
        with self._condition:
            if self.end or self.done():
                return False
            self.end = end
            self.outcome = outcome
        self.args = None
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(value)  # type: ignore[arg-type]
        return True

    def started(self) -> None:
        """The endpoint says that it runs.  For the connection's use."""
        self.known = "running"
        if not self.running() and not self.done():
            with contextlib.suppress(concurrent.futures.InvalidStateError, RuntimeError):
                self.set_running_or_notify_cancel()


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def cancelled_error(future: TaskFuture[Any]) -> TaskCancelled:
    """What a task that never left ends with."""
    return TaskCancelled("The task was cancelled before it was sent.", task=future.id)
