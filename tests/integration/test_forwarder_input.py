"""Bad input to every route, and `funcmq serve` as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from funcmq.broker import api
from funcmq.broker.errors import TABLE
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.service import TABLES, serving
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
IDS = [new_hex(), "x", "%00", "%ED%A0%80", "..", "a%2Fb", "0" * 5000, "'--"]
QUERIES = ["", "?limit=-1", "?limit=99999999999999999999", "?state=nonsense", "?group=%00&endpoint=%ED%A0%80&limit=1", "?epoch=x"]


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
            ids = IDS if route.method in ("GET", "DELETE") else [*IDS[:3], endpoint]
            lines += [(route.method, route.path.replace("{id}", name)) for name in ids]
        else:
            queries = QUERIES if route.method == "GET" else [""]
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
