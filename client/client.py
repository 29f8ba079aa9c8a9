"""Client: the asyncio face of a fabric."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, Unpack, overload
from urllib.parse import urlencode

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.functions import Recorded
from funcmq.broker.ids import group_id, is_id
from funcmq.broker.settings import resolve
from funcmq.client import chunks, waiting
from funcmq.client.chunks import Chunk, Errors, Plan
from funcmq.client.connection import Connection
from funcmq.client.fabric import Standing
from funcmq.client.functions import Function
from funcmq.client.futures import TaskFuture
from funcmq.client.options import UNSET, Given, OnOptions, Scope, Unset, narrow, of_kind
from funcmq.client.progress import meter

P = ParamSpec("P")
T = TypeVar("T")

LEAVE_S = 5.0
"""How long a client that is left by an exception goes on trying to send what was submitted."""
GLANCE_S = 1.0
"""Between two looks at why nothing moves, for a progress bar."""
PAGE = 1000
FEW_WORKERS = 4
MANY_WORKERS = 64


class Client:
    """Submits functions and awaits their results.  Use it in `async with`, which ends when everything is accepted and leaves tasks
    running; or without, as in a notebook: it connects at first use.

    :param endpoint: where tasks run unless `on()` says otherwise.  `url`, `token`, `key` (path of the signing key) and `profile` say
        which fabric; what is not given comes from the environment, then from the profile.
    :raises ConfigurationError: no fabric is configured.
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
        settings = resolve(url, token, str(key) if key is not None else None, endpoint if isinstance(endpoint, str) else None, profile)
        self._connection = Connection(settings)
        self.scope = narrow(Scope(), Given(endpoint=endpoint or settings.endpoint))
        self._chunk_scope: Scope | None = None

    def on(self, endpoint: str | Iterable[str] | Unset | None = UNSET, **options: Unpack[OnOptions]) -> Client:
        """A view of this client whose tasks run there and so; it shares the connection.  Options not given stay as they are here.

        :raises TypeError, ValueError: an option that does not exist, or a value that it cannot have.
        """
        given = Given.of(endpoint, options)
        return self.view(narrow(self.scope, given))

    def view(self, scope: Scope, connection: Connection | None = None) -> Client:
        """A client with this scope, on the same connection or another one."""
        view = object.__new__(type(self))
        view._connection, view.scope, view._chunk_scope = connection or self._connection, scope, None
        return view

    async def __aenter__(self) -> Client:
        await self._connection.ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        open_futures = self._connection.last.inbox.open
        if open_futures and kind is not None and issubclass(kind, KeyboardInterrupt | asyncio.CancelledError):
            say_how_to_attach(self.group, len(open_futures))
        await self._connection.leave(None if kind is None else LEAVE_S)

    def __repr__(self) -> str:
        return f"<Client {self._connection.settings.url} on {self.scope.endpoint or 'no endpoint'}, group {self.group}>"

    # Submitting

    def submit(self, fn: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Run `fn(*args, **kwargs)` far away; every argument is fn's.  Returns at once.  What cannot be sent is the future's error;
        a coroutine function gives its coroutine's result.  Thread-safe once it has an event loop.

        :raises TypeError: fn cannot be called, or an argument is a TaskFuture.
        """
        return self._send(self.scope, unwrapped(fn), [list(args), kwargs])

    def _send(self, scope: Scope, function: Function, value: list[Any]) -> TaskFuture[Any]:
        return self._connection.fabric.submit(scope, function, value)

    async def map(
        self,
        fn: Callable[..., T] | str,
        /,
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        ordered: bool = True,
        max_inflight: int | None = None,
        errors: Errors = "raise",
        progress: bool = False,
    ) -> AsyncIterator[T]:
        """The results of `fn(x)` for all x (of `fn(x, y)` for several iterables), many calls to a task.

        :param chunksize: calls per task; None: about a second of work, found out on the way (with a walltime, which is a task's: one call).
        :param ordered: in the order of the inputs; otherwise as they end.
        :param max_inflight: calls submitted and not yet given at most; None: enough to keep the workers busy.
        :param errors: "raise" ends with the first error and cancels the rest, "return" gives exceptions in their places, "skip" leaves
            them out.
        :param progress: show a bar on stderr.
        """
        chunks.check(chunksize, max_inflight, errors)
        items, star, total = chunks.zipped(iterables)
        plan, recorded = await self.plan_map(unwrapped(fn), (star, total), chunksize, max_inflight, (ordered, errors))
        ended: waiting.Mailbox[Chunk] = waiting.Mailbox()
        mapping = chunks.Mapping(items, plan, lambda value: self.send_chunk(recorded, value), ended.put)
        with meter(getattr(recorded, "name", "map"), total, wanted=progress) as shown:
            async for value in _run(mapping, ended, shown, errors, glance=progress):
                yield value

    async def plan_map(
        self, fn: Function, shape: tuple[bool, int | None], chunksize: int | None, most: int | None, how: tuple[bool, Errors]
    ) -> tuple[Plan, Recorded | str]:
        """How to map, and the function, recorded once for all chunks.  For the use of `map` here and of Executor.

        :param shape: whether items are tuples of arguments, and their number where known.
        :param how: whether in order, and what becomes of errors.
        """
        if self.scope.key:
            raise TypeError("map() takes no key: a key names one task.")
        recorded = fn if isinstance(fn, str | Recorded) else self._connection.fabric.functions.record(fn, self.scope.by_value)
        if chunksize is None and self.scope.how.walltime_s:
            chunksize = 1
        workers = await self._workers(await self._connection.ready())
        return Plan(*shape, workers, chunksize, most or 0, *how, self.scope.how.retry != "never"), recorded

    def send_chunk(self, recorded: Recorded | str, value: list[Any]) -> TaskFuture[Any]:
        """Submit `[star, items]` as one task."""
        if self._chunk_scope is None:
            self._chunk_scope = of_kind(self.scope, "chunk")
        return self._send(self._chunk_scope, recorded, value)

    async def _workers(self, standing: Standing) -> int:
        view = await standing.directory.resolve(self.scope.endpoint, self.scope.offline)
        now = sum(pool.workers for pool in view.pools)
        return now or min(MANY_WORKERS, sum(pool.capacity for pool in view.pools)) or FEW_WORKERS

    # Waiting

    async def gather(self, tasks: Iterable[TaskFuture[T]], errors: Errors = "raise") -> list[Any]:
        """The results of all, in this order.  With "raise" the first error is raised as soon as it is there (the others go on),
        "return" puts exceptions in their places, "skip" leaves them out."""
        return await waiting.gather(tasks, errors)

    def as_completed(self, tasks: Iterable[TaskFuture[T]]) -> AsyncIterator[TaskFuture[T]]:
        """Each of the tasks as it ends."""
        return waiting.as_completed(tasks)

    async def flush(self) -> None:
        """Return when all that was submitted before is accepted, or has failed."""
        await (await self._connection.ready()).sender.flush()

    # Looking around

    @property
    def group(self) -> str:
        """Id of the group of this view's tasks: what `attach` wants."""
        return self._connection.group_id(self.scope.group)

    async def register(self, fn: Callable[..., Any]) -> str:
        """Send a function ahead; its id can be submitted in its place."""
        standing = await self._connection.ready()
        recorded = self._connection.fabric.functions.record(unwrapped(fn), self.scope.by_value)
        return (await standing.front.send_raw("/functions", recorded.record, api.FunctionAnswer)).id

    async def attach(self, group: str | None = None) -> AsyncIterator[TaskFuture[Any]]:
        """The tasks of a group, by id or name, in the order of their submission: from another process, on another day.

        :raises NotFound: you have no such group.
        """
        standing = await self._connection.ready()
        fabric, found = self._connection.fabric, await self._find_group(standing, group or self.group)
        views = {view.id: view for view in await self.tasks(group=found.id, limit=PAGE)}
        for at in range(0, len(found.tasks), PAGE):
            page = found.tasks[at : at + PAGE]
            for missing in set(page) - views.keys():
                views[missing] = await standing.front.call("GET", f"/tasks/{missing}", None, api.TaskView)
            futures = [fabric.future_of(task) for task in page]
            await fabric.standing.reader.adopt([(future, views[future.id]) for future in futures])
            for future in futures:
                yield future

    async def _find_group(self, standing: Standing, group: str) -> api.GroupAnswer:
        # 32 hex digits are an id; but an unnamed group's name has that form too, and is all that is known before the first contact
        for identifier in dict.fromkeys((standing.identity.group(group), group_id(standing.identity.user, group))):
            with contextlib.suppress(NotFound):
                return await standing.front.call("GET", f"/groups/{identifier}", None, api.GroupAnswer)
        raise NotFound(f"You have no group {group!r}.", hint="`funcmq task list` shows tasks with their groups.")

    def task(self, identifier: str) -> TaskFuture[Any]:
        """A future for a task of which you know the id; an unknown one ends as `NotFound`."""
        if not is_id(identifier):
            raise InvalidRequest(f"{identifier!r} is not a task id: 32 hex digits.")
        fabric = self._connection.fabric
        known = fabric.inbox.futures.get(bytes.fromhex(identifier))
        return known if known is not None else fabric.look_up(identifier)

    async def tasks(self, state: str | None = None, group: str | None = None, limit: int = 100) -> list[api.TaskView]:
        """Your latest tasks, newest first."""
        standing = await self._connection.ready()
        query = {"state": state, "group": group, "limit": limit}
        given = {name: value for name, value in query.items() if value is not None}
        return await standing.front.list(f"/tasks?{urlencode(given)}", api.TaskView)

    async def endpoints(self) -> list[api.EndpointView]:
        """The endpoints that you can use."""
        return await (await self._connection.ready()).directory.refresh()

    async def cancel(self, group: str | None = None) -> int:
        """Cancel all tasks of a group (this view's own by default) that have not ended; how many that were."""
        standing = await self._connection.ready()
        identifier = standing.identity.group(group) if group else self.group
        group_of = standing.identity.group
        mine = [future for future in self._connection.fabric.inbox.open if future.scope and group_of(future.scope.group) == identifier]
        dropped = sum(future.cancel() for future in mine if future.state == "pending")
        await standing.sender.flush()
        if mine and dropped == len(mine):
            return dropped  # the group may not even exist
        answer = await standing.front.call("POST", f"/groups/{identifier}/cancel", None, api.CancelAnswer)
        return dropped + answer.asked


def say_how_to_attach(group: str, count: int) -> None:
    """What a person wants to know who interrupts a program that waits."""
    line = f"{count:,} tasks of group {group} go on. See them again: async for task in Client().attach({group!r}): …"
    print(line, file=sys.stderr)  # noqa: T201


@overload
def unwrapped(fn: str) -> str: ...
@overload
def unwrapped(fn: Callable[..., Any]) -> Callable[..., Any]: ...
def unwrapped(fn: Callable[..., Any] | str) -> Callable[..., Any] | str:
    """The plain function behind a `@function`."""
    return getattr(fn, "__funcmq_function__", fn) if not isinstance(fn, str) else fn


async def _run(mapping: chunks.Mapping, ended: waiting.Mailbox[Chunk], shown: Any, errors: Errors, *, glance: bool) -> AsyncIterator[Any]:
    try:
        mapping.top_up()
        while not mapping.finished:
            for chunk in await ended.get_all(GLANCE_S if glance else None):
                mapping.settle(chunk)
            mapping.top_up()
            shown.show(mapping.done, mapping.failed, _reason(mapping) if glance else "")
            for block in mapping.take():
                values, error = chunks.flatten(block, errors)
                for value in values:
                    yield value
                if error is not None:
                    raise error
            mapping.top_up()
    except (GeneratorExit, Exception):
        mapping.cancel()
        raise


def _reason(mapping: chunks.Mapping) -> str:
    for chunk in mapping.under_way.values():
        if chunk.future is not None and chunk.future.state != "running":
            return chunk.future.waiting_for
    return ""
