"""How the long-running processes run: the fastest event loop there is, tuned for one busy loop beside one thread that writes to a disk."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SWITCH_S = 0.0005
"""How long the loop may keep the interpreter's lock from the thread that writes, which asks for it after every row.

With Python's own 5 ms a busy loop slows the writing of 1,024 rows from 5 ms to seconds (measured).
"""
COLLECT_AFTER = 20_000
"""New objects between two garbage collections: a message makes hundreds and hardly a cycle; Python's own 700 is for scripts."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run work to its end; errors come as they are, also those of task groups."""
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    gc.freeze()
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(work)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - not everywhere

        return uvloop.new_event_loop
    return None
