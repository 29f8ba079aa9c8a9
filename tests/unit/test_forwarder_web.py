"""The shell of routes, served by aiohttp and called over HTTP, with a door of one route."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from aiohttp import web
from asyncpg.exceptions import CannotConnectNowError

from funcmq.broker import api
from funcmq.broker.errors import TABLE, Busy, NotLoggedIn
from funcmq.forwarder.people import Caller
from funcmq.forwarder.service import TABLES
from funcmq.forwarder.web import BODY_LIMIT, RAW_LIMIT, Call, Routes, Who, build

USER = Caller("user", "u" * 32, "ann", False, "", "t", 0)
ENDPOINT = Caller("endpoint", "u" * 32, "ann", False, "e" * 32, "t", 0)
ADMIN = Caller("user", "u" * 32, "root", True, "", "t", 0)


class Gate:
    """Knows three tokens."""

    async def caller(self, token: str) -> Caller:
        known = {"user": USER, "endpoint": ENDPOINT, "admin": ADMIN}
        if token not in known:
            raise NotLoggedIn
        return known[token]


@contextlib.asynccontextmanager
async def served(routes: Routes) -> AsyncIterator[str]:
    runner = web.AppRunner(build(None, Gate(), [routes]), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def table() -> Routes:
    routes = Routes()

    @routes("POST /echo", request=api.UserRequest, answer=api.UserRequest)
    async def echo(_: None, call: Call[api.UserRequest]) -> api.UserRequest:
        return call.body

    @routes("POST /raw", request=bytes, answer=bytes)
    async def raw(_: None, call: Call[bytes]) -> bytes:
        return call.body

    @routes("GET /busy")
    async def busy(_: None, call: Call[None]) -> None:
        raise Busy(retry_after=2.5)

    @routes("GET /broken")
    async def broken(_: None, call: Call[None]) -> None:
        raise ZeroDivisionError("a secret")

    for name, who in (("admin", Who.ADMIN), ("endpoint", Who.ENDPOINT), ("both", Who.USER | Who.ENDPOINT), ("anybody", Who.ANYBODY)):

        @routes(f"GET /{name}", who=who)
        async def nothing(_: None, call: Call[None]) -> None:
            return

    return routes


async def ask(url: str, method: str, path: str, token: str = "user", **more: object) -> tuple[int, dict[str, object], dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= more.pop("headers", {})  # type: ignore[arg-type]
    async with aiohttp.ClientSession() as session, session.request(method, f"{url}/v1{path}", headers=headers, **more) as answer:  # type: ignore[arg-type]
        body = await answer.read()
        return answer.status, json.loads(body) if body and answer.content_type == api.JSON else {}, dict(answer.headers)


@pytest.mark.asyncio
async def test_every_wrong_request_is_a_named_error() -> None:
    """Garbage, wrong types, unknown routes, wrong methods and too large bodies: the error's code, never a 5xx, never plain text."""
    async with served(table()) as url:
        wrong = [
            (404, "NotFound", "GET", "/nothing", None),
            (405, "InvalidRequest", "PUT", "/echo", None),
            (422, "InvalidRequest", "POST", "/echo", b""),
            (422, "InvalidRequest", "POST", "/echo", b"{"),
            (422, "InvalidRequest", "POST", "/echo", b'{"name": 1}'),
            (422, "InvalidRequest", "POST", "/echo", b"\xff\xfe"),
            (422, "InvalidRequest", "POST", "/echo", b"[" * 100_000),
            (413, "PayloadTooLarge", "POST", "/echo", b" " * (BODY_LIMIT + 1)),
        ]
        for status, code, method, path, data in wrong:
            answer = await ask(url, method, path, data=None if data is None else asyncio_bytes(data))
            assert answer[0] == status, (path, answer)
            error = answer[1]["error"]
            assert isinstance(error, dict)
            assert error["code"] == code
            assert TABLE[code]
            assert error["message"]
            assert error["hint"]


async def asyncio_bytes(data: bytes) -> AsyncIterator[bytes]:
    """A body without a length: sent in chunks."""
    for at in range(0, len(data), 65536):
        yield data[at : at + 65536]


