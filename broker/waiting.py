"""Why is it not running?  One sentence, the same from the front door and from clients, each with the clock on its own wall.

    endpoint offline since 14:02 (login3) · 17,203 tasks ahead · running on nid0012, 3 of 10 min

What a pool says of itself (`block started 2 min ago, no worker yet: …`) is passed on as it is.
"""

from __future__ import annotations

from datetime import datetime, tzinfo

from funcmq.broker.api import Waiting

_UNITS = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))
"""From this many seconds on, in units of so many."""
_PLAIN = {
    "broker": "waiting for the broker to confirm it",
    "delivery": "waiting for the endpoint to take it from its queue",
    "worker": "waiting for a worker",
}
_DAY_MS = 24 * 3600 * 1000


def sentence(waiting: Waiting, now: int, zone: tzinfo | None = None) -> str:
    """The sentence at `now` (ms); times of day are of `zone`, or of this machine.  A kind that is not known gives its reason, or ''."""
    if waiting.kind == "offline":
        since = f" since {clock(waiting.since, now, zone)}" if waiting.since else ""
        return f"endpoint offline{since}" + (f" ({waiting.host})" if waiting.host else "")
    if waiting.kind == "running":
        return f"running on {waiting.host}{_progress(max(0, now - waiting.since) / 1000, waiting.walltime_s)}"
    if waiting.kind == "ahead":
        return f"{waiting.ahead:,} {'task' if waiting.ahead == 1 else 'tasks'} ahead"
    return _PLAIN.get(waiting.kind, waiting.reason)


def clock(at: int, now: int, zone: tzinfo | None = None) -> str:
    """A time of day; with its date where that is not within a day of now."""
    moment = datetime.fromtimestamp(at / 1000, zone).astimezone(zone)
    text = moment.strftime("%H:%M" if abs(now - at) < _DAY_MS else "%d %b %H:%M")
    return f"{text} {zone.tzname(moment)}" if zone is not None else text


def _progress(seconds: float, most: float) -> str:
    """`, 3 of 10 min`, or ` for 3 min` where nobody said how long it may take."""
    size, unit = next((size, unit) for begin, size, unit in _UNITS if (most or seconds) >= begin)
    return f", {seconds / size:.0f} of {most / size:g} {unit}" if most else f" for {seconds / size:.0f} {unit}"


def ago(seconds: float) -> str:
    """A span of time in its largest fitting unit."""
    size, unit = next((size, unit) for begin, size, unit in _UNITS if seconds >= begin)
    return f"{seconds / size:.0f} {unit}"
