"""Who holds an endpoint?  A core without I/O.

A lease belongs to a journal and has no end by the clock.  The same journal coming back gets the next epoch; another one is refused, unless
the lease was given back or it takes over.  An epoch that is not the newest is over, whatever its daemon believes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from funcmq.broker import api
from funcmq.broker.errors import AlreadyRunning, Conflict


@dataclass(frozen=True, slots=True)
class Held:
    """The lease as the store has it; `journal` '' before the first."""

    epoch: int
    held: bool
    journal: str
    birth: int
    since: int
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A daemon starts under this epoch.  `moved`: from another journal, whose work is to be sent again."""

    epoch: int
    moved: bool


@dataclass(frozen=True, slots=True)
class Renewal:
    """The same daemon goes on."""


def decide(held: Held, asked: api.LeaseRequest) -> Grant | Renewal:
    """What becomes of a request.

    :raises Conflict: a renewal of an epoch that is over, or by another journal: the daemon is fenced.
    :raises AlreadyRunning: another journal holds the endpoint.
    """
    if asked.epoch is not None:
        if not held.held or asked.epoch != held.epoch or asked.journal != held.journal:
            raise Conflict(
                f"Epoch {asked.epoch} of this endpoint is over; the newest is {held.epoch}.",
                hint="Another daemon took over.",
                epoch=held.epoch,
            )
        return Renewal()
    if held.held and held.journal != asked.journal and not asked.takeover:
        said = f"This endpoint runs on {held.host} (pid {held.pid}), since {_clock(held.since)}."
        raise AlreadyRunning(said, host=held.host, pid=held.pid, since=held.since)
    return Grant(held.epoch + 1, moved=held.journal not in ("", asked.journal))


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
