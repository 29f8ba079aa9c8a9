"""Can this host work with a front door?  Each question is asked by itself, so that the first "no" names what is in the way.

Nothing here changes anything anywhere: no session is made and no lease asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import aiohttp
from aiormq.connection import TransportFactory
from yarl import URL

from funcmq.broker import api, releases, skew
from funcmq.broker.connection import Dialler, direct
from funcmq.broker.errors import FuncmqError, NotAllowed, NotLoggedIn
from funcmq.broker.http import Api, proxy_of
from funcmq.broker.transport import Way, allowed
from funcmq.broker.tunnel import Tunnel

Verdict = Literal["ok", "warning", "failed"]

WAIT_S = 10.0
CLOCK_WARNS_S, CLOCK_FAILS_S = 10.0, 300.0
"""Signatures that are 300 s in the future are refused."""
CERTIFICATE_WARNS_S = 14 * 86400
HELLO = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"
"""How AMQP 0-9-1 begins, from either side."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question; `hint` is what to do next."""

    check: str
    verdict: Verdict
    said: str
    hint: str = ""


async def network(url: str, token: str) -> list[Finding]:
    """Name, encryption, front door, its clock and release, broker: in this order, until one has failed that the next ones need."""
    found: list[Finding] = []
    for ask in (name, encryption, front_door):
        found += await ask(url)
        if any(finding.verdict == "failed" for finding in found):
            return found
    return [*found, await broker(url, token)]


async def name(url: str) -> list[Finding]:
    """Does the host have an address?"""
    host = urlsplit(url).hostname or ""
    if proxy := proxy_of(url):
        return [Finding("dns", "ok", f"{host} is asked for through the proxy {bare(proxy)}")]
    try:
        async with asyncio.timeout(WAIT_S):
            known = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        return [
            Finding("dns", "failed", f"no answer about {host} within {WAIT_S:g} s", "Check this host's name servers (/etc/resolv.conf).")
        ]
    except OSError as unknown:
        return [Finding("dns", "failed", f"{host}: {unknown.strerror}", "Check the spelling of the URL, and this host's name servers.")]
    addresses = dict.fromkeys(str(entry[4][0]) for entry in known)
    return [Finding("dns", "ok", f"{host} is {', '.join(addresses)}")]


async def encryption(url: str) -> list[Finding]:
    """Is the way to the front door encrypted, by a certificate that is believed here and will be for a while?"""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        if _loopback(host):
            return [Finding("tls", "ok", "not needed: the front door is on this host")]
        return [Finding("tls", "warning", "http: everybody on the way can read tokens and results", "Ask for an https:// URL.")]
    if proxy_of(url):
        return [Finding("tls", "ok", "checked with the front door, behind the proxy")]
    try:
        async with asyncio.timeout(WAIT_S):
            _, writer = await asyncio.open_connection(host, parts.port or 443, ssl=ssl.create_default_context())
    except ssl.SSLError as broken:
        hint = "Set SSL_CERT_FILE to the CA file of your site, or have the certificate renewed."
        return [Finding("tls", "failed", f"the certificate of {host} is not believed: {broken.reason or broken}", hint)]
    except (OSError, TimeoutError) as silent:
        return [Finding("tls", "failed", f"{host}:{parts.port or 443} does not answer: {_say(silent)}", "Check the port, and firewalls.")]
    certificate = writer.get_extra_info("peercert") or {}
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(WAIT_S):
            await writer.wait_closed()
    return [_certificate(str(certificate.get("notAfter", "")), host)]


def _certificate(until: str, host: str) -> Finding:
    left = ssl.cert_time_to_seconds(until) - time.time() if until else CERTIFICATE_WARNS_S
    said = f"the certificate of {host} is believed, until {until or '?'}"
    return Finding("tls", "ok", said) if left >= CERTIFICATE_WARNS_S else Finding("tls", "warning", said, "Have it renewed.")


async def front_door(url: str) -> list[Finding]:
    """Does a front door answer, is it well, and do clock and release fit?"""
    timeout = aiohttp.ClientTimeout(total=WAIT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, proxy=proxy_of(url)) as session:
            async with session.get(f"{url}/health") as response:
                health = await response.json(content_type=None)
                date, read = response.headers.get("Date", ""), time.time()
            async with session.get(f"{url}/ready") as response:
                ready = response.status < 300
        release = str(health["release"])
    except (aiohttp.ClientError, TimeoutError, OSError) as silent:
        hint = "Check the URL, that `funcmq serve` runs there, firewalls, and HTTPS_PROXY."
        return [Finding("http", "failed", f"{url} does not answer: {_say(silent)}", hint)]
    except (ValueError, KeyError, TypeError):
        return [Finding("http", "failed", f"{url} answers, but is no front door of funcmq", "Check the URL; a proxy may be in between.")]
    http = Finding("http", "ok", f"{url} answers")
    if not ready:
        http = Finding(
            "http", "warning", f"{url} answers, but has no broker or no database now", "Its `funcmq serve` logs say why; try again."
        )
    return [http, _clock(skew.ahead_s(date, read)), _release(release)]


