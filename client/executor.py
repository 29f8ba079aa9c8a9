"""Executor: the same fabric for programs without an event loop, as a real `concurrent.futures.Executor`."""

from __future__ import annotations

import concurrent.futures
import os
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, Unpack

from funcmq.broker import api
from funcmq.client import chunks
from funcmq.client.background import EXIT_S, Background
from funcmq.client.chunks import Chunk, Errors
from funcmq.client.client import GLANCE_S, LEAVE_S, Client, say_how_to_attach, unwrapped
from funcmq.client.connection import Connection
from funcmq.client.futures import TaskFuture
from funcmq.client.lists import Since
from funcmq.client.options import UNSET, Given, OnOptions, Unset, narrow
from funcmq.client.progress import meter

P = ParamSpec("P")
T = TypeVar("T")

HIGH_WATER = 100_000
"""Open tasks at which submit() begins to block."""


class _Shared:
    """What an Executor and its views share.  In a forked child everything is made anew: threads do not survive a fork."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.shut = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._background: Background | None = None
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The connection, with its thread running."""
        if self._connection is None or os.getpid() != self._pid:
            self._begin()
        assert self._connection is not None
        return self._connection

    @property
    def background(self) -> Background:
        """The thread."""
        self.connection()
        assert self._background is not None
        return self._background

    @property
    def begun(self) -> bool:
        """Whether there is a thread in this process."""
        return self._background is not None and os.getpid() == self._pid and self._background.alive

    def _begin(self) -> None:
        if os.getpid() != self._pid:
            self._pid, self._lock, self._connection, self.shut = os.getpid(), threading.Lock(), None, False
        with self._lock:
            if self._connection is None:
                self._background = Background(self.leave)
                self._connection = Connection(self.client._connection.settings, self._background.loop)

    async def leave(self, patience: float = EXIT_S) -> None:
        """Send what was submitted, and disconnect."""
        if self._connection is not None:
            await self._connection.leave(patience)


