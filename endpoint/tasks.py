"""The life of a task in the daemon, and what decides whether it runs again.

A task is WAITING in the daemon's queue, LAUNCHED (handed to a pool, which is what *running* means), or DONE.  Everything that changes a
state is `step` with this table; the journal holds the same three words.  What a task may survive, by its `retry`:

===============================  ==================  =============  ========================
what happened                    infra (default)     never          a number n
===============================  ==================  =============  ========================
the function raised              failed              failed         again, n times
its own process died             again once, alone   WorkerDied     as infra
node, manager, interchange lost  again, 3 times      lost           as infra
the daemon died                  again, 3 times      lost           as infra
===============================  ==================  =============  ========================

The three counts are kept apart, and what interrupts a task never counts as an error of its function.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from funcmq.broker.messages import FunctionRef, Options, Work
from funcmq.broker.messages import Task as Call

MAX_INFRA = 3
"""How often a task is run again after something under it was lost."""
MAX_DEATHS = 1
"""How often a task is run again after its own process died."""


class State(IntEnum):
    """Where a task is; the numbers stand in the journal."""

    WAITING = 0
    LAUNCHED = 1
    DONE = 2


class Event(IntEnum):
    """What can happen to it."""

    LAUNCH = 0
    AGAIN = 1
    END = 2


TABLE: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.LAUNCH): State.LAUNCHED,
    (State.WAITING, Event.END): State.DONE,
    (State.LAUNCHED, Event.AGAIN): State.WAITING,
    (State.LAUNCHED, Event.END): State.DONE,
}


@dataclass(slots=True, eq=False)
class Bundle:
    """A bundle with open tasks.  `open` counts its tasks that are not done, `size` is the bytes of the bundle."""

    id: str
    work: Work
    received: int
    size: int
    open: int = 0


@dataclass(slots=True, eq=False)
class Task:
    """One task that is not done.

    `attempts` counts executions begun; `infra`, `deaths` and `errors` count what they say. `cancelled`: while it ran, so it does not
    run again. `known`: the journal has it; before that it may turn out to be an old one come again, and its end is not written.
    """

    id: bytes
    bundle: Bundle
    index: int
    state: State = State.WAITING
    attempts: int = 0
    infra: int = 0
    deaths: int = 0
    errors: int = 0
    cancelled: bool = False
    known: bool = False
    pool: str = ""
    """In whose queue it waits, or waited last."""

    @property
    def call(self) -> Call:
        """Function, options and arguments, as they were signed."""
        return self.bundle.work.tasks[self.index]

    @property
    def options(self) -> Options:
        """How it is to be run."""
        return self.bundle.work.options[self.call.options]

    @property
    def function(self) -> FunctionRef:
        """What is to be run."""
        return self.bundle.work.functions[self.call.function]

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.bundle.work.user

    @property
    def alone(self) -> bool:
        """Whether it must have a packet of its own, whatever its function is known for."""
        options = self.options
        return self.deaths > 0 or options.retry == "never" or 0 < options.walltime_s < 1

    def step(self, event: Event) -> None:
        """Follow the table.

        :raises KeyError: the table does not know this event in this state; that is a mistake of the caller.
        """
        self.state = TABLE[self.state, event]


def again_after_error(task: Task) -> bool:
    """Whether the task runs again after its function raised; counts the error."""
    task.errors += 1
    retry = task.options.retry
    return isinstance(retry, int) and task.errors <= retry


def again_after_death(task: Task) -> bool:
    """Whether the task runs again after its own process died; counts the death."""
    task.deaths += 1
    return task.options.retry != "never" and task.deaths <= MAX_DEATHS


def again_after_loss(task: Task) -> bool:
    """Whether the task runs again after something under it was lost; counts the loss."""
    task.infra += 1
    return task.options.retry != "never" and task.infra <= MAX_INFRA
