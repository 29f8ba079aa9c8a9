"""The way to a broker through the front door: a WebSocket that carries the bytes of one AMQP connection.

Nothing listens anywhere for it: aio-pika is handed one end of a pair of sockets, the other end is pumped.  So no other process of this
host can get into the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from aiormq.connection import TransportFactory

from funcmq.broker.errors import FuncmqError
from funcmq.broker.http import Api
from funcmq.broker.pump import WebSocket, carry

log = logging.getLogger("funcmq.link")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Tunnel:
    """A Dialler (see `funcmq.broker.connection`) through the front door that `front` calls, with its token and its proxy.

    It raises OSError where there is no way through.  The URL says only which vhost is meant, and whether the way must be safe: the front
    door chooses the broker.
    """

    def __init__(self, front: Api) -> None:
        self._front = front

    def __str__(self) -> str:
        return f"a WebSocket of {self._front.url}"

    @contextlib.asynccontextmanager
    async def __call__(self, url: str) -> AsyncIterator[TransportFactory]:
        self._check(url)
        try:
            web = await self._front.websocket("/amqp")
        except FuncmqError as refused:
            raise ConnectionError(refused.message) from None
        ours, theirs = socket.socketpair()
        given = _Given(ours)
        pump = asyncio.create_task(_pump(web, theirs), name="tunnel")
        try:
            yield given
        finally:
            given.forget()
            pump.cancel()
            await asyncio.wait({pump})
            await web.close()

    def _check(self, url: str) -> None:
        """What TLS was to protect does not travel in the clear."""
        front = urlsplit(self._front.url)
        if urlsplit(url).scheme == "amqps" and front.scheme != "https" and front.hostname not in LOOPBACK:
            raise ConnectionError(f"{self._front.url} is not encrypted, as the broker's own port would be")


class _Given(TransportFactory):
    """A connection that stands already, for whoever asks first."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected: socket.socket | None = connected

    async def create(self, url: Any, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:  # noqa: ARG002 - aiormq's words
        connected, self._connected = self._connected, None
        if connected is None:
            raise ConnectionError("a tunnel carries one connection")
        return await asyncio.open_connection(sock=connected)

    def forget(self) -> None:
        """Close it if nobody has asked."""
        if self._connected is not None:
            self._connected.close()


async def _pump(web: WebSocket, end: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=end)
    log.debug("a tunnel ended: %s", await carry(web, reader, writer))
