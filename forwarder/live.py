"""What endpoints said of themselves last.  All of it may be lost: the next heartbeat says it again."""

from __future__ import annotations

from dataclasses import dataclass

from funcmq.broker import skew
from funcmq.broker.messages import Heartbeat

ONLINE_MS = 30_000
MOST_RUNNING = 20_000
STAMP_MS = 2_000
"""AMQP timestamps are whole seconds."""
WIDE_MARGIN_MS = 300_000
"""Where the clock of an endpoint is not known: the skew that signatures allow."""
WIDEST_MARGIN_MS = 3_600_000
"""Where it is known to be off by more: then copies for late listeners are lost, and they find their results by asking the store."""
APART_MS, ALIKE_MS = 2_000, 5_000
"""Two heartbeats that arrive so far apart, with differences so much alike, tell of a clock; those of a full queue tell of their age."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A heartbeat and when it arrived (this host's clock, ms)."""

    heartbeat: Heartbeat
    seen: int

    @property
    def ahead_ms(self) -> int:
        """How much later than it arrived it was sent, by the endpoint's clock; on its way it lost some."""
        return self.heartbeat.at - self.seen


class Live:
    """Heartbeats by endpoint, and the tasks that were said to be running."""

    def __init__(self) -> None:
        self._signs: dict[str, Sign] = {}
        self._running: dict[bytes, tuple[int, str]] = {}
        self._reported: dict[str, int] = {}
        self._ahead: dict[str, int] = {}

    def beat(self, heartbeat: Heartbeat, now: int) -> None:
        """A heartbeat arrived; one of an earlier epoch than the last is a zombie's."""
        last = self._signs.get(heartbeat.endpoint)
        if last is not None and heartbeat.epoch < last.heartbeat.epoch:
            return
        sign = self._signs[heartbeat.endpoint] = Sign(heartbeat, now)
        if last is not None and now - last.seen >= APART_MS and abs(sign.ahead_ms - last.ahead_ms) <= ALIKE_MS:
            self._ahead[heartbeat.endpoint] = sign.ahead_ms

    def sign(self, endpoint: str) -> Sign | None:
        """The last heartbeat."""
        return self._signs.get(endpoint)

    def online(self, now: int) -> int:
        """How many endpoints have been heard of lately."""
        return sum(now - sign.seen <= ONLINE_MS for sign in self._signs.values())

    def clock_margin(self, endpoint: str) -> int:
        """How much earlier than an endpoint's clock says, in ms, a message of it may have been sent by this host's clock."""
        sign = self._signs.get(endpoint)
        return min(WIDEST_MARGIN_MS, STAMP_MS + 2 * abs(sign.ahead_ms)) if sign else WIDE_MARGIN_MS

    def clock_said(self, endpoint: str) -> str:
        """What there is to say of its clock, '' if it is right or not known."""
        return skew.sentence("this endpoint", self._ahead.get(endpoint, 0) / 1000, "the front door")

    def forget(self, endpoint: str) -> None:
        """It is gone."""
        self._signs.pop(endpoint, None)
        self._reported.pop(endpoint, None)
        self._ahead.pop(endpoint, None)

    def reported(self, endpoint: str, now: int) -> None:
        """Results of it came."""
        self._reported[endpoint] = now

    def reported_at(self, endpoint: str) -> int:
        """When results of it came last, 0 if none did."""
        return self._reported.get(endpoint, 0)

    def started(self, tasks: list[bytes], at: int, now: int, host: str = "") -> None:
        """These run, since `at` by their endpoint's clock, on this host ('' where unknown); beyond a bound the oldest are forgotten."""
        since = at if 0 < at <= now else now
        for task in tasks:
            self._running[task] = since, host
        while len(self._running) > MOST_RUNNING:
            del self._running[next(iter(self._running))]

    def ended(self, tasks: list[bytes]) -> None:
        """These do not run any more."""
        if self._running:
            for task in tasks:
                self._running.pop(task, None)

    def running_since(self, task: bytes) -> int:
        """When it was said to run, 0 if it was not."""
        return self.running_on(task)[0]

    def running_on(self, task: bytes) -> tuple[int, str]:
        """Since when it is said to run, and on which host: 0 and '' if it is not."""
        return self._running.get(task, (0, ""))

    def running(self) -> list[bytes]:
        """All that were said to run."""
        return list(self._running)
