"""Functions that tests of the client send away."""

from __future__ import annotations

import sys
import time

LIMIT_S = 40
"""What a test with a client may take, on a busy machine."""


def double(number: int) -> int:
    return 2 * number


def add(*numbers: int, plus: int = 0) -> int:
    return sum(numbers) + plus


def fail(text: str) -> None:
    sys.stdout.write("before it failed\n")
    raise ValueError(text)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds
