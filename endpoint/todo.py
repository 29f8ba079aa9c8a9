"""What the core hands to the engine: packets to submit, ends and counts to write; and the state of a pool that they come from."""

from __future__ import annotations

from dataclasses import dataclass, field

from funcmq.broker.messages import Outcome
from funcmq.endpoint.packer import Estimates, Load
from funcmq.endpoint.queue import Queue
from funcmq.endpoint.tasks import Bundle, Task


@dataclass(slots=True, frozen=True)
class Launch:
    """A packet to submit, once the journal has it."""

    number: int
    pool: str
    tasks: list[Task]
    short: bool
    at: int


@dataclass(slots=True)
class Todo:
    """What has to be written and told.  `ended`: tasks and how they ended; `again`: tasks that go back to the queue with new counts."""

    ended: list[tuple[Task, Outcome]] = field(default_factory=list)
    again: list[Task] = field(default_factory=list)
    closed: list[Bundle] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.ended or self.again or self.closed)

    def due(self) -> tuple[Todo, Todo]:
        """What may be written now, and what has to wait until the journal has its tasks (bundles are closed after the last end in them)."""
        if all(task.known for task, _ in self.ended):
            return self, Todo()
        now = [end for end in self.ended if end[0].known]
        later = [end for end in self.ended if not end[0].known]
        return Todo(now, self.again, []), Todo(later, [], self.closed)

    def drop(self, stale: list[Task]) -> None:
        """These tasks have ended long ago: this end of theirs does not count."""
        if stale:
            self.ended = [end for end in self.ended if end[0] not in stale]

    def add(self, other: Todo) -> None:
        """What came after this."""
        self.ended += other.ended
        self.again += other.again
        self.closed += other.closed


@dataclass(slots=True)
class PoolState:
    """A pool as the core sees it."""

    name: str
    resources: dict[str, float]
    queue: Queue = field(default_factory=Queue)
    estimates: Estimates = field(default_factory=Estimates)
    workers: int = 0
    flights: dict[int, Launch] = field(default_factory=dict)
    short: int = 0
    python: str = ""
    """Minor version of its interpreter, '' while that is not known."""
    broken: bool = False
    """Whether its interpreter cannot work for this daemon."""

    @property
    def load(self) -> Load:
        """How full it is."""
        return Load(self.workers, len(self.flights), self.short)

    def fits(self, wanted: dict[str, object]) -> bool:
        """Whether a task that wants this may run here: every resource named is one this pool has, and enough of it."""
        return all(isinstance(amount, (int, float)) and amount <= self.resources.get(name, 0) for name, amount in wanted.items())

    def suits(self, needs: str) -> int:
        """How well a function that needs this minor version of Python ('' any) runs here; 0: not at all."""
        if needs and self.python and needs != self.python:
            return 0
        return 1 if self.broken else 2
