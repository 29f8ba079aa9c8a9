"""The daemon's queue: fair between users, then by priority, then by age.

Fair means by recent use: every user has a clock that advances by the work (in seconds, as expected) taken for them, and the user with the
earliest clock is served. Somebody who comes back after a pause starts at the clock of whoever was served last, so that idleness earns no
credit.

Tasks that share user, priority and times are kept as one batch, so that a bundle of a thousand tasks costs one heap entry.  A task that
ended while it waited is left in its batch and skipped later: `state` says what it is.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from funcmq.endpoint.tasks import State, Task

_COMPACT = 1024
"""Empty batches in the heap of expiries before it is swept."""


@dataclass(slots=True, eq=False)
class _Batch:
    user: str
    priority: int
    not_before: int
    not_after: int
    tasks: deque[Task] = field(default_factory=deque)


class Queue:
    """Tasks that wait for a pool.  Times are milliseconds since the epoch, and passed in."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        """Waiting tasks per user, those before their `not_before` included."""
        self._ready: dict[str, list[tuple[int, int, _Batch]]] = {}
        self._later: list[tuple[int, int, _Batch]] = []
        self._expiry: list[tuple[int, int, _Batch]] = []
        self._clock: dict[str, float] = {}
        self._served = 0.0
        self._order = itertools.count()
        self._emptied = 0

    def __len__(self) -> int:
        return self.waiting.total()

    def add(self, tasks: Iterable[Task], now: int) -> None:
        """Put waiting tasks in; those of one call that share everything are kept together and in order."""
        batches: dict[tuple[str, int, int, int], _Batch] = {}
        for task in tasks:
            options = task.options
            # what was started in time may start again after its time, hence no expiry for it
            key = (task.user, options.priority, options.not_before, 0 if task.attempts else options.not_after)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = _Batch(*key)
            batch.tasks.append(task)
        for batch in batches.values():
            self._admit(batch, now)

    def _admit(self, batch: _Batch, now: int) -> None:
        order = next(self._order)
        self.waiting[batch.user] += len(batch.tasks)
        if batch.not_after:
            heapq.heappush(self._expiry, (batch.not_after, order, batch))
        if batch.not_before > now:
            heapq.heappush(self._later, (batch.not_before, order, batch))
        else:
            self._make_ready(order, batch)

    def _make_ready(self, order: int, batch: _Batch) -> None:
        heap = self._ready.get(batch.user)
        if not heap:
            heap = self._ready[batch.user] = []
            self._clock[batch.user] = max(self._clock.get(batch.user, 0.0), self._served)
        heapq.heappush(heap, (-batch.priority, order, batch))

    def release(self, now: int) -> None:
        """Let those in whose `not_before` has come."""
        while self._later and self._later[0][0] <= now:
            _, order, batch = heapq.heappop(self._later)
            if batch.tasks:
                self._make_ready(order, batch)

    def expired(self, now: int) -> list[Task]:
        """Waiting tasks whose `not_after` has passed before their first start.  They stay until they are ended (`drop`)."""
        found: list[Task] = []
        while self._expiry and self._expiry[0][0] <= now:
            batch = heapq.heappop(self._expiry)[2]
            found.extend(task for task in batch.tasks if task.state is State.WAITING)
        return found

    def next_due(self) -> int:
        """When `release` or `expired` has something to do next; 0: never, as things stand."""
        return min((heap[0][0] for heap in (self._later, self._expiry) if heap), default=0)

    def drop(self, task: Task) -> None:
        """A waiting task has ended without being taken."""
        self._count(task.user, -1)

    def peek(self) -> Task | None:
        """The task to run next."""
        while self._ready:
            user = min(self._ready, key=self._clock.__getitem__) if len(self._ready) > 1 else next(iter(self._ready))
            if (task := self._head(user)) is not None:
                return task
        return None

    def take(self, task: Task, cost: float) -> None:
        """Remove the task that `peek` or `more` has just given; `cost` is its work in seconds."""
        user = task.user
        batch = self._ready[user][0][2]
        batch.tasks.popleft()
        self._served = max(self._served, self._clock[user])
        self._clock[user] += cost
        self._count(user, -1)
        if not batch.tasks:
            self._pop(user)

    def more(self, user: str) -> Task | None:
        """The task of this user to run next, out of turn: for the rest of a packet."""
        return self._head(user) if user in self._ready else None

    def _head(self, user: str) -> Task | None:
        while heap := self._ready.get(user):
            tasks = heap[0][2].tasks
            while tasks:
                if tasks[0].state is State.WAITING:
                    return tasks[0]
                tasks.popleft()
            self._pop(user)
        return None

    def _pop(self, user: str) -> None:
        heap = self._ready[user]
        heapq.heappop(heap)
        if not heap:
            del self._ready[user]
        self._emptied += 1
        if self._emptied > _COMPACT and self._emptied * 2 > len(self._expiry):
            self._expiry = [entry for entry in self._expiry if entry[2].tasks]
            heapq.heapify(self._expiry)
            self._emptied = 0

    def _count(self, user: str, change: int) -> None:
        self.waiting[user] += change
        if self.waiting[user] <= 0:
            del self.waiting[user]

    def __iter__(self) -> Iterator[Task]:
        """Every waiting task, in no particular order."""
        heaps = [*self._ready.values(), self._later]
        return (task for heap in heaps for entry in heap for task in entry[2].tasks if task.state is State.WAITING)
