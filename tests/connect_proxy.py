"""A proxy as sites have them: it opens tunnels for CONNECT, may ask for a password, and does nothing else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

from tests.relay import join


class ConnectProxy:
    """See the module.  `asked` are the targets that somebody wanted, `refused` counts those without the password.

    :param names: addresses of hosts that it knows by names of its own.
    """

    def __init__(self, login: str = "", names: dict[str, str] | None = None) -> None:
        self._names = names or {}
        self.port = 0
        self.asked: list[str] = []
        self.refused = 0
        self._wanted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else ""
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset every tunnel that stands."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = line.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            if method != "CONNECT":
                await _answer(writer, "405 Method Not Allowed")
            elif self._wanted and headers.get("proxy-authorization") != self._wanted:
                self.refused += 1
                await _answer(writer, "407 Proxy Authentication Required")
            else:
                await self._tunnel(target, reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async def _tunnel(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(target)
        host, _, port = target.rpartition(":")
        there = await asyncio.open_connection(self._names.get(host, host), int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await join((reader, writer), there, self._writers)


async def _answer(writer: asyncio.StreamWriter, status: str) -> None:
    writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    await writer.drain()


@contextlib.asynccontextmanager
async def connect_proxy(login: str = "", host: str = "127.0.0.1", names: dict[str, str] | None = None) -> AsyncIterator[ConnectProxy]:
    """A running proxy; `login` is `user:password` where it asks for one."""
    it = ConnectProxy(login, names)
    server = await asyncio.start_server(it._serve, host, 0)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        it.cut()
        await server.wait_closed()
