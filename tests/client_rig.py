"""Functions that tests of the client send away."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

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


def hold(folder: str) -> None:
    """Say that it has begun, then keep its worker until there is a file `go`."""
    (Path(folder) / f"began-{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.02)