class Executor(concurrent.futures.Executor):
    """Runs functions far away.  `with Executor(…)` waits for all results, as in the standard library; with `shutdown(wait=False)` or
    without `with`, tasks go on alone.  A view made by `on()` can be used and shut down in the same way: that concerns the tasks submitted
    through it, and leaves the others and the connection alone.

    Parameters and errors as for `Client`.  Thread-safe; in a forked child it connects anew.
    """

    def __init__(
        self,
        endpoint: str | Iterable[str] | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        key: str | Path | None = None,
        profile: str | None = None,
    ) -> None:
        self._client = Client(endpoint, url=url, token=token, key=key, profile=profile)
        self._shared = _Shared(self._client)
        self._view_shut: bool | None = None

    def on(self, endpoint: str | Iterable[str] | Unset | None = UNSET, **options: Unpack[OnOptions]) -> Executor:
        """See `Client.on`."""
        given = Given.of(endpoint, options)
        view = object.__new__(type(self))
        view._client, view._shared, view._view_shut = self._client.view(narrow(self._client.scope, given)), self._shared, False
        return view

    def _here(self) -> Client:
        """The client of this view, on the connection of this process."""
        if self._shared.shut or self._view_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        connection = self._shared.connection()
        if self._client._connection is not connection:
            self._client = self._client.view(self._client.scope, connection)
        return self._client

    def submit(self, fn: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """See `Client.submit`.  Blocks while more than 100,000 tasks are open.

        :raises RuntimeError: after shutdown.
        """
        client = self._here()
        client._connection.fabric.wait_for_room(HIGH_WATER)
        return client.submit(fn, *args, **kwargs)

    def map(
        self,
        fn: Callable[..., T] | str,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> Iterator[T]:
        """As the standard library's; see also `Client.map`.  The first calls are submitted at once.

        :param timeout: seconds from now on, after which the iterator raises TimeoutError.
        :param buffersize: calls submitted and not yet taken at most.
        """
        chunks.check(chunksize, buffersize, errors)
        client, deadline = self._here(), None if timeout is None else time.monotonic() + timeout
        items, star, total = chunks.zipped(iterables)
        plan, recorded = self._run(client.plan_map(unwrapped(fn), (star, total), chunksize, buffersize, (ordered, errors)))
        ended: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        mapping = chunks.Mapping(items, plan, lambda value: client.send_chunk(recorded, value), ended.put)
        mapping.top_up()
        return _outcomes(mapping, ended, deadline, total, getattr(recorded, "name", "map") if progress else "")

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._shared.background.run(work)

    # The sync twins

    @property
    def group(self) -> str:
        """See `Client.group`; connects to find out."""
        client = self._here()
        self._run(client._connection.ready())
        return client.group

    def attach(self, group: str | None = None) -> list[TaskFuture[Any]]:
        """See `Client.attach`."""
        client = self._here()

        async def collect() -> list[TaskFuture[Any]]:
            return [future async for future in client.attach(group)]

        return self._run(collect())

    def task(self, identifier: str) -> TaskFuture[Any]:
        """See `Client.task`."""
        client = self._here()

        async def look() -> TaskFuture[Any]:
            return client.task(identifier)

        return self._run(look())

    def tasks(
        self,
        state: str | None = None,
        group: str | None = None,
        endpoint: str | None = None,
        function: str | Callable[..., Any] | None = None,
        since: Since | None = None,
        limit: int = 100,
    ) -> list[api.TaskView]:
        """See `Client.tasks`."""
        return self._run(self._here().tasks(state, group, endpoint, function, since, limit))

    def retry(self, identifier: str) -> TaskFuture[Any]:
        """See `Client.retry`."""
        return self._run(self._here().retry(identifier))

    def endpoints(self) -> list[api.EndpointView]:
        """See `Client.endpoints`."""
        return self._run(self._here().endpoints())

    def cancel(self, group: str | None = None) -> int:
        """See `Client.cancel`."""
        return self._run(self._here().cancel(group))

    def register(self, fn: Callable[..., Any], name: str | None = None) -> str:
        """See `Client.register`."""
        return self._run(self._here().register(fn, name))

    def flush(self) -> None:
        """See `Client.flush`."""
        self._run(self._here().flush())

    # Leaving

    def __enter__(self) -> Executor:
        self._run(self._here()._connection.ready())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._interrupted()
        else:
            self.shutdown(wait=True)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more.  With `wait`, return when all have ended; without, they go on, and this process sends what is left of them
        before it exits.

        :param cancel_futures: cancel what has not ended, far away too.
        """
        if self._view_shut is None:
            self._shared.shut = True
        else:
            self._view_shut = True
        if not self._shared.begun:
            return
        if cancel_futures:
            for future in self._open():
                future.cancel()
        if not wait:
            return
        try:
            while open_futures := self._open():
                concurrent.futures.wait(open_futures)
        except KeyboardInterrupt:
            self._interrupted()
            raise
        if self._view_shut is None:
            self._end(EXIT_S)

    def _open(self) -> list[TaskFuture[Any]]:
        """What has not ended: of all, or of what was submitted through this view."""
        open_futures = self._shared.connection().last.inbox.open
        if self._view_shut is None:
            return open_futures
        return [future for future in open_futures if self._client.sent(future)]

    def _interrupted(self) -> None:
        """Ctrl-C: tasks go on, and the person learns how to see them again."""
        self._shared.shut = True
        if self._shared.begun:
            connection = self._shared.connection()
            if open_futures := connection.last.inbox.open:
                say_how_to_attach(connection, open_futures, "for task in Executor()")
            self._end(LEAVE_S)

    def _end(self, patience: float) -> None:
        background = self._shared.background
        background.run(self._shared.leave(patience))
        background.stop()


def _outcomes(
    mapping: chunks.Mapping, ended: queue.SimpleQueue[Chunk], deadline: float | None, total: int | None, label: str
) -> Iterator[Any]:
    try:
        with meter(label, total, wanted=bool(label)) as shown:
            while not mapping.finished:
                for values, error in mapping.turn(_next(ended, deadline, GLANCE_S if label else None)):
                    yield from values
                    if error is not None:
                        raise error
                shown.show(mapping.done, mapping.failed, mapping.reason if label else "")
    except (GeneratorExit, Exception):
        mapping.cancel()
        raise


def _next(ended: queue.SimpleQueue[Chunk], deadline: float | None, glance: float | None) -> list[Chunk]:
    """The next chunk that has ended; nothing after `glance` seconds.

    :raises TimeoutError: the deadline is over.
    """
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    waits = [wait for wait in (left, glance) if wait is not None]
    try:
        return [ended.get(timeout=min(waits, default=None))]
    except queue.Empty:
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError from None
        return []
