"""Hearing from the daemon which tasks to end: a ZeroMQ subscription, CurveZMQ with the certificates of the pool."""

from __future__ import annotations

import zmq
from parsl.curvezmq import ClientContext

_ID = 16


class Cancels:
    """A subscription that stays over many packets.  What was said before it was connected, or while more than 1,000 messages lay unread, it
    has not heard: the daemon repeats.
    """

    def __init__(self) -> None:
        self._address = ("", "")
        self._context: ClientContext | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def listen(self, address: str, certificates: str) -> None:
        """Subscribe there, if that is not so yet; '' for nowhere.

        :raises OSError, ValueError, zmq.ZMQError: the certificates cannot be read, or that is no address.
        """
        if (address, certificates) == self._address:
            return
        self.close()
        if address:
            try:
                self._connect(address, certificates)
            except BaseException:
                self.close()
                raise
        self._address = (address, certificates)

    def _connect(self, address: str, certificates: str) -> None:
        self._context = ClientContext(certificates or None)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(address)

    @property
    def fd(self) -> int | None:
        """Becomes readable when there may be something to `hear`; edge-triggered, so hear until there is nothing before waiting for it."""
        return None if self._socket is None else int(self._socket.getsockopt(zmq.FD))

    def hear(self) -> list[bytes]:
        """The task ids said since the last time; never waits."""
        heard: list[bytes] = []
        while self._socket is not None and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = self._socket.recv(zmq.NOBLOCK)
            if len(message) == _ID:
                heard.append(message)
        return heard

    def close(self) -> None:
        """Hear nothing more."""
        if self._socket is not None:
            self._socket.close(linger=0)
        if self._context is not None:
            self._context.destroy(linger=0)
        self._address, self._context, self._socket = ("", ""), None, None
