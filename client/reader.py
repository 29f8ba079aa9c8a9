"""Reading from the store how tasks stand: after every connect, for tasks submitted elsewhere or earlier, and as a slow backstop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from funcmq.broker import api
from funcmq.broker.errors import FuncmqError, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.ids import created_at
from funcmq.client.directory import Directory
from funcmq.client.futures import TaskFuture
from funcmq.client.inbox import Inbox
from funcmq.client.stream import Listener

log = logging.getLogger("funcmq.client")

SWEEP_S = 30.0
LAG_S = 5.0
"""The store has a result this long after the stream at the latest, or else something is wrong that waiting does not mend."""
LOOK_S = 0.05
"""Between two looks at whether the store has it."""
SWEEP = 10_000
"""Tasks in one sweep; the next one goes on with the others."""
QUERY = 1000
"""Tasks in one question to the store."""


@dataclass(frozen=True, slots=True)
class Found:
    """A task that the store knows."""

    id: str
    endpoint: str
    group: str
    state: str
    function_name: str


class Reader:
    """Ends futures with what the store says.

    :param ended: called after futures may have ended.
    """

    def __init__(self, front: Api, inbox: Inbox, directory: Directory, ended: Callable[[], None]) -> None:
        self._front, self._inbox, self._directory, self._ended = front, inbox, directory, ended
        self.listener: Listener | None = None
        self.cancel: Callable[[TaskFuture[Any]], None] = lambda _: None
        """Called with futures that were to be cancelled before it was known here what they stand for."""
        self.unknown: asyncio.Queue[tuple[TaskFuture[Any], str]] = asyncio.Queue()
        """Futures of which only the task's id is known, and that id, which may be short."""

    @property
    def _sent(self) -> list[TaskFuture[Any]]:
        return [future for future in self._inbox.open if future.state != "pending"]

    async def caught_up(self) -> None:
        """The stream stands again: read what may have been missed."""
        try:
            await self.query([future.task_id for future in self._sent])
        except NotLoggedIn:
            raise
        except FuncmqError as error:
            log.info("cannot read the store now, the sweep will: %s", error.message)

    async def query(self, tasks: Iterable[bytes]) -> None:
        """Read how these tasks stand, and end the futures whose results are there."""
        waiting = [task.hex() for task in tasks]
        while waiting:
            asked, waiting = waiting[:QUERY], waiting[QUERY:]
            answer = await self._front.call("POST", "/tasks/query", api.TasksRequest(tasks=asked), api.QueryAnswer)
            self._inbox.answer(answer)
            self._ended()
            if len(answer.more) < len(asked):
                waiting += answer.more

    async def sweep(self) -> None:
        """The backstop: loss on the stream is allowed and silent, so only a timer can notice it.

        :raises NotLoggedIn: the token works no more.
        """
        at = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            before = time.time() - SWEEP_S
            old = [future.task_id for future in self._sent if created_at(future.task_id) < before]
            at = at if at < len(old) else 0
            try:
                await self.query(old[at : at + SWEEP])
            except NotLoggedIn:
                raise
            except FuncmqError as error:
                log.info("the sweep failed, and is repeated: %s", error.message)
            at += SWEEP

    async def settled(self) -> None:
        """Return when the store has what the stream has ended here: a client that has seen a result never sees its task still waiting.

        Results of an endpoint are stored in the order in which they were sent, so the last one stands for all.
        """
        while self._inbox.last:
            endpoint, (at, task) = next(iter(self._inbox.last.items()))
            if time.monotonic() - at < LAG_S:
                view = await self._front.call("GET", f"/tasks/{task}", None, api.TaskView)
                if view.state not in api.ENDS:
                    await asyncio.sleep(LOOK_S)  # the store tells nobody when it has stored; it is a matter of tenths of a second
                    continue
            if self._inbox.last.get(endpoint) == (at, task):
                del self._inbox.last[endpoint]

    async def find(self) -> None:
        """Find the tasks of `unknown`, until cancelled."""
        while True:
            await self._find(*await self.unknown.get())

    async def moved(self, future: TaskFuture[Any], verdict: api.Verdict) -> None:
        """This key was used before: the future stands for that earlier task, wherever it runs."""
        self._inbox.forget(future)
        future.task_id = bytes.fromhex(verdict.id)
        await self._find(future, verdict.id)

    async def _find(self, future: TaskFuture[Any], identifier: str) -> None:
        """Where there is no such task, the future ends as the front door says."""
        try:
            view = await self._front.call("GET", f"/tasks/{identifier}", None, api.TaskView)
            await self.adopt([(future, Found(view.id, view.endpoint, view.group, view.state, view.function_name))])
        except FuncmqError as error:
            self._inbox.forget(future)
            future.finish("failed", error=error)

    async def adopt(self, tasks: Iterable[tuple[TaskFuture[Any], Found]]) -> None:
        """Let futures stand for these tasks: the groups of those that are open are listened to anew first, the store is read then."""
        new = [(future, found) for future, found in tasks if await self._expect(future, found)]
        assert self.listener is not None
        for group in {found.group for _, found in new if found.state not in api.ENDS}:
            await self.listener.renew(group)
        await self.query([future.task_id for future, _ in new])

    async def adopt_page(self, tasks: Iterable[tuple[TaskFuture[Any], Found]]) -> None:
        """As `adopt`, for tasks of a group that is listened to since before these were asked for."""
        await self.query([future.task_id for future, found in tasks if await self._expect(future, found)])

    async def _expect(self, future: TaskFuture[Any], found: Found) -> bool:
        """Whether this future is to be resolved; otherwise another one for the same task is, or it has been."""
        _take_over(future, found)
        other = self._inbox.futures.get(future.task_id)
        if other is future:
            return False
        if other is not None:
            other.add_done_callback(_follower(future))
            return False
        await self._directory.meet(found.endpoint)
        self._inbox.expect(future)
        if future.cancel_wanted:
            self.cancel(future)
        return True


def _take_over(future: TaskFuture[Any], found: Found) -> None:
    future.task_id, future.endpoint_id, future.group = bytes.fromhex(found.id), found.endpoint, found.group
    future.sent = None
    future.known = "accepted" if found.state in api.ENDS else found.state
    future.name = future.name or found.function_name


def _follower(future: TaskFuture[Any]) -> Callable[[Any], None]:
    """Ends this future as another one for the same task has ended."""

    def follow(done: TaskFuture[Any]) -> None:
        error = done.exception(0)
        future.finish(done.end, None if error else done.result(0), error, done.outcome)

    return follow
