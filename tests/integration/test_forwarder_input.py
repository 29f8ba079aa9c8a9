"""Bad input to every route, and `funcmq serve` as a process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from funcmq.broker import api
from funcmq.broker.errors import TABLE
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.routes_root import PLAIN
from funcmq.forwarder.service import TABLES, serving
from funcmq.forwarder.web import Route, Who
from tests.forwarder_rig import settings_for, sqlite_url

BODIES = [
    b"",
    b"\x00",
    b"{}",
    b"[]",
    b"null",
    b'{"name": "\\ud800", "code": "\\ud800", "key": "\\ud800", "tasks": ["x"], "groups": ["\\u0000"]}',
    b'{"name": "", "days": 1e308, "key": "AAAA", "code": "", "tasks": [], "groups": []}',
    b'{"journal": "j", "birth": 18446744073709551615, "epoch": 18446744073709551615, "host": "", "pid": -1, "release": "", "trusted": []}',
    b'{"allow": ["nobody"], "deny": ["\\u0000"]}',
    b"\x92\x91\xa4none\xc4\x00",
    b"\x92" * 1000,
    b"[" * 50_000,
    b'{"tasks": [' + b",".join([b'"%s"' % (b"0" * 32)] * 25_000) + b"]}",
]
HUGE = "?since=18446744073709551615&limit=18446744073709551615&epoch=18446744073709551615"
IDS = [new_hex(), "x", "%00", "%ED%A0%80", "..", "a%2Fb", "0" * 5000, "'--"]
QUERIES = ["", "?limit=-1", "?limit=99999999999999999999", "?state=nonsense", "?group=%00&endpoint=%ED%A0%80&limit=1", "?epoch=x", HUGE]


@pytest.mark.asyncio
async def test_no_input_breaks_a_route(rabbitmq: Node, tmp_path: Path) -> None:
    """Every route with every wrong body, id and query, with a user's and an endpoint's token: a named error, never a 5xx."""
    async with serving(settings_for(rabbitmq, sqlite_url(tmp_path))) as running:
        await running.door.link.ready()
        assert running.code is not None
        async with Api(running.url) as door:
            admin = await door.call("POST", "/login", api.LoginRequest(code=running.code), api.TokenAnswer)
            request = api.EndpointRequest(name="lab", key="A" * 43 + "=")
            async with Api(running.url, admin.token) as mine:
                endpoint = await mine.call("POST", "/endpoints", request, api.EndpointAnswer)
        async with aiohttp.ClientSession() as session:
            for token in (admin.token, endpoint.token):
                for method, path in every_line(endpoint.id):
                    for body in BODIES if method in ("POST", "PATCH") else [b""]:
                        await refuse_or_answer(session, method, f"{running.url}/v1{path}", token, body)


def every_line(endpoint: str) -> list[tuple[str, str]]:
    """Method and path of every route, with wrong ids and queries; DELETE of the one token and endpoint in use are left out by their ids."""
    lines = []
    for route in (route for routes in TABLES for route in routes):
        if "{id}" in route.path:
            ids = IDS if route.method in ("GET", "DELETE") else [*IDS[:2], endpoint]
            lines += [(route.method, route.path.replace("{id}", name)) for name in [*ids, f"x{HUGE}"]]
        else:
            queries = QUERIES if route.method == "GET" else ["", HUGE]
            lines += [(route.method, route.path + query) for query in queries]
    return lines


async def refuse_or_answer(session: aiohttp.ClientSession, method: str, url: str, token: str, body: bytes) -> None:
    for kind in (api.JSON, api.MSGPACK) if body else (api.JSON,):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        async with session.request(method, url, data=body, headers=headers) as answer:
            assert answer.status < 500, (method, url, body[:80], await answer.text())
            if answer.status >= 400 and answer.content_type == api.JSON:
                assert (await answer.json())["error"]["code"] in TABLE


@pytest.mark.asyncio
async def test_every_route_refuses_what_is_not_its_own(rabbitmq: Node, tmp_path: Path) -> None:
    """Of every route in the tables and at the root: another method, no or a broken token, wrong types in each field, an odd content type, a
    body over its limit.
    """
    async with serving(settings_for(rabbitmq, sqlite_url(tmp_path))) as running:
        await running.door.link.ready()
        assert running.code is not None
        async with Api(running.url) as door:
            token = (await door.call("POST", "/login", api.LoginRequest(code=running.code), api.TokenAnswer)).token
        routes = [route for routes in TABLES for route in routes]
        async with aiohttp.ClientSession(running.url) as session:
            await refuse_methods(session, routes)
            await refuse_tokens(session, routes)
            for route in (route for route in routes if route.request is not None):
                await refuse_types(session, route, token)
                await refuse_content_types(session, route, token)
                assert await refuse_size(running.url, route, token) == (403 if route.who is Who.ENDPOINT else 413), route


def path_of(route: Route) -> str:
    """A path of this route, with ids that name nothing."""
    return "/v1" + re.sub(r"{\w+}", "0" * 32, route.path)


async def refuse_methods(session: aiohttp.ClientSession, routes: list[Route]) -> None:
    allowed: dict[str, set[str]] = {}
    for route in routes:
        allowed.setdefault(path_of(route), set()).add(route.method)
    for root in PLAIN:
        allowed.setdefault(root.path, set()).add("GET")
    allowed["/"].add("POST")
    for path, good in allowed.items():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"} - good:
            async with session.request(method, path) as answer:
                assert answer.status in (401, 405), (method, path)  # 401 where another route with a parameter takes such a path
                assert (await answer.json())["error"]["code"] in ("InvalidRequest", "NotLoggedIn")
                if answer.status == 405:
                    assert good <= set(answer.headers["Allow"].split(",")), (method, path)


async def refuse_tokens(session: aiohttp.ClientSession, routes: list[Route]) -> None:
    for route in routes:
        if route.who is Who.NOBODY:
            continue
        for said in ("", "Bearer", "Bearer  ", "Basic dXNlcjpwYXNz", "Bearer wrong", "Bearer " + "x" * 5000, "Bearer \u00fcber"):
            if said in ("", "Bearer", "Bearer  ") and Who.ANYBODY in route.who:
                continue
            async with session.request(route.method, path_of(route), headers={"Authorization": said}) as answer:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer"), (route, said)
                assert (await answer.json())["error"]["hint"]


async def refuse_types(session: aiohttp.ClientSession, route: Route, token: str) -> None:
    kind = route.plain or route.request
    if kind is bytes:
        return
    fields = msgspec.structs.fields(kind)
    for wrong in ([[]], {"a": {}}, -1.5, True, "\0", None):
        body = dict.fromkeys((field.encode_name for field in fields), wrong)
        headers = {"Authorization": f"Bearer {token}"}
        async with session.request(route.method, path_of(route), json=body, headers=headers) as answer:
            assert 400 <= answer.status < 500 or not any(field.required for field in fields), (route, wrong, answer.status)
            assert answer.status < 500, (route, wrong)


async def refuse_content_types(session: aiohttp.ClientSession, route: Route, token: str) -> None:
    for kind in ("", "text/xml", "application/json; charset=utf-16", "multipart/form-data", ";;;", "x" * 3000):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind, "Accept": kind}
        async with session.request(route.method, path_of(route), data=b"<a/>", headers=headers) as answer:
            assert 400 <= answer.status < 500, (route, kind)
            assert (await answer.json())["error"]["code"] in TABLE


async def refuse_size(url: str, route: Route, token: str) -> int:
    """The status of a request that announces one byte too many; nothing of it needs to be sent."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = (f"{route.method} {path_of(route)} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", f"Content-Length: {route.limit + 1}")
    writer.write("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    status = int((await reader.readline()).split()[1])
    writer.close()
    await writer.wait_closed()
    return status


@pytest.mark.asyncio
async def test_serve_starts_says_its_code_and_stops_in_order(rabbitmq: Node, tmp_path: Path) -> None:
    """It prints the first code, writes it for nobody else to read, answers /ready, ends with 0 at SIGTERM, and prints no secret."""
    code_file = tmp_path / "code"
    settings = settings_for(rabbitmq, sqlite_url(tmp_path))
    environ = os.environ | {
        "FUNCMQ_BROKER_URL": rabbitmq.url,
        "FUNCMQ_MANAGEMENT_URL": rabbitmq.management_url,
        "FUNCMQ_DATABASE_URL": f"sqlite:///{settings.database.database}",
        "FUNCMQ_BROKER_AUTH_PORT": str(rabbitmq.auth_port),
    }
    command = [sys.executable, "-m", "funcmq", "serve", "--port", "0", "--code-file", str(code_file)]
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        said = await read_until(process.stderr, b"code: ")
        url = next(word for word in said.decode().split() if word.startswith("http://")).rstrip(";")
        code = code_file.read_text().strip()
        assert code_file.stat().st_mode & 0o777 == 0o600
        assert code.encode() in said
        async with aiohttp.ClientSession() as session:
            while (status := (await ask(session, f"{url}/ready"))[0]) != 200:
                assert status == 503
                await asyncio.sleep(0.05)
            assert (await ask(session, f"{url}/health"))[1]["status"] == "ok"
        async with Api(url) as door:
            answer = await door.call("POST", "/login", api.LoginRequest(code=code), api.TokenAnswer)
        assert answer.user_name == "admin"
    finally:
        process.send_signal(signal.SIGTERM)
        rest = await process.stderr.read()
    assert await process.wait() == 0
    for secret in (rabbitmq.password, answer.token):
        assert secret.encode() not in said + rest


async def read_until(stream: asyncio.StreamReader, text: bytes) -> bytes:
    said = b""
    while text not in said:
        line = await stream.readline()
        assert line, said
        said += line
    return said


async def ask(session: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, str]]:
    async with session.get(url) as answer:
        return answer.status, await answer.json()
