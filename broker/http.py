"""Calling a front door: one session, typed bodies, and the errors of the other side raised here by their own names."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from funcmq.broker import api, codec, pump, releases, skew
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotLoggedIn, TaskExpired, Unreachable

log = logging.getLogger("funcmq.http")

T = TypeVar("T", bound=api.Record)

TIMEOUT_S = 60.0
CONNECT_S = 10.0
LARGE = 512 * 1024
"""Bytes from which a body is sent in pieces: aiohttp warns of larger ones, because one piece would hold up the event loop."""
CLOCK_S = 60.0
"""Between two looks at the clock of the front door."""

_decode_json = msgspec.json.Decoder(api.ErrorAnswer).decode


class Api:
    """A front door at `url` (without `/v1`), called with a token.  An async context manager; safe for concurrent calls on one event loop.

    Every call raises the FuncmqError that the front door named, and `Unreachable` when nobody answers or the connection breaks: then the
    request may have been carried out or not.  `Busy` carries `retry_after` in seconds.  Nothing is retried here.

    Two things are looked at on the way: the front door's release (`VersionMismatch` where it is no neighbour of ours), and its clock (a
    warning names the difference where it is a minute or more, and so does every refusal that a wrong clock explains).
    """

    def __init__(self, url: str, token: str = "", *, timeout: float = TIMEOUT_S) -> None:
        if not (token.isascii() and token.isprintable()):
            raise NotLoggedIn("This is no token: it contains characters that no token has.")
        self.url = url.rstrip("/")
        self._headers = {"Accept": api.MSGPACK, releases.HEADER: releases.release()}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self.ahead_s = 0.0
        """How many seconds this host's clock is ahead of the front door's, as far as is known."""
        self._clock_known = -CLOCK_S
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_S)
        self._proxy = proxy_of(url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        # not trust_env: that reads ~/.netrc too, on a thread for every request, and then refuses to send a token beside what it found
        connector = aiohttp.TCPConnector(limit=32)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout, proxy=self._proxy, connector=connector)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, method: str, path: str, body: api.Record | None, answer: type[T]) -> T:
        """Send a body, get an answer of this type.  `path` begins after `/v1`."""
        data = None if body is None else codec.encode(body)
        return codec.decode(answer, await self._request(method, path, data, api.MSGPACK))

    async def tell(self, method: str, path: str, body: api.Record | None = None) -> None:
        """As `call`, where the answer says nothing."""
        await self._request(method, path, None if body is None else codec.encode(body), api.MSGPACK)

    async def list(self, path: str, row: type[T]) -> list[T]:
        """GET a list of rows."""
        return codec.decode(list[row], await self._request("GET", path, None, api.MSGPACK), "list")  # type: ignore[valid-type]

    async def send_raw(self, path: str, data: bytes, answer: type[T]) -> T:
        """POST exact bytes: a signed bundle or a function record."""
        return codec.decode(answer, await self._request("POST", path, data, api.RAW))

    async def fetch_raw(self, path: str) -> bytes:
        """GET exact bytes."""
        return await self._request("GET", path, None, api.RAW, accept=api.RAW)

    async def websocket(self, path: str) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket; the caller closes it.

        :raises FuncmqError: as every call; the front door's own words are lost, because a refused WebSocket has no body for aiohttp.
        """
        if self._session is None:
            raise RuntimeError("an Api is used with `async with`")
        patience = aiohttp.ClientWSTimeout(ws_close=pump.CLOSE_S)
        try:
            async with asyncio.timeout(2 * CONNECT_S):
                return await self._session.ws_connect(f"{self.url}/v1{path}", timeout=patience, max_msg_size=pump.LARGEST)
        except aiohttp.WSServerHandshakeError as refused:
            raise _refused(refused.status, self.url) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as broken:
            raise Unreachable(f"{self.url} does not answer: {_reason(broken)}.") from None

    async def _request(self, method: str, path: str, data: bytes | None, kind: str, accept: str = api.MSGPACK) -> bytes:
        if self._session is None:
            raise RuntimeError("an Api is used with `async with`")
        headers = {"Content-Type": kind, "Accept": accept} if data is not None else {"Accept": accept}
        sent = io.BytesIO(data) if data is not None and len(data) >= LARGE else data
        try:
            async with self._session.request(method, f"{self.url}/v1{path}", data=sent, headers=headers, allow_redirects=False) as response:
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as broken:
            raise Unreachable(f"{self.url} does not answer: {_reason(broken)}.") from None
        self._look_at_clock(response.headers.get("Date", ""))
        if response.status >= 300:
            raise self._explained(_error(response.status, response.headers, content, self.url))
        releases.check(response.headers.get(releases.HEADER, ""), releases.release())
        return content

    def _look_at_clock(self, date: str) -> None:
        if time.monotonic() - self._clock_known < CLOCK_S or not date:
            return
        before, self.ahead_s = self._clock_said(), skew.ahead_s(date, time.time())
        self._clock_known = time.monotonic()
        if (said := self._clock_said()) and not before:
            log.warning("%s  Set it right, best with NTP: what is signed here carries its time.", said, extra={"action": "clock_is_off"})

    def _clock_said(self) -> str:
        return skew.sentence("this computer", self.ahead_s, f"the front door {self.url}")

    def _explained(self, error: FuncmqError) -> FuncmqError:
        """With the difference of the clocks, where that may be the reason."""
        if isinstance(error, InvalidRequest | TaskExpired | NotLoggedIn) and (said := self._clock_said()):
            error.hint = f"{error.hint}  {said}".strip()
        return error


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for this URL (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""
    parts = urlsplit(url)
    return None if not parts.hostname or proxy_bypass(parts.hostname) else getproxies().get(parts.scheme)


def _reason(broken: Exception) -> str:
    """What the system says, without aiohttp's address and TLS context around it, nor a proxy's URL, which may hold a password."""
    if isinstance(broken, aiohttp.ClientHttpProxyError):
        return f"its proxy answered {broken.status} {broken.message}".rstrip(" .")
    if isinstance(broken, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted here ({getattr(broken.certificate_error, 'verify_message', broken.certificate_error)})"
    if isinstance(broken, aiohttp.ClientConnectorError) and (number := broken.os_error.errno):
        return os.strerror(number) if number > 0 else str(broken.os_error.strerror)
    return (str(broken) or type(broken).__name__).rstrip(".")


def _refused(status: int, url: str) -> FuncmqError:
    if status == 401:
        return NotLoggedIn()
    if status == 503:
        return Busy(f"{url} has no way to its broker now, or no room for another WebSocket.")
    hint = "A proxy in between may let no WebSocket pass, or the front door is of an older release."
    return Unreachable(f"{url} answered {status} where a WebSocket should open.", hint=hint)


def _error(status: int, headers: Mapping[str, str], content: bytes, url: str) -> FuncmqError:
    kind = headers.get("Content-Type", "")
    try:
        said = codec.decode(api.ErrorAnswer, content) if kind.startswith(api.MSGPACK) else _decode_json(content)
    except (FuncmqError, msgspec.DecodeError):
        if status == 401:
            return NotLoggedIn()
        return Unreachable(
            f"{url} answered {status}, and not as a funcmq front door would.", hint="Check the URL; a proxy may be in between."
        )
    return said.error.error()
