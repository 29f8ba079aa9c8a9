"""Asking endpoints to end tasks, and asking the front door why tasks wait: both gather what many futures want into few requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import Any

from funcmq.broker import api
from funcmq.broker.errors import FuncmqError, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.waiting import clock, sentence
from funcmq.client.directory import Directory, offline_since
from funcmq.client.futures import TaskFuture
from funcmq.client.inbox import Inbox
from funcmq.client.sender import Bell, Trouble, persist

log = logging.getLogger("funcmq.client")

MANY = 1000
"""Tasks in one request."""
PATIENCE_S = 3600.0
REFRESH_S = 2.0
"""Age at which the reason for waiting is asked anew."""


class Canceller:
    """Asks for the cancels that were wished, as soon as their tasks are accepted."""

    def __init__(self, front: Api, inbox: Inbox, trouble: Trouble) -> None:
        self._front, self._inbox, self._trouble = front, inbox, trouble
        self._wanted: set[bytes] = set()
        self._bell = Bell()

    def want(self, future: TaskFuture[Any]) -> None:
        """Thread-safe."""
        future.cancel_wanted = True
        self._wanted.add(future.task_id)
        self._bell.ring()

    def accepted(self, futures: list[TaskFuture[Any]]) -> None:
        """These can be cancelled from now on."""
        wanted = [future.task_id for future in futures if future.cancel_wanted]
        if wanted:
            self._wanted.update(wanted)
            self._bell.ring()

    async def run(self) -> None:
        """Ask until cancelled.

        :raises NotLoggedIn: the token works no more.
        """
        while True:
            await self._bell.wait()
            wanted, self._wanted = self._wanted, set()
            futures = [future for task in wanted if (future := self._inbox.futures.get(task)) and is_accepted(future)]
            for at in range(0, len(futures), MANY):
                await self._ask(api.TasksRequest(tasks=[future.id for future in futures[at : at + MANY]]))

    async def _ask(self, request: api.TasksRequest) -> None:
        def ask() -> Awaitable[api.CancelAnswer]:
            return self._front.call("POST", "/tasks/cancel", request, api.CancelAnswer)

        try:
            await persist(ask, time.time() + PATIENCE_S, self._trouble)
        except NotLoggedIn:
            raise
        except FuncmqError as refused:
            log.warning("tasks could not be cancelled: %s", refused.message)


def is_accepted(future: TaskFuture[Any]) -> bool:
    """Whether the front door has said that it has this task."""
    return future.sent is None or future.sent.accepted > 0


class Reasons:
    """Why tasks wait, in one sentence each: what is known at once, and the front door's words for those that somebody looks at."""

    def __init__(self, front: Api, inbox: Inbox, directory: Directory, trouble: Trouble) -> None:
        self._front, self._inbox, self._directory, self._trouble = front, inbox, directory, trouble
        self._said: dict[bytes, tuple[float, api.Waiting | None]] = {}
        self._asked: set[bytes] = set()
        self._bell = Bell()

    def explain(self, future: TaskFuture[Any]) -> str:
        """The latest known; it is looked up again in the background.  Thread-safe."""
        if self._trouble.since:
            since = clock(int(self._trouble.since * 1000), int(time.time() * 1000))
            return f"the front door does not answer since {since}: {self._trouble.said}"
        if future.state == "pending":
            return f"on its way to {self._front.url}"
        asked, said = self._said.get(future.task_id, (0.0, None))
        if time.monotonic() - asked > REFRESH_S:
            self._asked.add(future.task_id)
            self._bell.ring()
        now = int(time.time() * 1000)
        if future.state == "running" and (said is None or said.kind != "running"):
            said = None  # the stream knows better than the store did
        return (said and sentence(said, now)) or self._guess(future, now)

    def _guess(self, future: TaskFuture[Any], now: int) -> str:
        """From what is known here: before the front door has answered, it is this or nothing."""
        view = self._directory.view(future.endpoint_id)
        if view is not None and not view.online:
            return offline_since(view)
        name = self._directory.name(future.endpoint_id)
        if future.state == "running":
            since, host = future.place
            limit = future.scope.how.walltime_s if future.scope else 0.0
            return sentence(api.Waiting(kind="running", since=since or now, host=host or name, walltime_s=limit), now)
        return f"waiting for a worker of {name}" if future.state == "received" else f"on its way to {name}"

    async def run(self) -> None:
        """Look up until cancelled."""
        while True:
            await self._bell.wait()
            asked, self._asked = self._asked, set()
            self._said = {task: said for task, said in self._said.items() if task in self._inbox.futures}
            for task in asked:
                try:
                    view = await self._front.call("GET", f"/tasks/{task.hex()}", None, api.TaskView)
                except FuncmqError:
                    continue
                self._said[task] = time.monotonic(), view.why
