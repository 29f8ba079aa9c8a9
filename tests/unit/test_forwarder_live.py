"""Laws of what is known of endpoints from their heartbeats: their clocks."""

from __future__ import annotations

import pytest

from funcmq.broker.messages import Heartbeat
from funcmq.forwarder.live import WIDE_MARGIN_MS, Live

NOW = 1_800_000_000_000
LAB = "0" * 32


def beat(at: int, epoch: int = 1) -> Heartbeat:
    return Heartbeat(1, LAB, epoch, "j", at, "lab3", 1, "0", [], {}, 0, 0)


@pytest.mark.parametrize(("ahead_s", "said"), [(600, "10 min ahead of"), (-185, "3 min 5 s behind"), (59, ""), (0, ""), (-2, "")])
def test_a_clock_that_is_minutes_off_is_said_with_the_difference(ahead_s: int, said: str) -> None:
    """From the second heartbeat on; less than a minute is not worth a word."""
    live = Live()
    for after in (0, 5_000):
        assert live.clock_said(LAB) == ""
        live.beat(beat(NOW + after + ahead_s * 1000), NOW + after)
    assert (said in live.clock_said(LAB)) if said else live.clock_said(LAB) == ""


def test_old_heartbeats_are_no_slow_clock() -> None:
    """What waited in the queue while the front door was away arrives at once, each with another age."""
    live = Live()
    for sent in range(0, 600_000, 5_000):
        live.beat(beat(NOW - 600_000 + sent), NOW)
    live.beat(beat(NOW + 5_000), NOW + 5_000)
    assert live.clock_said(LAB) == ""


def test_a_clock_that_is_set_right_is_said_no_more() -> None:
    """Two good heartbeats take the sentence away, and so does the end of the endpoint."""
    live = Live()
    for after, ahead in ((0, 600), (5, 600), (10, 0), (15, 0)):
        live.beat(beat(NOW + (after + ahead) * 1000), NOW + after * 1000)
    assert live.clock_said(LAB) == ""


@pytest.mark.parametrize("ahead_s", [-900, -30, 0, 30, 900])
def test_late_listeners_are_reckoned_with_the_endpoints_clock(ahead_s: int) -> None:
    """A message is never thought to have been sent later than it was: its time, minus the margin, is not after the true one."""
    live = Live()
    assert live.clock_margin(LAB) == WIDE_MARGIN_MS
    live.beat(beat(NOW + ahead_s * 1000), NOW)
    true = NOW + 1_000
    assert true + ahead_s * 1000 - live.clock_margin(LAB) <= true


def test_a_zombie_says_nothing() -> None:
    """A heartbeat of an earlier epoch changes nothing, nor what is known of the clock."""
    live = Live()
    live.beat(beat(NOW, epoch=2), NOW)
    for after in (5_000, 10_000):
        live.beat(beat(NOW + after + 600_000, epoch=1), NOW + after)
    sign = live.sign(LAB)
    assert sign is not None
    assert sign.heartbeat.epoch == 2
    assert live.clock_said(LAB) == ""
