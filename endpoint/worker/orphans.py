"""Ending with one's parent."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def signal_when_orphaned(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the thread that started it ends, however that happens.  Linux only; nothing
    elsewhere.

    A parent that is gone already is not noticed: compare `os.getppid()` afterwards.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
