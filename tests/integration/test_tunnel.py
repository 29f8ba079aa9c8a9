"""Laws of the tunnel, with a real front door and a real RabbitMQ: the same bytes, no rights, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.test_utils import TestServer

from funcmq.broker import api, pump
from funcmq.broker.connection import Broker, check
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Busy, NotAllowed, Unreachable
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.signing import PrivateKey
from funcmq.broker.topology import Exchange, Queue, Topology
from funcmq.broker.transport import Choice, Way, Ways
from funcmq.broker.tunnel import Tunnel
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.routes_amqp import MOST, Tunnels, reach
from funcmq.forwarder.service import GRACE_S, Running, serving
from tests.certificates import make_certificate, server_context
from tests.connect_proxy import connect_proxy
from tests.forwarder_rig import Fabric, User, settings_for, sqlite_url
from tests.proxy import proxy
from tests.relay import relay

pytestmark = pytest.mark.asyncio


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of database is enough here."""
    return sqlite_url(tmp_path)


@contextlib.asynccontextmanager
async def tunnelled(front: Api, broker: Broker) -> AsyncIterator[Link]:
    """A link that goes through the front door only."""

    async def ask() -> Broker:
        return broker

    async with Link("test", ask, ways=Ways(Tunnel(front), Choice(Way.TUNNEL))) as link:
        yield link


def token_of(user: User) -> str:
    return user.api._headers["Authorization"].partition(" ")[2]


async def administrator(running: Running) -> str:
    """The token of the first administrator of a new front door."""
    async with Api(running.url) as nobody:
        login = api.LoginRequest(code=running.code or "", key=PrivateKey.generate().public.text, comment="")
        return (await nobody.call("POST", "/login", login, api.TokenAnswer)).token


@pytest_asyncio.fixture
async def link(fabric: Fabric, broker: Broker) -> AsyncIterator[Link]:
    """Of the broker's administrator."""
    async with tunnelled(fabric.admin.api, broker) as it:
        yield it


async def test_large_messages_pass_both_ways_unchanged(link: Link) -> None:
    """What is published through a tunnel arrives through it, byte for byte, whatever its size."""
    name, got = f"test.{new_hex()}", asyncio.Queue[bytes]()
    await link.declare(Topology((Exchange(name, "direct"),), (Queue(name, {}, ((name, "k"),)),)))
    bodies = [b"", b"x", bytes(range(256)) * 40_000]

    async def take(delivery: Delivery) -> None:
        await got.put(delivery.body)
        await delivery.ack()

    link.consume(name, take)
    for body in bodies:
        await link.publish(name, "k", "t/1", body)
    assert [await got.get() for _ in bodies] == bodies
    await link.delete(Topology(queues=(Queue(name, {}),)))


async def test_a_tunnel_gives_no_rights(fabric: Fabric, broker: Broker) -> None:
    """RabbitMQ asks for user and password as on its own port; a tunnel wants a token that works, and says which of the two was wrong."""
    mine = Tunnel(fabric.admin.api)
    await check(broker, mine)
    with pytest.raises(NotAllowed):
        await check(Broker(broker.urls, broker.user, "wrong"), mine)
    for token, said in (("", "does not know this token"), ("fx_no_such_token", "does not know this token")):
        with pytest.raises(Unreachable, match=said):
            await check(broker, Tunnel(await fabric.api(token)))


async def test_a_revoked_token_closes_its_tunnels(fabric: Fabric, broker: Broker) -> None:
    """And no others."""
    bob = await fabric.user("bob")
    tokens = await bob.api.list("/tokens", api.TokenView)
    theirs, mine = await bob.api.websocket("/amqp"), await fabric.admin.api.websocket("/amqp")
    await theirs.send_bytes(b"AMQP\0\0\x09\x01")
    assert (await theirs.receive(timeout=20)).type is WSMsgType.BINARY
    await bob.api.tell("DELETE", f"/tokens/{tokens[0].id}")
    closed = await theirs.receive(timeout=20)
    assert (closed.type, closed.data, closed.extra) == (WSMsgType.CLOSE, WSCloseCode.POLICY_VIOLATION, "the token works no more")
    await mine.send_bytes(b"AMQP\0\0\x09\x01")
    assert (await mine.receive(timeout=20)).type is WSMsgType.BINARY
    await mine.close()


async def test_a_caller_has_so_many_tunnels_and_no_more(fabric: Fabric) -> None:
    """Beyond that the front door is Busy for this caller, until one of his is closed."""
    endpoint = await fabric.endpoint(fabric.admin)
    sockets = [await endpoint.api.websocket("/amqp") for _ in range(MOST["endpoint"])]
    with pytest.raises(Busy):
        await endpoint.api.websocket("/amqp")
    await (await fabric.admin.api.websocket("/amqp")).close()
    await sockets.pop().close()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Busy):
                sockets.append(await endpoint.api.websocket("/amqp"))
                break
    for socket in sockets:
        await socket.close()


