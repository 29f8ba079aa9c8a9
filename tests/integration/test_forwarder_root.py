"""The root of a front door: the page for people, the numbers for Prometheus, the description for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from funcmq.broker import api, codec, topology
from funcmq.broker.messages import Heartbeat
from funcmq.broker.releases import release
from funcmq.dev.ports import free_ports
from funcmq.dev.rabbitmq import Node
from funcmq.forwarder.routes_root import near
from funcmq.forwarder.service import serving
from tests.forwarder_rig import Fabric, call_task, now_ms, settings_for, sqlite_url

NASTY = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """A page, read as a browser would: its tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@contextlib.asynccontextmanager
async def fabric_of(node: Node, folder: Path, **changes: object) -> AsyncIterator[Fabric]:
    """A front door on SQLite, with its administrator logged in."""
    settings = dataclasses.replace(settings_for(node, sqlite_url(folder)), **changes)  # type: ignore[arg-type]
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(settings))
        await running.door.link.ready()
        made = Fabric(running, node, stack)
        assert running.code is not None
        made.admin = await made.login(running.code)
        yield made


async def token_of(fabric: Fabric) -> str:
    return (await fabric.admin.api.call("POST", "/tokens", api.TokenRequest(), api.TokenAnswer)).token


async def numbers(session: aiohttp.ClientSession, url: str, **more: object) -> dict[str, float]:
    """Samples by name and labels."""
    async with session.get(f"{url}/metrics", **more) as answer:  # type: ignore[arg-type]
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    return {
        sample.name + "".join(f"[{value}]" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.asyncio
async def test_a_stranger_reads_what_this_is_and_how_to_log_in(rabbitmq: Node, tmp_path: Path) -> None:
    """The page without a token: release, the login line with this address, a form; no script, and a policy that forbids it."""
    async with fabric_of(rabbitmq, tmp_path) as fabric, aiohttp.ClientSession() as session:
        async with session.get(f"{fabric.running.url}/") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            policy = answer.headers["Content-Security-Policy"]
            page = Page(await answer.text())
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "script-src" not in policy
        assert f"release {release()}" in page.text
        assert f"funcmq login {fabric.running.url}" in page.text
        assert not page.named("script")
        assert [form["method"] for form in page.named("form")] == ["post"]
        assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)
        async with session.get(f"{fabric.running.url}/openapi.json") as answer:
            assert (await answer.json())["openapi"] == "3.1.0"


@pytest.mark.asyncio
async def test_a_token_by_form_shows_own_endpoints_and_tasks(rabbitmq: Node, tmp_path: Path) -> None:
    """A cookie that scripts cannot read and other sites do not send; then endpoints, tasks, and what each waits for, escaped."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        url, token = fabric.running.url, await token_of(fabric)
        endpoint = await fabric.endpoint(fabric.admin, "lab")
        await endpoint.take_lease()
        function = await fabric.admin.register(NASTY)
        await fabric.admin.post(fabric.admin.sign(fabric.admin.work(endpoint.id, function, [call_task()])))
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            async with session.post(f"{url}/", data={"token": token}, allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (303, "/")
                cookie = answer.headers["Set-Cookie"]
                assert "HttpOnly" in cookie
                assert "SameSite=Strict" in cookie
                assert token not in answer.headers["Location"]
            async with session.get(f"{url}/") as answer:
                html = await answer.text()
            page = Page(html)
            assert "You are admin" in page.text
            assert "lab" in page.text
            assert "endpoint offline" in page.text
            assert NASTY in page.text
            assert "<script" not in html
            assert token not in html
            async with session.get(f"{url}/v1/me") as answer:
                assert answer.status == 401, "the cookie is for the page only"
            async with session.post(f"{url}/logout") as answer:
                assert "Log in" in Page(await answer.text()).text


@pytest.mark.asyncio
async def test_the_page_takes_no_other_token_and_no_other_site(rabbitmq: Node, tmp_path: Path) -> None:
    """Wrong, empty, an endpoint's, too large, not a form, from elsewhere: refused by name, no cookie set, and never echoed."""
    async with fabric_of(rabbitmq, tmp_path) as fabric, aiohttp.ClientSession() as session:
        url, token = f"{fabric.running.url}/", await token_of(fabric)
        made = await fabric.admin.api.call(
            "POST", "/endpoints", api.EndpointRequest(name="lab", key=fabric.admin.key.public.text), api.EndpointAnswer
        )
        for status, data, headers in (
            (401, {"token": NASTY}, {}),
            (401, {"token": ""}, {}),
            (401, {"other": "x"}, {}),
            (403, {"token": made.token}, {}),
            (413, {"token": "x" * 20_000}, {}),
            (422, b"\xff\xfe", {}),
            (422, "&".join("a=1" for _ in range(100)), {}),
            (403, {"token": token}, {"Origin": "https://evil.example"}),
            (403, {"token": token}, {"Origin": "null"}),
        ):
            async with session.post(url, data=data, headers=headers, allow_redirects=False) as answer:
                text = await answer.text()
                assert answer.status == status, (data, text)
                assert "Set-Cookie" not in answer.headers
                assert NASTY not in text
        async with session.get(url, headers={"Cookie": "funcmq_token=gone"}) as answer:
            assert answer.status == 401
            assert 'funcmq_token=""' in answer.headers["Set-Cookie"]
        async with session.post(url, data={"token": token}, headers={"Origin": fabric.running.url}, allow_redirects=False) as answer:
            assert answer.status == 303


@pytest.mark.asyncio
async def test_the_numbers_count_what_happened(rabbitmq: Node, tmp_path: Path) -> None:
    """Requests by route and status with latency, tasks by verdict, results, conflicts, transactions, the link, endpoints, sessions."""
    async with fabric_of(rabbitmq, tmp_path) as fabric, aiohttp.ClientSession() as session:
        url, admin = fabric.running.url, fabric.admin
        endpoint = await fabric.endpoint(admin, "lab")
        function, tasks = await admin.register(), [call_task(1), call_task(2), call_task(3, key="x" * 300)]
        async with endpoint.connected() as link:
            work = admin.work(endpoint.id, function, tasks)
            for _ in range(2):
                assert (await admin.post(admin.sign(work))).accepted == 2
            await endpoint.next_dispatch()
            beat = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now_ms(), "here", 1, "0", [], {}, 0, 0)  # type: ignore[union-attr]
            await link.publish(*heartbeat(endpoint.id, beat))
            async with session.get(f"{url}/v1/nowhere/at/all") as answer:
                assert answer.status == 404
            async with session.request("PROPFIND", f"{url}/v1/me") as answer:
                assert answer.status == 405
            await admin.api.call("POST", "/sessions", api.SessionRequest(groups=[work.group]), api.SessionAnswer)
            found = await numbers(session, url)
            while not found["funcmq_endpoints_online"]:
                found = await numbers(session, url)
        assert found["funcmq_requests_total[POST][/v1/tasks][202]"] == 2
        assert found["funcmq_request_seconds_count[POST][/v1/tasks]"] == 2
        assert found["funcmq_requests_total[GET][unknown][404]"] == 1
        assert found["funcmq_requests_total[other][unknown][405]"] == 1
        assert found["funcmq_tasks_submitted_total[accepted]"] == 4
        assert found["funcmq_tasks_submitted_total[refused]"] == 2
        assert found["funcmq_bundles_sent_total"] >= 1
        assert found["funcmq_broker_link_up"] == 1
        assert found["funcmq_broker_link_blocked"] == 0
        assert found["funcmq_endpoints_online"] == found["funcmq_endpoints_registered"] == 1
        assert found["funcmq_sessions"] == 1
        assert found["funcmq_store_up"] == 1
        assert found["funcmq_dead_letters"] == 0
        assert found["funcmq_transaction_operations_count"] > 3
        assert found["funcmq_result_conflicts_total"] == 0
        assert found["funcmq_results_stored_total"] == 0


