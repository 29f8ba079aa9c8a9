"""`GET /v1/amqp`: a WebSocket that carries the bytes of one AMQP connection to the broker, for callers whose firewall lets out no AMQP.

It gives no rights: RabbitMQ asks for user and password as it does on its own port, and no byte is looked at here.  A tunnel belongs to a
token, and ends when the token does.  A front door that ends closes its tunnels; links come back by themselves, through another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import WSCloseCode, web
from yarl import URL

from funcmq.broker import pump
from funcmq.broker.errors import Busy, NotLoggedIn
from funcmq.forwarder.door import Door
from funcmq.forwarder.people import Caller
from funcmq.forwarder.web import Route, Who, admit

log = logging.getLogger("funcmq.amqp")

MOST = {"user": 64, "endpoint": 8}
"""Tunnels that one caller may have: a link takes two, and those of a lost link may stay for `pump.SILENT_S`."""
BROKER_S = 5.0
REVIEW_S = 60.0
"""Between two looks at all tokens, where nobody has said that rights changed."""
PORTS = {"amqp": 5672, "amqps": 5671}


@dataclass(eq=False, slots=True)
class Tunnel:
    """An open one."""

    token: str = field(repr=False)
    caller: Caller
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    code: int = WSCloseCode.OK
    word: bytes = b""

    @property
    def owner(self) -> str:
        """On whose account it is counted."""
        return self.caller.endpoint or self.caller.user

    def end(self, code: int, word: bytes) -> None:
        """Close it with this code and word."""
        self.code, self.word = code, word
        self.ended.set()


class Tunnels:
    """The tunnels of one front door."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._open: set[Tunnel] = set()
        self._rights_changed = asyncio.Event()
        door.known.watchers.append(self._rights_changed.set)

    def add_to(self, app: web.Application) -> None:
        """Serve them there, and close them before it ends."""
        app.router.add_get("/v1/amqp", self._serve)
        app.cleanup_ctx.append(self._reviewed)
        app.on_shutdown.append(self._end_all)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        caller = await admit(request, ROUTE, self._door)
        assert caller is not None, "the route takes nobody without a token"
        tunnel = Tunnel(request.headers["Authorization"].partition(" ")[2].strip(), caller)
        if sum(other.owner == tunnel.owner for other in self._open) >= MOST[caller.kind]:
            raise Busy(f"You have {MOST[caller.kind]} connections through this front door already.", retry_after=pump.SILENT_S)
        self._open.add(tunnel)
        try:
            return await self._carry(request, tunnel)
        finally:
            self._open.discard(tunnel)

    async def _carry(self, request: web.Request, tunnel: Tunnel) -> web.WebSocketResponse:
        reader, writer = await reach(self._door.settings.broker.urls)
        socket = web.WebSocketResponse(timeout=pump.CLOSE_S, compress=False, max_msg_size=pump.LARGEST)
        try:
            await socket.prepare(request)
            why = await pump.carry(socket, reader, writer, tunnel.ended)
            log.debug("a tunnel of %s ends: %s", tunnel.owner, why)
            await socket.close(code=tunnel.code, message=tunnel.word)
        finally:
            writer.close()
        return socket

    async def _reviewed(self, _: web.Application) -> AsyncIterator[None]:
        review = asyncio.create_task(self._review(), name="review tunnels")
        yield
        review.cancel()
        await asyncio.wait({review})

    async def _review(self) -> None:
        """End the tunnels of tokens that work no more."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REVIEW_S):
                    await self._rights_changed.wait()
            self._rights_changed.clear()
            for token in {tunnel.token for tunnel in self._open}:
                await self._look_at(token)

    async def _look_at(self, token: str) -> None:
        try:
            await self._door.caller(token)
        except NotLoggedIn:
            for tunnel in self._open:
                if tunnel.token == token:
                    tunnel.end(WSCloseCode.POLICY_VIOLATION, b"the token works no more")
        except Exception:  # whatever ails the store, tokens are looked at again
            log.exception("tokens of tunnels could not be looked at", extra={"action": "tunnels_not_reviewed"})

    async def _end_all(self, _: web.Application) -> None:
        for tunnel in self._open:
            tunnel.end(WSCloseCode.GOING_AWAY, b"the front door ends")


async def _refuse(*_: object) -> None:
    raise NotImplementedError("a WebSocket is not answered like other requests")


ROUTE = Route("GET", "/amqp", _refuse, Who.USER | Who.ENDPOINT, None, None, 101)


async def reach(urls: tuple[str, ...]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to one node of the broker, in random order.

    :raises Busy: none answers.
    """
    for url in random.sample(urls, len(urls)):
        with contextlib.suppress(OSError):  # TimeoutError and SSLError are OSErrors too
            async with asyncio.timeout(BROKER_S):
                return await _connect(URL(url))
    raise Busy("The broker does not answer the front door.")


async def _connect(url: URL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = await asyncio.to_thread(_context, url) if url.scheme == "amqps" else None
    return await asyncio.open_connection(url.host, url.port or PORTS[url.scheme], ssl=context)


def _context(url: URL) -> ssl.SSLContext:
    """TLS as the URL says, but without the front door's own certificate: that would log somebody else in as the front door."""
    context = ssl.create_default_context(cafile=url.query.get("cafile"), capath=url.query.get("capath"))
    if url.query.get("no_verify_ssl", "0") != "0":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