@pytest.mark.asyncio
async def test_a_stated_length_over_the_limit_is_refused_before_it_is_sent() -> None:
    """The limit of exact bytes holds for what the headers say, too."""
    async with served(table()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = f"POST /v1/raw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user\r\nContent-Length: {RAW_LIMIT + 1}\r\n\r\n"
        writer.write(head.encode())
        assert b" 413 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.asyncio
async def test_json_and_msgpack_are_spoken_as_asked() -> None:
    """Content-Type says what comes, Accept what goes; exact bytes stay exact."""
    async with served(table()) as url, aiohttp.ClientSession(headers={"Authorization": "Bearer user"}) as session:
        packed = msgspec.msgpack.encode(api.UserRequest(name="ann"))
        headers = {"Content-Type": api.MSGPACK, "Accept": api.MSGPACK}
        async with session.post(f"{url}/v1/echo", data=packed, headers=headers) as answer:
            assert msgspec.msgpack.decode(await answer.read(), type=api.UserRequest).name == "ann"
        async with session.post(f"{url}/v1/echo", json={"name": "ann", "later": 1}) as answer:
            assert await answer.json() == {"name": "ann", "admin": False}
        async with session.post(f"{url}/v1/raw", data=b"\x00\xff") as answer:
            assert (await answer.read(), answer.content_type) == (b"\x00\xff", api.RAW)


@pytest.mark.asyncio
async def test_busy_says_when_to_come_back_and_a_bug_says_nothing() -> None:
    """Busy carries Retry-After; an unexpected exception is a 500 without its text."""
    async with served(table()) as url:
        status, body, headers = await ask(url, "GET", "/busy")
        assert (status, headers["Retry-After"]) == (503, "3")
        status, body, _ = await ask(url, "GET", "/broken")
        assert status == 500
        assert "secret" not in json.dumps(body)


@pytest.mark.asyncio
async def test_tokens_open_what_they_are_for() -> None:
    """Each kind of token against each kind of route: 204, 401 or 403."""
    expected = {
        "/admin": {"": 401, "wrong": 401, "user": 403, "endpoint": 403, "admin": 204},
        "/endpoint": {"": 401, "wrong": 401, "user": 403, "endpoint": 204, "admin": 403},
        "/both": {"": 401, "wrong": 401, "user": 204, "endpoint": 204, "admin": 204},
        "/anybody": {"": 204, "wrong": 401, "user": 204, "endpoint": 403, "admin": 204},
    }
    async with served(table()) as url:
        for path, by_token in expected.items():
            for token, status in by_token.items():
                assert (await ask(url, "GET", path, token))[0] == status, (path, token)


def test_every_route_is_described_once() -> None:
    """No two handlers for one line, and every handler has a sentence for the interface's description."""
    routes = [route for routes in TABLES for route in routes]
    assert len({(route.method, route.path) for route in routes}) == len(routes)
    assert all(route.handler.__doc__ for route in routes)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("broken", "status", "code"),
    [
        (ConnectionRefusedError("database"), 503, "Busy"),
        (sqlite3.OperationalError("database or disk is full"), 507, "StorageFull"),
        (sqlite3.OperationalError("disk I/O error"), 503, "Busy"),
        (CannotConnectNowError("the database system is starting up"), 503, "Busy"),
    ],
)
async def test_a_database_that_is_away_is_no_fault_of_the_caller(broken: Exception, status: int, code: str) -> None:
    """Whatever its driver raises within a request: 503 or 507, so that the caller tries again, never a 4xx, never a 500."""
    routes = Routes()

    @routes("POST /tasks", request=api.UserRequest)
    async def fail(_: None, call: Call[api.UserRequest]) -> None:
        raise broken

    async with served(routes) as url:
        answer = await ask(url, "POST", "/tasks", json={"name": "x"})
        assert (answer[0], answer[1]["error"]["code"]) == (status, code)  # type: ignore[index]


@pytest.mark.asyncio
async def test_a_body_that_ends_too_early_is_the_callers_fault() -> None:
    """400 InvalidRequest, where the encoding of the body is not what its headers say."""
    async with served(table()) as url:
        status, body, _ = await ask(url, "POST", "/echo", data=b"no gzip", headers={"Content-Encoding": "gzip"})
        assert (status, body["error"]["code"]) == (400, "InvalidRequest")  # type: ignore[index]
