"""Numbers that a part counts about itself: plain integers on the hot path, read by whoever wants them (`funcmq.forwarder.metrics`)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from funcmq.broker import api


class Tally:
    """How many values fell up to which bound, and their sum."""

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def number(self) -> int:
        """Of values."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, values up to it), the last bound `+Inf`."""
        found, total = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found


@dataclass(slots=True)
class Submitted:
    """Tasks by their verdict, since this process began."""

    accepted: int = 0
    same: int = 0
    refused: int = 0

    def count(self, accepted: int, verdicts: list[api.Verdict]) -> None:
        """A bundle was answered."""
        refused = sum(verdict.verdict == "refused" for verdict in verdicts) if verdicts else 0
        self.accepted += accepted
        self.refused += refused
        self.same += len(verdicts) - refused