async def test_a_link_comes_back_through_the_next_front_door(rabbitmq: Node, database_url: str) -> None:
    """A front door that ends closes its tunnels at once; when it is there again, so is the link, without anybody's help."""
    settings = settings_for(rabbitmq, database_url)
    async with contextlib.AsyncExitStack() as stack:
        async with serving(settings) as running:
            front = await stack.enter_async_context(Api(running.url, await administrator(running)))
            link = await stack.enter_async_context(tunnelled(front, rabbitmq.broker))
            async with asyncio.timeout(20):
                await link.ready()
            ends = time.monotonic()
        assert time.monotonic() - ends < GRACE_S
        async with asyncio.timeout(20):
            while link.up:
                await asyncio.sleep(0.01)
        async with serving(replace(settings, port=urlsplit(running.url).port or 0)), asyncio.timeout(20):
            await link.ready()


async def test_the_tunnel_is_taken_by_itself_and_left_again(fabric: Fabric, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Where the broker's port says nothing for 5 s the link goes through the front door, says so and why, and goes back later."""
    caplog.set_level(logging.INFO, "funcmq.link")
    async with proxy(urlsplit(broker.urls[0]).port or 0) as wire:
        wire.swallow(True)
        walled = Broker((f"amqp://127.0.0.1:{wire.port}/",), broker.user, broker.password)

        async def ask() -> Broker:
            return walled

        ways = Ways(Tunnel(fabric.admin.api), Choice(look_s=3.0))
        async with Link("test", ask, ways=ways) as link, asyncio.timeout(40):
            await link.ready()
            [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
            assert line.startswith(f"test is connected to {walled.urls[0]} through a WebSocket of {fabric.running.url} (")
            assert "does not answer" in line
            wire.swallow(False)
            while caplog.records[-1].getMessage() != f"test is connected to {walled.urls[0]}":
                await asyncio.sleep(0.01)
            await link.declare(Topology())


async def test_buffers_are_bounded_while_the_other_side_does_not_read(fabric: Fabric, broker: Broker) -> None:
    """A broker that reads nothing stops the sender after a few MB, and costs nobody his connection."""
    async with proxy(urlsplit(broker.urls[0]).port or 0) as wire:
        urls = (f"amqp://127.0.0.1:{wire.port}/",)
        door = fabric.running.door
        settings = replace(door.settings, broker=Broker(urls, "", ""))
        app = web.Application()
        Tunnels(replace(door, settings=settings)).add_to(app)
        async with TestServer(app) as server, Api(str(server.make_url("")), token_of(fabric.admin)) as front:
            socket = await front.websocket("/amqp")
            wire.swallow(True)
            sent = 0
            with pytest.raises(TimeoutError):
                while sent < 100_000_000:
                    async with asyncio.timeout(2):
                        await socket.send_bytes(bytes(pump.CHUNK))
                    sent += pump.CHUNK
            assert sent < 20_000_000
            wire.swallow(False)
            async with asyncio.timeout(20):
                while (await socket.receive()).type is WSMsgType.BINARY:  # what came was no AMQP: RabbitMQ says so, and closes
                    pass
            await socket.close()


SCRIPT = """
import asyncio, os
from funcmq.broker.connection import Broker, check
from funcmq.broker.http import Api
from funcmq.broker.tunnel import Tunnel

async def main():
    async with Api(os.environ["FUNCMQ_URL"], os.environ["FUNCMQ_TOKEN"]) as front:
        await check(Broker(("amqps://broker.example/",), os.environ["BROKER_USER"], os.environ["BROKER_PASSWORD"]), Tunnel(front))

asyncio.run(main())
"""


@pytest.mark.parametrize(("login", "said"), [("u:s3cret%21", ""), ("u:wr0ng", "its proxy answered 407")])
async def test_a_proxy_is_gone_through(fabric: Fabric, broker: Broker, tmp_path: Path, login: str, said: str) -> None:
    """HTTPS_PROXY is honoured, with the password in it, TLS inside; the password is nowhere in what is said when it is wrong."""
    certificate, key = make_certificate(tmp_path, "127.0.0.1")
    port = urlsplit(fabric.running.url).port or 0
    async with relay(port, context=server_context(certificate, key)) as safe, connect_proxy("u:s3cret!") as it:
        environment = os.environ | {
            "FUNCMQ_URL": f"https://127.0.0.1:{safe}",
            "FUNCMQ_TOKEN": token_of(fabric.admin),
            "BROKER_USER": broker.user,
            "BROKER_PASSWORD": broker.password,
            "HTTPS_PROXY": f"http://{login}@127.0.0.1:{it.port}",
            "NO_PROXY": "elsewhere.example",
            "SSL_CERT_FILE": str(certificate),
        }
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SCRIPT, env=environment, stderr=PIPE)
        _, errors = await process.communicate()
    assert (process.returncode == 0, said in errors.decode()) == (not said, True), errors.decode()
    assert it.asked == ([] if said else [f"127.0.0.1:{safe}"])
    assert not any(secret in errors for secret in (b"wr0ng", b"s3cret", token_of(fabric.admin).encode(), broker.password.encode()))


async def test_a_broker_that_is_away_is_said_before_the_tunnel_opens() -> None:
    """The front door is Busy then, as for every other request that needs its broker."""
    with pytest.raises(Busy, match="does not answer the front door"):
        await reach(("amqp://127.0.0.1:1/", "amqps://127.0.0.1:1/"))


async def test_what_tls_protects_does_not_travel_in_the_clear() -> None:
    """For a broker with TLS the front door must have TLS too, or be on this host."""
    async with Api("http://fabric.example") as front:
        with pytest.raises(Unreachable, match="not encrypted"):
            await check(Broker(("amqps://broker.example/",), "u", "p"), Tunnel(front))
