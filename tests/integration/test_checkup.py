"""Laws of the doctor's questions about a front door, with servers that are wrong in one thing each."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from funcmq.broker import checkup, releases
from funcmq.broker.checkup import Finding
from funcmq.dev.stack import Stack

Answer = Callable[[web.Request], Awaitable[web.Response]]


def health(release: str = releases.release(), clock: float = 0.0) -> Answer:
    """A front door of this release, whose clock is so many seconds ahead."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"release": release}, headers={"Date": formatdate(time.time() + clock, usegmt=True)})

    return answer


@asynccontextmanager
async def front_door(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Something that listens; its URL."""
    app = web.Application()
    app.router.add_get("/{anything}", answer)
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def look(url: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in await checkup.network(url, "")}


@pytest.mark.asyncio
@pytest.mark.parametrize(("ahead", "verdict"), [(0, "ok"), (-60, "warning"), (400, "failed"), (-400, "failed")])
async def test_a_clock_that_is_off(ahead: float, verdict: str) -> None:
    """A minute is worth a warning, more than signatures allow is a failure that says what to do."""
    async with front_door(health(clock=ahead)) as url:
        clock = (await look(url))["clock"]
    assert (clock.verdict, bool(clock.hint)) == (verdict, verdict != "ok")


@pytest.mark.asyncio
async def test_another_release() -> None:
    """A release that is no neighbour is a failure with the pip line."""
    async with front_door(health("7.3.0")) as url:
        versions = (await look(url))["versions"]
    assert (versions.verdict, "pip install 'funcmq==7.3.*'" in versions.hint) == ("failed", True)


@pytest.mark.asyncio
async def test_something_else_answers() -> None:
    """A web server that is no front door is told from one, and nothing further is asked."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    async with front_door(page) as url:
        found = await look(url)
    assert (found["http"].verdict, "no front door" in found["http"].said, "broker" in found) == ("failed", True, False)


@pytest.mark.asyncio
async def test_a_certificate_that_nobody_has_signed(tmp_path: Path) -> None:
    """It is not believed, and the hint says how a site's own authority is."""
    async with front_door(health(), _context(tmp_path)) as url:
        found = await look(url)
    assert (found["tls"].verdict, "SSL_CERT_FILE" in found["tls"].hint) == ("failed", True)


@pytest.mark.asyncio
async def test_a_name_that_is_nobodys() -> None:
    """DNS fails first, with what to check; nothing further is asked."""
    found = await look("http://no-such-host.invalid")
    assert list(found) == ["dns"]
    assert (found["dns"].verdict, bool(found["dns"].hint)) == ("failed", True)


@pytest.mark.asyncio(loop_scope="session")
async def test_the_broker_by_either_way(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """AMQP is asked straight, or through the front door's WebSocket, as FUNCMQ_TRANSPORT says; a wrong token is told as one."""
    straight = await checkup.broker(stack.url, stack.token)
    assert (straight.verdict, "AMQP answers at amqp://" in straight.said) == ("ok", True)
    monkeypatch.setenv("FUNCMQ_TRANSPORT", "websocket")
    around = await checkup.broker(stack.url, stack.token)
    assert (around.verdict, "through a WebSocket" in around.said) == ("ok", True), around
    assert (await checkup.broker(stack.url, "wrong")).verdict == "failed"


@pytest.mark.asyncio
async def test_a_port_that_is_no_broker() -> None:
    """A port that speaks something else, hangs up, or is closed: each is told as what it is."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert "something else than AMQP" in await checkup._silent(checkup.direct, f"amqp://127.0.0.1:{port}/")
    assert "refused" in (await checkup._silent(checkup.direct, f"amqp://127.0.0.1:{port}/")).lower()


def _context(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "both.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
