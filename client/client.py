"""Client: the asyncio face of a fabric."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, Unpack, overload
from urllib.parse import urlencode

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest
from funcmq.broker.functions import Recorded
from funcmq.broker.settings import resolve
from funcmq.client import again, chunks, lists, waiting
from funcmq.client.chunks import Chunk, Errors, Plan
from funcmq.client.connection import Connection
from funcmq.client.fabric import Standing
from funcmq.client.functions import Function
from funcmq.client.futures import TaskFuture
from funcmq.client.lists import Since
from funcmq.client.options import UNSET, Given, OnOptions, Scope, Unset, narrow, of_kind
from funcmq.client.progress import Meter, meter
from funcmq.client.reader import Found

P = ParamSpec("P")
T = TypeVar("T")

LEAVE_S = 5.0
"""How long a client that is left by an exception goes on trying to send what was submitted."""
GLANCE_S = 1.0
"""Between two looks at why nothing moves, for a progress bar."""
SHORT = 8
"""Hex digits of a short id, its last ones."""
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
        self._root = True

    def on(self, endpoint: str | Iterable[str] | Unset | None = UNSET, **options: Unpack[OnOptions]) -> Client:
        """A view of this client whose tasks run there and so; it shares the connection, and leaves it open: `async with` a view waits
        until all is accepted.  Options not given stay as they are here.

        :raises TypeError, ValueError: an option that does not exist, or a value that it cannot have.
        """
        given = Given.of(endpoint, options)
        return self.view(narrow(self.scope, given))

    def view(self, scope: Scope, connection: Connection | None = None) -> Client:
        """A client with this scope, on the same connection or another one."""
        view = object.__new__(type(self))
        view._connection, view.scope, view._chunk_scope, view._root = connection or self._connection, scope, None, False
        return view

    async def __aenter__(self) -> Client:
        await self._connection.ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._root:
            if kind is None:
                await self.flush()
            return
        open_futures = self._connection.last.inbox.open
        if open_futures and kind is not None and issubclass(kind, KeyboardInterrupt | asyncio.CancelledError):
            say_how_to_attach(self._connection, open_futures, "async for task in Client()")
        await self._connection.leave(None if kind is None else LEAVE_S)

    def __repr__(self) -> str:
        return f"<Client {self._connection.settings.url} on {self.scope.endpoint or 'no endpoint'}, group {self.group}>"

    # Submitting

    def submit(self, fn: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Run `fn(*args, **kwargs)` far away; every argument is fn's.  Returns at once.  What cannot be sent is the future's error;
        a coroutine function gives its coroutine's result.  Thread-safe once it has an event loop.

        :param fn: a function, the id of a registered one, or the name of one: `ada/recon` for its latest version, `ada/recon@2`.

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
            async for value in _run(mapping, ended, shown, glance=progress):
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
        recorded = (
            fn if isinstance(fn, str | Recorded) else self._connection.fabric.functions.record(fn, self.scope.by_value, self.scope.strategy)
        )
        if chunksize is None and self.scope.how.walltime_s:
            chunksize = 1
        workers = await self._workers(await self._connection.ready())
        return Plan(*shape, workers, chunksize, most or 0, *how, self.scope.how.retry != "never"), recorded

    def send_chunk(self, recorded: Recorded | str, value: list[Any]) -> TaskFuture[Any]:
        """Submit `[star, items]` as one task."""
        if self._chunk_scope is None:
            self._chunk_scope = of_kind(self.scope, "chunk")
        return self._send(self._chunk_scope, recorded, value)

    def sent(self, future: TaskFuture[Any]) -> bool:
        """Whether this future was submitted through exactly this view."""
        return future.scope is not None and future.scope in (self.scope, self._chunk_scope)

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

    async def register(self, fn: Callable[..., Any], name: str | None = None) -> str:
        """Send a function ahead; its id, which can be submitted in its place.

        :param name: `YOU/NAME`: from now on this is the latest version of that name; submit it by name, `funcmq function share` it.
        :raises NotAllowed: the name belongs to somebody else.
        """
        standing, fabric = await self._connection.ready(), self._connection.fabric
        recorded = fabric.functions.record(unwrapped(fn), self.scope.by_value, self.scope.strategy)
        path = "/functions" if name is None else f"/functions?{urlencode({'name': name})}"
        answer = await standing.front.send_raw(path, recorded.record, api.FunctionAnswer)
        standing.names.forget()
        return answer.id

    async def attach(self, group: str | None = None) -> AsyncIterator[TaskFuture[Any]]:
        """The tasks of a group, by id or name, in the order of their submission: from another process, on another day.

        :raises NotFound: you have no such group.
        """
        standing = await self._connection.ready()
        fabric, found = self._connection.fabric, await standing.group(group or self.group)
        await standing.listener.renew(found)
        async for page in lists.group_pages(standing.front, found):
            futures = [fabric.future_of(brief.id) for brief in page]
            rows = [Found(brief.id, brief.endpoint, found, brief.state, brief.function_name) for brief in page]
            await standing.reader.adopt_page(zip(futures, rows, strict=True))
            for future in futures:
                yield future

    def task(self, identifier: str) -> TaskFuture[Any]:
        """A future for a task of which you know the id, with or without dashes, or its last 8 hex digits where those are unambiguous.
        An unknown one ends as `NotFound`.

        :raises InvalidRequest: this is no id.
        """
        text = identifier.replace("-", "").lower()
        if not (SHORT <= len(text) <= 32 and set(text) <= set("0123456789abcdef")):
            raise InvalidRequest(f"{identifier!r} is not a task id: 32 hex digits, or the last {SHORT} of them.")
        return self._connection.fabric.look_up(text)

    async def tasks(
        self,
        state: str | None = None,
        group: str | None = None,
        endpoint: str | None = None,
        function: str | Callable[..., Any] | None = None,
        since: Since | None = None,
        limit: int = 100,
    ) -> list[api.TaskView]:
        """Your tasks, newest first, as the front door knows them; what has ended here has ended there.

        :param function: a function, its id, its plain name, or the name that it was registered by.
        :param since: when it was accepted: a datetime, seconds since the epoch, or how long ago (`"10m"`, a timedelta).
        :raises ValueError: there is no such state, or the limit is not positive.
        """
        if callable(function):
            function = self._connection.fabric.functions.record(unwrapped(function), self.scope.by_value, self.scope.strategy).id
        wanted = lists.query(limit, state=state, group=group, endpoint=endpoint, function=function, since=lists.milliseconds(since))
        standing = await self._connection.ready()
        await standing.reader.settled()
        fabric = self._connection.fabric
        return [fabric.as_seen(view) for view in await lists.list_tasks(standing.front, wanted)]

    async def retry(self, identifier: str) -> TaskFuture[Any]:
        """Submit the call of an earlier task once more, as a new task of the same group: the same function and arguments, there and so.

        :raises NotFound: you have no such task, or its arguments are no longer kept.
        :raises NotAllowed: it was signed with another key than this one.
        """
        standing = await self._connection.ready()
        view = await lists.show_task(standing.front, identifier)
        data, me = await standing.front.fetch_raw(f"/tasks/{view.id}/bundle"), standing.identity
        return self._connection.fabric.submit_again(again.read(data, bytes.fromhex(view.id), me.user, me.key.public))

    async def endpoints(self) -> list[api.EndpointView]:
        """The endpoints that you can use."""
        return await (await self._connection.ready()).directory.refresh()

    async def cancel(self, group: str | None = None) -> int:
        """Cancel all tasks of a group (this view's own by default), by id or name, that have not ended; how many that were.

        :raises NotFound: you have no such group.
        """
        standing = await self._connection.ready()
        meant = standing.identity.group(group) if group else self.group
        group_of = standing.identity.group
        mine = [future for future in self._connection.fabric.inbox.open if future.scope and group_of(future.scope.group) == meant]
        dropped = sum(future.cancel() for future in mine if future.state == "pending")
        await standing.sender.flush()
        if mine and dropped == len(mine):
            return dropped  # the group may not even exist
        await standing.reader.settled()
        identifier = meant if mine else await standing.group(group or meant)
        answer = await standing.front.call("POST", f"/groups/{identifier}/cancel", None, api.CancelAnswer)
        return dropped + answer.asked


def say_how_to_attach(connection: Connection, open_futures: list[TaskFuture[Any]], code: str) -> None:
    """What a person wants to know who interrupts a program that waits: each group, and the line that shows its tasks again."""
    counts = Counter(future.group or connection.group_id(future.scope.group if future.scope else "") for future in open_futures)
    for group, count in counts.items():
        what = "1 task" if count == 1 else f"{count:,} tasks"
        line = f"Still open: {what} of group {group}; they go on without this program. See them again: {code}.attach({group!r}): …"
        print(line, file=sys.stderr)  # noqa: T201


@overload
def unwrapped(fn: str) -> str: ...
@overload
def unwrapped(fn: Callable[..., Any]) -> Callable[..., Any]: ...
def unwrapped(fn: Callable[..., Any] | str) -> Callable[..., Any] | str:
    """The plain function behind a `@function`."""
    return getattr(fn, "__funcmq_function__", fn) if not isinstance(fn, str) else fn


async def _run(mapping: chunks.Mapping, ended: waiting.Mailbox[Chunk], shown: Meter, *, glance: bool) -> AsyncIterator[Any]:
    try:
        mapping.top_up()
        while not mapping.finished:
            for values, error in mapping.turn(await ended.get_all(GLANCE_S if glance else None)):
                for value in values:
                    yield value
                if error is not None:
                    raise error
            shown.show(mapping.done, mapping.failed, mapping.reason if glance else "")
    except (GeneratorExit, Exception):
        mapping.cancel()
        raise
