"""The bytes of one connection between a WebSocket and a stream: both ways, in bounded buffers, and none of them looked at.

Back-pressure is the streams' own: nothing is read from one side before the other has taken what was read before.
Each side pings on a timer of its own, and takes silence of the other for its end, but only while it listens: one that is held up by its
own stream hears nothing, and is not answered.  (aiohttp's own heartbeat ends such a connection.)
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

import aiohttp

CHUNK = 64 * 1024
LARGEST = 4 * CHUNK
"""Bytes of a WebSocket message that either side takes: more is not ours."""
BEAT_S = 15.0
SILENT_S = 3 * BEAT_S
CLOSE_S = 2.0
"""How long the other side may take to answer a close."""


class WebSocket(Protocol):
    """What the WebSockets of aiohttp's server and client have in common."""

    async def send_bytes(self, data: bytes) -> None: ...

    async def ping(self, message: bytes = b"") -> None: ...

    async def receive(self, timeout: float | None = None) -> Any: ...


async def carry(socket: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: asyncio.Event | None = None) -> str:
    """Carry until one side ends or `told` is set, and say what it was; what had come from a side that ended has reached the other.

    The writer is closed then; the WebSocket is left to the caller, who knows with what word to close it.  Cancelling is safe.
    """
    parts = [_outward(reader, socket), _inward(socket, writer), _beat(socket), _told(told or asyncio.Event())]
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task.result() for task in tasks if task in done)
    finally:
        for task in tasks:
            task.cancel()
        writer.close()  # before anything is awaited: a cancel may come here too
        await asyncio.gather(*tasks, return_exceptions=True)


async def _outward(reader: asyncio.StreamReader, socket: WebSocket) -> str:
    try:
        while data := await reader.read(CHUNK):
            await socket.send_bytes(data)
    except (OSError, aiohttp.ClientError) as broken:
        return f"broken: {broken}"
    return "the connection was closed"


async def _inward(socket: WebSocket, writer: asyncio.StreamWriter) -> str:
    while True:
        try:
            message = await socket.receive(timeout=SILENT_S)
        except TimeoutError:
            return f"nothing was heard for {SILENT_S:g} s"
        if message.type is not aiohttp.WSMsgType.BINARY:
            return _ended(message)
        try:
            writer.write(message.data)
            await writer.drain()
        except OSError as broken:
            return f"broken: {broken}"


def _ended(message: Any) -> str:
    if message.type is aiohttp.WSMsgType.CLOSE:
        return f"the WebSocket was closed with {message.data}{f' ({message.extra})' if message.extra else ''}"
    if message.type is aiohttp.WSMsgType.TEXT:
        return "text came where bytes should"
    return "the WebSocket was closed" if message.data is None else f"the WebSocket broke: {message.data}"


async def _beat(socket: WebSocket) -> str:
    with contextlib.suppress(OSError, aiohttp.ClientError):
        while True:
            await asyncio.sleep(BEAT_S)
            await socket.ping()
    return "the WebSocket broke"


async def _told(told: asyncio.Event) -> str:
    await told.wait()
    return "it was told to end"
