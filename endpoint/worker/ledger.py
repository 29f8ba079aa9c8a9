"""Which members of a packet are finished, which one runs, and when it is to be ended.  No I/O; times are passed in (CLOCK_MONOTONIC)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

from funcmq.endpoint.worker.packet import Done, Member
from funcmq.endpoint.worker.wire import LONG_S, Finished

SETTLE_S = 0.05
"""Seconds in which the child has certainly seen a `Skip`, and does not start that member."""

End = Literal["walltime", "cancelled"]


class Ledger:
    """The book of one packet.  The members run in order, so the first unfinished one is the one that runs."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._index = {member.id: index for index, member in enumerate(members)}
        self._open = deque(range(len(members)))
        self._done: dict[int, Done] = {}
        self._doomed: dict[int, float] = {}
        """Cancelled members, and from when on they must be ended if they run."""
        self.since = 0.0
        """When the one that runs started, as far as is known: never later than it did."""

    @property
    def open(self) -> list[int]:
        """Indices of the members that are not finished, in order."""
        return list(self._open)

    @property
    def running(self) -> Member | None:
        """The one that runs, if any is left."""
        return self._members[self._open[0]] if self._open else None

    @property
    def done(self) -> list[Done]:
        """One for each member, when none is left."""
        return [self._done[index] for index in range(len(self._members))]

    def start(self, now: float) -> None:
        """A child gets the open members now."""
        self.since = now

    def finish(self, finished: Finished) -> None:
        """The child has finished a member.

        :raises ValueError: that is not the one that was running.
        """
        if not self._open or finished.index != self._open[0] or finished.done.id != self._members[finished.index].id:
            raise ValueError("the child finished a task that it was not running")
        self.since = finished.ended
        self.close(finished.done)

    def close(self, done: Done) -> None:
        """The member that was running has ended so."""
        self._done[self._open.popleft()] = done

    def cancel(self, task: bytes, now: float) -> bool:
        """Somebody cancels this task.  Whether the child is to be told: it waits in this packet, and that is news."""
        index = self._index.get(task)
        if index is None or index in self._done or index in self._doomed:
            return False
        runs = index == self._open[0]
        self._doomed[index] = now if runs else now + SETTLE_S
        return not runs

    def verdict(self, now: float) -> End | None:
        """How the member that runs must be ended now."""
        if not self._open:
            return None
        if now >= self._doomed.get(self._open[0], float("inf")):
            return "cancelled"
        walltime = self._members[self._open[0]].walltime_s
        return "walltime" if walltime and now >= self.since + walltime else None

    def due(self, now: float) -> float | None:
        """When to look again at the latest, if nothing happens before."""
        if not self._open:
            return None
        times = [when for index, when in self._doomed.items() if index not in self._done and when > now]
        # the end of one that has run for long rings; until then, any of those behind it may be running by now
        candidates = [self._open[0]] if now - self.since >= LONG_S else self._open
        times += [self.since + walltime for index in candidates if (walltime := self._members[index].walltime_s)]
        return min(times, default=None)
