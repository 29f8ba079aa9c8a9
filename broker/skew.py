"""Clocks that are off: signatures, `expires` and leases compare clocks of several hosts, so a wrong one is said, with the difference."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

WORTH_SAYING_S = 60.0
"""Less is drift, or the way of the message."""


def ahead_s(date: str, now: float) -> float:
    """How many seconds this host's clock (`now`, since the epoch) is ahead of the `Date` header of an answer just read, negative if behind.

    The header counts whole seconds and the answer took its time, so a second or two mean nothing.  0 where the header is none.
    """
    try:
        said = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return 0.0
    return now - (said if said.tzinfo else said.replace(tzinfo=UTC)).timestamp()


def span(seconds: float) -> str:
    """A difference as people say it, without its sign: `42 s`, `5 min 3 s`, `2 h 10 min`, `3 d 2 h`."""
    whole = round(abs(seconds))
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{whole} s"


def sentence(whose: str, seconds: float, than: str) -> str:
    """What to say of a clock that is so much ahead of another one (behind, if negative); '' when it is not worth saying."""
    if abs(seconds) < WORTH_SAYING_S:
        return ""
    return f"The clock of {whose} is {span(seconds)} {'ahead of' if seconds > 0 else 'behind'} that of {than}."
