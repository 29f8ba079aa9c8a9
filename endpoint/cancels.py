"""Telling workers which tasks to end: a CurveZMQ PUB socket with the certificates of the pool.

A subscriber may connect late and PUB forgets, so an id is said again every half second until somebody says that the task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import zmq
from parsl.curvezmq import ServerContext

REPEAT_S = 0.5


class Cancels:
    """A socket and the ids that it repeats.  Only for the event loop on which it was made."""

    def __init__(self, certificates: Path, address: str) -> None:
        self._context = ServerContext(certificates)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        port = self._socket.bind_to_random_port(f"tcp://{address}")
        self.address = f"tcp://{address}:{port}"
        """Where workers subscribe."""
        self._said: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None

    def say(self, ids: Iterable[bytes]) -> None:
        """End these tasks."""
        self._said.update(ids)
        self._repeat()

    def ended(self, ids: Iterable[bytes]) -> None:
        """These need not be said any more."""
        if self._said:
            self._said.difference_update(ids)

    def close(self) -> None:
        """Say nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._socket.close(linger=0)
        self._context.term()  # type: ignore[no-untyped-call]

    def _repeat(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for identifier in self._said:
            self._socket.send(identifier, zmq.NOBLOCK)
        if self._said:
            self._timer = asyncio.get_running_loop().call_later(REPEAT_S, self._repeat)
