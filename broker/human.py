"""Times, durations and sizes as people read them."""

from __future__ import annotations

import time

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def ago(milliseconds: int, now: float | None = None) -> str:
    """How long since a time (ms since the epoch), or until it, in one unit; '' for 0.  `now` is in seconds."""
    if not milliseconds:
        return ""
    seconds = (time.time() if now is None else now) - milliseconds / 1000
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"


def moment(milliseconds: int, now: float | None = None) -> str:
    """A time of day of this host's zone, with the date and the distance from now; '' for 0."""
    if not milliseconds:
        return ""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(milliseconds / 1000))} ({ago(milliseconds, now)})"


def duration(seconds: float) -> str:
    """A length of time, in one unit."""
    for size, unit in _UNITS:
        if abs(seconds) >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(number: float) -> str:
    """Bytes, in the unit that leaves three digits or so."""
    power = 0
    while abs(number) >= 1024 and power < len(_SIZES) - 1:
        number, power = number / 1024, power + 1
    return f"{number:.0f} {_SIZES[power]}" if power == 0 or number >= 100 else f"{number:.1f} {_SIZES[power]}"
