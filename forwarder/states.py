"""States of a task, read aloud.

A task is *accepted* when its row is committed, *published* when the broker confirmed its bundle, *received* when the endpoint's journal has
it, *running* when the endpoint says so.  It ends once by a signed result.  The front door itself ends what no endpoint will: that end is
given up when a result comes after all, once.

    accepted ──▶ published ──▶ received ──▶ running ──▶ succeeded | failed | cancelled | expired | lost
        ▲                         │
        └──── sent again ─────────┘      any open state ──▶ refused | given up as expired, lost or poisoned ──▶ any end by a result

Results may overtake receipts, and receipts confirms: later states are reached from every earlier one.  What the table does not name changes
nothing.
"""

from __future__ import annotations

import enum

from funcmq.broker import api


class State(enum.IntEnum):
    """What the store writes.  Numbers are kept for ever."""

    ACCEPTED = 0
    PUBLISHED = 1
    RECEIVED = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    EXPIRED = 7
    LOST = 8
    REFUSED = 9
    EXPIRED_HERE = 10
    LOST_HERE = 11
    POISONED = 12


class Event(enum.Enum):
    """What may happen to a task."""

    CONFIRMED = "the broker confirmed its bundle"
    SENT_AGAIN = "its journal is gone, or nobody confirmed: the bundle is sent again"
    RECEIPT = "the endpoint's journal has it"
    STARTED = "the endpoint says that it runs"
    RETURNED = "a signed result: succeeded"
    RAISED = "a signed result: failed"
    STOPPED = "a signed result: cancelled"
    OVERDUE = "a signed result: expired"
    UNKNOWN = "a signed result: lost"
    TURNED_DOWN = "a signed refusal of its bundle"
    FORGOTTEN = "its time was up 5 minutes ago, and no endpoint had received it"
    ABANDONED = "its endpoint or journal is gone"
    UNDELIVERABLE = "its bundle died three times in its queue"


WAITING = (State.ACCEPTED, State.PUBLISHED, State.RECEIVED, State.RUNNING)
"""Not ended."""
ENDED_HERE = (State.REFUSED, State.EXPIRED_HERE, State.LOST_HERE, State.POISONED)
"""Ends that the front door wrote: a result still replaces them."""

_RESULTS = {
    Event.RETURNED: State.SUCCEEDED,
    Event.RAISED: State.FAILED,
    Event.STOPPED: State.CANCELLED,
    Event.OVERDUE: State.EXPIRED,
    Event.UNKNOWN: State.LOST,
}
_HERE = {
    Event.TURNED_DOWN: State.REFUSED,
    Event.FORGOTTEN: State.EXPIRED_HERE,
    Event.ABANDONED: State.LOST_HERE,
    Event.UNDELIVERABLE: State.POISONED,
}

TABLE: dict[tuple[State, Event], State] = {
    (State.ACCEPTED, Event.CONFIRMED): State.PUBLISHED,
    (State.ACCEPTED, Event.RECEIPT): State.RECEIVED,
    (State.ACCEPTED, Event.STARTED): State.RUNNING,
    (State.PUBLISHED, Event.RECEIPT): State.RECEIVED,
    (State.PUBLISHED, Event.STARTED): State.RUNNING,
    (State.RECEIVED, Event.STARTED): State.RUNNING,
    (State.PUBLISHED, Event.SENT_AGAIN): State.ACCEPTED,
    (State.RECEIVED, Event.SENT_AGAIN): State.ACCEPTED,
    (State.RUNNING, Event.SENT_AGAIN): State.ACCEPTED,
    **{(state, event): end for state in WAITING for event, end in (_RESULTS | _HERE).items()},
    **{(state, event): end for state in ENDED_HERE for event, end in _RESULTS.items()},
}
"""(state, event) → state."""

BY_RESULT: dict[str, Event] = {
    "succeeded": Event.RETURNED,
    "failed": Event.RAISED,
    "cancelled": Event.STOPPED,
    "expired": Event.OVERDUE,
    "lost": Event.UNKNOWN,
}
"""What a result's own word means here."""

ENDS_BY_RESULT: dict[tuple[int, str], int] = {
    (int(state), word): int(TABLE[state, event]) for state in State for word, event in BY_RESULT.items() if (state, event) in TABLE
}
"""The rows of the table that results need, in plain numbers and words: hashing an Enum costs more than the rest of storing a result."""

_NAMES: dict[State, api.State] = {
    State.ACCEPTED: "accepted",
    State.PUBLISHED: "published",
    State.RECEIVED: "received",
    State.RUNNING: "running",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.EXPIRED: "expired",
    State.LOST: "lost",
    State.REFUSED: "failed",
    State.EXPIRED_HERE: "expired",
    State.LOST_HERE: "lost",
    State.POISONED: "failed",
}


def after(state: State, event: Event) -> State | None:
    """The state that follows, or None where the event changes nothing."""
    return TABLE.get((state, event))


def name(task: State, bundle: State, *, running: bool = False) -> api.State:
    """The word for people: an end is the task's own, until then it is where its bundle is."""
    if task not in WAITING:
        return _NAMES[task]
    return "running" if running else _NAMES[bundle]


def named(word: str) -> tuple[State, ...]:
    """All states that people see under this word; () for an unknown one."""
    return tuple(state for state, said in _NAMES.items() if said == word)