def heartbeat(endpoint: str, beat: Heartbeat) -> tuple[str, str, str, bytes]:
    return topology.STATUS, endpoint, "heartbeat/1", codec.encode(beat)


@pytest.mark.asyncio
async def test_the_numbers_are_for_who_runs_the_machines(rabbitmq: Node, tmp_path: Path) -> None:
    """No token on a private address; through a proxy, or with a listener of their own, an administrator's on the front door's port."""
    (port,) = free_ports(1)
    async with fabric_of(rabbitmq, tmp_path) as fabric, aiohttp.ClientSession() as session:
        assert (await numbers(session, fabric.running.url))["funcmq_store_up"] == 1
        await refused_without_token(session, fabric, {"X-Forwarded-For": "203.0.113.7"})
    async with aiohttp.ClientSession() as session:
        (tmp_path / "two").mkdir()
        async with fabric_of(rabbitmq, tmp_path / "two", metrics_port=port) as fabric:
            await refused_without_token(session, fabric, {})
            assert (await numbers(session, f"http://127.0.0.1:{port}"))["funcmq_store_up"] == 1
            async with session.get(f"http://127.0.0.1:{port}/v1/me") as answer:
                assert answer.status == 404


async def refused_without_token(session: aiohttp.ClientSession, fabric: Fabric, headers: dict[str, str]) -> None:
    other = await fabric.user("ann")
    users = (await other.api.call("POST", "/tokens", api.TokenRequest(), api.TokenAnswer)).token
    for status, token in ((401, ""), (401, "wrong"), (403, users)):
        sent = headers | ({"Authorization": f"Bearer {token}"} if token else {})
        async with session.get(f"{fabric.running.url}/metrics", headers=sent) as answer:
            assert answer.status == status
            assert json.loads(await answer.text())["error"]["code"] == {401: "NotLoggedIn", 403: "NotAllowed"}[status]
    sent = headers | {"Authorization": f"Bearer {await token_of(fabric)}"}
    assert (await numbers(session, fabric.running.url, headers=sent))["funcmq_store_up"] == 1


@pytest.mark.parametrize(
    ("address", "private"),
    [
        *((near_by, True) for near_by in ("127.0.0.1", "::1", "10.1.2.3", "192.168.0.7", "localhost", "fd00::1")),
        *((far, False) for far in ("0.0.0.0", "::", "8.8.8.8", "fabric.example.org", "")),
    ],
)
def test_what_is_near(address: str, private: bool) -> None:
    """Private and loopback addresses are; names, public ones, and those that stand for all are not."""
    assert near(address) is private
