"""When is a bundle missing?  A core without I/O.

Age says nothing: an endpoint may be away for days, and its queue keeps what it was sent.  A bundle that the broker confirmed and no
endpoint received counts as missing only on evidence, of one of two kinds: the endpoint has received a bundle whose publish began after
this one was confirmed (the queue keeps the order), or the queue was seen empty after that.  And a while must have passed, for receipts
that are on their way.  It is sent again at most three times, each time after twice the wait; then it is left alone, and ends by `expired`
if nothing comes.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_REPEATS = 3
LEFT_ALONE = MOST_REPEATS + 1
"""The count of a bundle that went missing once more after the last repeat."""
DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Spans:
    """How long the reconciler waits for what, in ms."""

    unconfirmed: int = 60_000
    """After it was given to the broker without a confirm, a bundle is given again."""
    missing: int = 60_000
    """After its confirm, evidence counts; twice as long after each repeat."""
    forgotten: int = 300_000
    """After the last of its tasks was to have started, a bundle that nobody received has expired."""
    silent: int = 14 * DAY_MS
    """After its last sign, an endpoint has taken what it received along with it."""
    look: int = 60_000
    """Between two looks at the same queue."""


def wait(spans: Spans, repeats: int) -> int:
    """How long after its confirm a bundle that was repeated so often may be missing, in ms."""
    return spans.missing << repeats


@dataclass(frozen=True, slots=True)
class Witness:
    """What is known of one endpoint's queue: when the newest bundle was accepted that it has received (0: none), and whether the queue is
    empty now.  Missing is what was confirmed before the one, or, with the other, all of it.
    """

    heard: int
    empty: bool


def left_alone(repeats: int) -> str:
    """Why a bundle that was repeated so often is not sent any more, for people; '' while it is."""
    if repeats < LEFT_ALONE:
        return ""
    return f"sent {LEFT_ALONE} times and never received by its endpoint; see `funcmq dead list`"
