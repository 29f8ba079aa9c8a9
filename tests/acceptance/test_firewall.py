"""An endpoint behind a firewall: from a network of its own it reaches the front door's port, or a proxy, and nothing else at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from funcmq import Client, TaskFuture
from funcmq.broker.http import Api
from funcmq.dev import daemon
from funcmq.dev.process import Child, run
from funcmq.dev.stack import Stack
from tests.acceptance.neighbours import noted, ran_once
from tests.certificates import make_certificate, server_context
from tests.connect_proxy import connect_proxy
from tests.namespace import Namespace, namespace
from tests.relay import relay

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

TASKS = 1_000
SECRET = "pr0xy-s3cret"


@contextlib.asynccontextmanager
async def behind(stack: Stack, place: Namespace, folder: Path, url: str, **variables: str) -> AsyncIterator[Path]:
    """The endpoint `far`, made here and started in there with this URL of the front door; the log of its daemon."""
    home, journal, log = folder / "home", folder / "journal", folder / "far.log"
    outside = os.environ | stack.environment | {"FUNCMQ_HOME": str(home)}
    funcmq = [sys.executable, "-m", "funcmq"]
    options = ["--workers", "2", "--run-dir", str(folder / "run"), "--journal-dir", str(journal), "--yes"]
    status, said = await run([*funcmq, "endpoint", "init", "far", *options], outside)
    assert status == 0, said
    daemon.adjust(home / "endpoints" / "far" / "endpoint.toml", url, 0)
    argv = place.inside(*funcmq, "endpoint", "start", "far", "--foreground")
    child = await Child.start("far", argv, outside | variables, log)
    try:
        yield log
    finally:
        await child.end(daemon.GRACE_S)
        async with Api(stack.url, stack.token) as door:
            await door.tell("DELETE", "/endpoints/far")


async def restart(stack: Stack) -> None:
    """A front door again, that has heard of the endpoint, as tests after this one expect."""
    await stack.start_front_door()
    await stack.until_online()


async def answers_through_a_restart(stack: Stack, folder: Path) -> None:
    """The endpoint answers 1,000 tasks, each run once, half of them submitted around a front door that is killed and started again."""
    record = folder / "executions"
    async with Client() as fx:
        far = fx.on("far")
        tasks: list[TaskFuture[int]] = [far.submit(noted, str(record), number) for number in range(TASKS // 2)]
        assert await fx.gather(tasks) == [number * 3 for number in range(TASKS // 2)]
        tasks += [far.submit(noted, str(record), number) for number in range(TASKS // 2, TASKS)]
        await tasks[TASKS // 2]
        await stack.kill_front_door()
        results, _ = await asyncio.gather(fx.gather(tasks), restart(stack))
        assert results == [number * 3 for number in range(TASKS)]
        assert await far.submit(noted, str(record), TASKS) == TASKS * 3
    assert ran_once(record, TASKS + 1)


@pytest.mark.asyncio(loop_scope="session")  # the new front door belongs to the loop that ends the stack
async def test_through_the_front_door_only(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where only the front door's port is let through, the daemon finds the way by itself, says so, and survives a front door's death."""
    stack.use(monkeypatch)
    async with namespace() as place:
        certificate, key = make_certificate(tmp_path, place.host)
        async with relay(stack._port, place.host, server_context(certificate, key)) as port:
            url = f"https://{place.host}:{port}"
            async with behind(stack, place, tmp_path, url, SSL_CERT_FILE=str(certificate)) as log, asyncio.timeout(80):
                await answers_through_a_restart(stack, tmp_path)
                assert f"through a WebSocket of {url} (" in log.read_text()


@pytest.mark.asyncio(loop_scope="session")
async def test_through_a_proxy_only(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where only a proxy with a password is let through, and no name is known but to it, the same; the password is in no log."""
    stack.use(monkeypatch)
    certificate, key = make_certificate(tmp_path, "fabric.example")
    async with (
        namespace() as place,
        relay(stack._port, context=server_context(certificate, key)) as port,
        connect_proxy(f"me:{SECRET}", place.host, {"fabric.example": "127.0.0.1"}) as proxy,
    ):
        url, way = f"https://fabric.example:{port}", f"http://me:{SECRET}@{place.host}:{proxy.port}"
        async with behind(stack, place, tmp_path, url, SSL_CERT_FILE=str(certificate), HTTPS_PROXY=way) as log, asyncio.timeout(80):
            await answers_through_a_restart(stack, tmp_path)
            text = log.read_text()
        assert f"through a WebSocket of {url} (" in text
        assert set(proxy.asked) == {f"fabric.example:{port}"}
        assert SECRET not in text