def _clock(ahead: float) -> Finding:
    said = f"{skew.span(ahead)} {'ahead of' if ahead > 0 else 'behind'} the front door's"
    hint = "Set this host's clock right, best with NTP."
    if abs(ahead) >= CLOCK_FAILS_S:
        return Finding("clock", "failed", f"{said}: what is signed here is refused", hint)
    return Finding("clock", "warning", said, hint) if abs(ahead) >= CLOCK_WARNS_S else Finding("clock", "ok", f"{said}, at most")


def _release(theirs: str) -> Finding:
    ours = releases.release()
    said = f"funcmq {ours} here, {theirs} at the front door"
    if releases.neighbours(theirs, ours):
        return Finding("versions", "ok", said)
    return Finding("versions", "failed", f"{said}: only neighbouring releases work together", f"Here: {releases.pip_line(theirs)}")


async def broker(url: str, token: str) -> Finding:
    """Does the broker answer, straight or through a WebSocket of the front door?"""
    if not token:
        return Finding("broker", "warning", "not asked for: nobody is logged in here", "Run `funcmq login URL`.")
    try:
        only = allowed()
        async with Api(url, token, timeout=WAIT_S) as front:
            urls = (await front.call("GET", "/brokers", None, api.Brokers)).urls
            why = "FUNCMQ_TRANSPORT forbids it" if only is Way.TUNNEL else await _straight(urls)
            if not why:
                return Finding("broker", "ok", f"AMQP answers at {', '.join(urls)}")
            around = "FUNCMQ_TRANSPORT forbids it" if only is Way.DIRECT else await _silent(Tunnel(front), urls[0])
    except (NotLoggedIn, NotAllowed) as refused:
        return Finding("broker", "failed", f"the front door refuses the token: {refused.message}", refused.hint)
    except FuncmqError as broken:
        return Finding("broker", "failed", broken.message, broken.hint)
    if not around:
        return Finding("broker", "ok", f"AMQP through a WebSocket of {url} ({why})")
    hint = "Open the broker's port to this host, or let WebSockets of the front door pass; FUNCMQ_TRANSPORT chooses one."
    return Finding("broker", "failed", f"neither AMQP ({why}) nor a WebSocket ({around}) works", hint)


async def _straight(urls: list[str]) -> str:
    """'' if one of the nodes answers, else why the last does not."""
    why = "the front door names no broker"
    for url in urls:
        if not (why := await _silent(direct, url)):
            return ""
    return why


async def _silent(dial: Dialler, url: str) -> str:
    """Why AMQP does not answer this way; '' if it does."""
    try:
        async with asyncio.timeout(WAIT_S), dial(url) as how, _opened(how, url) as (reader, writer):
            writer.write(HELLO)
            said = await reader.readexactly(1)
    except asyncio.IncompleteReadError:
        return f"{url} hangs up"
    except (OSError, TimeoutError) as broken:
        return f"{url}: {_say(broken)}"
    return "" if said == METHOD_FRAME else f"{url} speaks something else than AMQP 0-9-1"


@contextlib.asynccontextmanager
async def _opened(how: TransportFactory, url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = URL(url)
    if address.explicit_port is None:
        address = address.with_port(5671 if address.scheme == "amqps" else 5672)
    reader, writer = await how.create(address, ssl_context_provider=_Trust())
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


class _Trust:
    """What aiormq asks for a TLS context."""

    async def get_context(self) -> ssl.SSLContext:
        """The system's certificates."""
        return ssl.create_default_context()


def bare(url: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _say(broken: BaseException) -> str:
    if isinstance(broken, TimeoutError):
        return f"nothing came within {WAIT_S:g} s"
    inner = getattr(broken, "os_error", broken)
    if (number := getattr(inner, "errno", None)) and number > 0:
        return os.strerror(number)
    return str(getattr(inner, "strerror", None) or broken or type(broken).__name__).rstrip(".")


def lines(found: list[Finding]) -> list[str]:
    """Findings for people: a line each, with what to do next."""
    width = max((len(finding.check) for finding in found), default=0)
    return [
        f"{finding.verdict:7}  {finding.check:{width}}  {finding.said}" + (f"  →  {finding.hint}" if finding.hint else "")
        for finding in found
    ]
