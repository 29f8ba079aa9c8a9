"""An event loop on a thread of its own, for programs that have none."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EXIT_S = 10.0
"""How long the end of the process waits for what was submitted to be accepted."""


class Background:
    """An event loop on a daemon thread.  At the end of the process `at_exit` runs on it first."""

    def __init__(self, at_exit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._at_exit = at_exit
        self._pid = os.getpid()
        self._stop: asyncio.Event | None = None
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live(started)), name="funcmq executor", daemon=True)
        self._thread.start()
        started.wait()
        at_exit_of_process(self._exit)

    async def _live(self, started: threading.Event) -> None:
        self.loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        await self._stop.wait()

    @property
    def alive(self) -> bool:
        """Whether the loop still runs."""
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the loop and wait for the outcome.

        :raises RuntimeError: called on the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("This would block the event loop that has to do the work; call it from another thread.")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop; not waited for when called on its own thread."""
        if self._stop is not None and self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _exit(self) -> None:
        if os.getpid() != self._pid or not self._thread.is_alive():  # a forked child has no such thread
            return
        with contextlib.suppress(Exception, KeyboardInterrupt):
            asyncio.run_coroutine_threadsafe(self._at_exit(), self.loop).result(EXIT_S)
        self.stop()


def at_exit_of_process(call: Callable[[], None]) -> None:
    """Before thread pools are closed, which asyncio uses: atexit comes after that.  It is what is left where Python has no such hook."""
    getattr(threading, "_register_atexit", atexit.register)(call)
