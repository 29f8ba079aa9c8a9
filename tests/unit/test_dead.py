"""What the front door makes of evidence, and of what it is told of the dead."""

from __future__ import annotations

from funcmq.forwarder import evidence
from funcmq.forwarder.dead import Death, read_death
from funcmq.forwarder.evidence import LEFT_ALONE, MOST_REPEATS, Spans
from funcmq.forwarder.resend import LONGEST_MS, QUIET_MS, Stragglers


def test_the_newest_reason_decides() -> None:
    """RabbitMQ 3.10 writes the table `x-death`, its newest line first; 4.x names first and last beside it; strings may come as bytes."""
    table = [{"reason": "delivery_limit", "queue": "endpoint.b.tasks", "count": 1}, {"reason": "rejected", "queue": "other"}]
    assert read_death({"x-death": table, "x-first-death-reason": "rejected"}) == Death("delivery_limit", "endpoint.b.tasks")
    assert read_death({"x-death": [{"reason": b"rejected", "queue": b"q"}]}) == Death("rejected", "q")
    newer = {"x-first-death-reason": "expired", "x-last-death-reason": "maxlen", "x-last-death-queue": "q"}
    assert read_death(newer) == Death("maxlen", "q")


def test_nonsense_has_no_reason() -> None:
    """Headers that are missing or of another shape give no reason, and no error."""
    for headers in ({}, {"x-death": "x"}, {"x-death": []}, {"x-death": [7]}, {"x-death": None}):
        assert read_death(headers) == Death("", "")


def test_repeats_are_ever_further_apart_and_end() -> None:
    """Each repeat doubles the wait; after the third the bundle is left alone, and says so."""
    assert [evidence.wait(Spans(), repeats) for repeats in range(MOST_REPEATS)] == [60_000, 120_000, 240_000]
    assert [bool(evidence.left_alone(repeats)) for repeats in range(LEFT_ALONE + 1)] == [False] * LEFT_ALONE + [True]


def test_an_endpoint_is_asked_when_nothing_comes() -> None:
    """Results that do not come are asked for after a minute of quiet, then after twice that, and at last every ten minutes."""
    stragglers = Stragglers()
    asked = [now for now in range(0, 4_000_000, 10_000) if stragglers.look("e", 0, now + 1, holds=True, empty=True)]
    gaps = [after - before for before, after in zip([0, *asked], asked, strict=False)]
    assert gaps[:5] == [QUIET_MS, 2 * QUIET_MS, 4 * QUIET_MS, 8 * QUIET_MS, LONGEST_MS]
    assert set(gaps[4:]) == {LONGEST_MS}


def test_a_busy_endpoint_is_never_asked() -> None:
    """Something in the queue, results that came, or nothing held: each begins the quiet anew."""
    stragglers = Stragglers()
    for now in range(0, 600_000, 10_000):
        assert not stragglers.look("came", now // 50_000 * 50_000, now + 1, holds=True, empty=True)
        assert not stragglers.look("full", 0, now + 1, holds=True, empty=now % 50_000 != 0)
        assert not stragglers.look("done", 0, now + 1, holds=now % 50_000 != 0, empty=True)
