"""Reading from the store how tasks stand: after every connect, for tasks submitted elsewhere or earlier, and as a slow backstop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from funcmq.broker import api
from funcmq.broker.errors import FuncmqError
from funcmq.broker.http import Api
from funcmq.broker.ids import created_at
from funcmq.client.directory import Directory
from funcmq.client.futures import TaskFuture
from funcmq.client.inbox import Inbox
from funcmq.client.stream import Listener

log = logging.getLogger("funcmq.client")

SWEEP_S = 30.0
SWEEP = 10_000
"""Tasks in one sweep; the next one goes on with the others."""
QUERY = 1000
"""Tasks in one question to the store."""


class Reader:
    """Ends futures with what the store says.

    :param ended: called after futures may have ended.
    """

    def __init__(self, front: Api, inbox: Inbox, directory: Directory, ended: Callable[[], None]) -> None:
        self._front, self._inbox, self._directory, self._ended = front, inbox, directory, ended
        self.listener: Listener | None = None
        self.unknown: asyncio.Queue[TaskFuture[Any]] = asyncio.Queue()
        """Futures of which only the task's id is known."""

    @property
    def _sent(self) -> list[TaskFuture[Any]]:
        return [future for future in self._inbox.open if future.state != "pending"]

    async def caught_up(self) -> None:
        """The stream stands again: read what may have been missed."""
        try:
            await self.query([future.task_id for future in self._sent])
        except FuncmqError as error:  # an expired token too: what listens goes on, and its futures may end yet
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
        """The backstop: loss on the stream is allowed and silent, so only a timer can notice it."""
        at = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            before = time.time() - SWEEP_S
            old = [future.task_id for future in self._sent if created_at(future.task_id) < before]
            at = at if at < len(old) else 0
            try:
                await self.query(old[at : at + SWEEP])
            except FuncmqError as error:
                log.info("the sweep failed, and is repeated: %s", error.message)
            at += SWEEP

    async def find(self) -> None:
        """Find the tasks of `unknown`, until cancelled."""
        while True:
            await self._find(await self.unknown.get())

    async def moved(self, future: TaskFuture[Any], verdict: api.Verdict) -> None:
        """This key was used before: the future stands for that earlier task, wherever it runs."""
        self._inbox.forget(future)
        future.task_id = bytes.fromhex(verdict.id)
        await self._find(future)

    async def _find(self, future: TaskFuture[Any]) -> None:
        """Where there is no such task, the future ends as the front door says."""
        try:
            await self.adopt([(future, await self._front.call("GET", f"/tasks/{future.id}", None, api.TaskView))])
        except FuncmqError as error:
            self._inbox.forget(future)
            future.finish("failed", error=error)

    async def adopt(self, tasks: Iterable[tuple[TaskFuture[Any], api.TaskView]]) -> None:
        """Let futures stand for these tasks: their groups are listened to first, the store is read then."""
        assert self.listener is not None
        new: list[TaskFuture[Any]] = []
        for future, view in tasks:
            _take_over(future, view)
            other = self._inbox.futures.get(future.task_id)
            if other is not None and other is not future:
                other.add_done_callback(_follower(future))
                continue
            await self._directory.meet(view.endpoint)
            self._inbox.expect(future)
            new.append(future)
        for group in {future.group for future in new}:
            await self.listener.listen(group)
        await self.query([future.task_id for future in new])


def _take_over(future: TaskFuture[Any], view: api.TaskView) -> None:
    future.task_id, future.endpoint_id, future.group, future.sent = bytes.fromhex(view.id), view.endpoint, view.group, None
    future.known = "accepted" if view.state in api.ENDS else view.state
    future.name = future.name or view.function_name


def _follower(future: TaskFuture[Any]) -> Callable[[Any], None]:
    """Ends this future as another one for the same task has ended."""

    def follow(done: TaskFuture[Any]) -> None:
        error = done.exception(0)
        future.finish(done.end, None if error else done.result(0), error, done.outcome)

    return follow
