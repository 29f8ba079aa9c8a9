"""Which releases of funcmq understand each other: those of one major number whose minor numbers are neighbours (design §7).

Both sides of HTTP name their release in the header `Funcmq-Release`; whoever does not (curl, a browser) is taken at their word.
"""

from __future__ import annotations

import functools
import re
from importlib.metadata import version

from funcmq.broker.errors import VersionMismatch

HEADER = "Funcmq-Release"
_NUMBERS = re.compile(r"(\d{1,9})\.(\d{1,9})")


@functools.cache
def release() -> str:
    """The release that is installed here."""
    return version("funcmq")


@functools.lru_cache(256)  # asked at every request, and mostly the same
def neighbours(one: str, other: str) -> bool:
    """Whether two releases work together; text that is no release is not held against anybody."""
    here, there = _NUMBERS.match(one), _NUMBERS.match(other)
    if here is None or there is None:
        return True
    return here[1] == there[1] and abs(int(here[2]) - int(there[2])) <= 1


def check(front_door: str, caller: str) -> None:
    """:raises VersionMismatch: they are too far apart; it names both, and the line that brings the caller to the front door's release."""
    if not neighbours(front_door, caller):
        raise VersionMismatch(
            f"The front door has funcmq {front_door}, the side that calls it has {caller[:64]}; only neighbouring releases work together.",
            hint=f"On the calling side: {pip_line(front_door)}",
            front_door=front_door,
            caller=caller[:64],
        )


def pip_line(wanted: str) -> str:
    """What brings a Python to the minor release of `wanted`."""
    numbers = _NUMBERS.match(wanted)
    return f"pip install 'funcmq=={numbers[1]}.{numbers[2]}.*'" if numbers else "pip install --upgrade funcmq"
