"""Tasks as plain JSON: signed by the front door, for endpoints that trust its key on purpose."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

import funcmq
from funcmq.broker import api, codec
from funcmq.broker.messages import Signature, Signed, Work
from funcmq.broker.signing import BUNDLE
from funcmq.cli import cli
from funcmq.dev.rabbitmq import Node
from funcmq.dev.stack import PROBE_S, Stack
from funcmq.forwarder.service import serving
from tests.forwarder_rig import outcome_of, settings_for, sqlite_url
from tests.integration.test_forwarder_root import fabric_of, token_of


async def post(url: str, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.post(f"{url}/v1/tasks", json=body) as answer:
        return answer.status, await answer.json()


async def get(url: str, token: str, path: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/v1{path}") as answer:
        said: dict[str, Any] = await answer.json()
        assert answer.status == 200, said
        return said


@pytest.mark.asyncio
async def test_json_goes_in_signed_and_json_comes_out(rabbitmq: Node, tmp_path: Path) -> None:
    """The endpoint gets a bundle that the front door's key has signed for that user; the result is plain JSON with its state."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        url, token, own = fabric.running.url, await token_of(fabric), fabric.running.door.key
        assert own is not None
        endpoint = await fabric.endpoint(fabric.admin, "lab")
        endpoint.trusted = [own.public.id]
        await fabric.admin.register("area")
        async with endpoint.connected() as link:
            body = {"endpoint": "lab", "function": "area", "tasks": [{"args": [2], "kwargs": {"b": [3.5, None]}, "key": "k1"}]}
            status, said = await post(url, token, body)
            assert (status, said["accepted"], said["verdicts"]) == (202, 1, [])
            dispatch = await endpoint.next_dispatch()
            signed = codec.decode(Signed, dispatch.bundle)
            work = codec.decode(Work, signed.body)
            own.public.verify(BUNDLE, signed)
            assert isinstance(signed.auth, Signature)
            assert (work.user, work.group, work.functions[0].name) == (fabric.admin.id, said["group"], "area")
            assert [task.id.hex() for task in work.tasks] == said["tasks"]
            assert codec.unpack_plain(work.tasks[0].args.data) == ((2,), {"b": [3.5, None]})  # type: ignore[union-attr]
            status, again = await post(url, token, body)
            assert (status, again["accepted"], again["tasks"], again["verdicts"][0]["verdict"]) == (202, 0, said["tasks"], "same")
            before = await get(url, token, f"/tasks/{said['tasks'][0]}/result")
            assert before["state"] in ("published", "accepted", "received")
            results = endpoint.results(fabric.admin.id, work.group, [outcome_of(work.tasks[0].id, 7)])
            await link.publish("results", f"{endpoint.id}.{work.group}", "results/1", results)
            await endpoint.orders.get()  # stored
            assert (await get(url, token, f"/tasks/{said['tasks'][0]}/result"))["value"] == 7


@pytest.mark.asyncio
async def test_nothing_is_signed_for_an_endpoint_that_does_not_trust_it(rabbitmq: Node, tmp_path: Path) -> None:
    """Refused at submission, with the command that would change it; wrong options and functions by name, nothing of it is accepted."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        url, token = fabric.running.url, await token_of(fabric)
        endpoint = await fabric.endpoint(fabric.admin, "lab")
        await endpoint.take_lease()
        await fabric.admin.register("area")
        good: dict[str, Any] = {"endpoint": "lab", "function": "area", "tasks": [{}]}
        status, said = await post(url, token, good)
        assert (status, said["error"]["code"]) == (403, "NotAllowed")
        assert "funcmq endpoint trust lab --front-door" in said["error"]["hint"]
        own = fabric.running.door.key
        assert own is not None
        endpoint.trusted = [own.public.id]
        await endpoint.take_lease()
        for status, code, change in (
            (404, "NotFound", {"endpoint": "nowhere"}),
            (404, "NotFound", {"function": "nothing"}),
            (422, "InvalidRequest", {"tasks": []}),
            (422, "InvalidRequest", {"tasks": [{"args": {"a": 1}}]}),
            (422, "InvalidRequest", {"tasks": [{"args": [2**70]}]}),
            (422, "InvalidRequest", {"tasks": [{}] * 1025}),
            (422, "InvalidRequest", {"priority": 11}),
            (422, "InvalidRequest", {"walltime": -1}),
            (422, "InvalidRequest", {"expires": 0}),
            (422, "InvalidRequest", {"expires": 1e12}),
            (422, "InvalidRequest", {"retry": "often"}),
            (404, "NotFound", {"group": "0" * 32}),
        ):
            if "group" in change:
                await claim_for_somebody_else(fabric, change["group"])
            answer = await post(url, token, good | change)
            assert (answer[0], answer[1]["error"]["code"]) == (status, code), (change, answer)
        assert await fabric.admin.api.list("/tasks", api.TaskView) == []


async def claim_for_somebody_else(fabric: Any, group: str) -> None:
    other = await fabric.user("ann")
    await other.api.call("POST", "/sessions", api.SessionRequest(groups=[group]), api.SessionAnswer)


@pytest.mark.asyncio
async def test_the_key_is_made_once_and_for_nobody_else_to_read(rabbitmq: Node, tmp_path: Path) -> None:
    """A file of mode 0600 beside the database, the same after a restart; everybody may see its public half, nobody the other."""
    seen = []
    for _ in range(2):
        async with serving(settings_for(rabbitmq, sqlite_url(tmp_path))) as running:
            seen.append(await get(running.url, "", "/front-door"))
    file = tmp_path / "front-door.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert seen[0] == seen[1]
    assert seen[0]["key"]
    assert seen[0]["key"] not in file.read_text()


def area(width: float, height: float = 1.0) -> float:
    return width * height


@pytest.mark.asyncio(loop_scope="session")
async def test_a_real_endpoint_runs_what_curl_could_send(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """`funcmq endpoint trust NAME --front-door`, then JSON in and JSON out; after `trust remove`, refused again."""
    stack.use(monkeypatch)
    async with funcmq.Client() as fx:
        function = await fx.register(area)
        key = (await get(stack.url, stack.token, "/front-door"))["key"]
        body = {"endpoint": "dev", "function": function, "tasks": [{"args": [6], "kwargs": {"height": 7}}, {"args": ["x", None]}]}
        assert (await post(stack.url, stack.token, body))[0] == 403
        await run("endpoint", "trust", "dev", "--front-door", "--yes")
        try:
            status, said = await post(stack.url, stack.token, body)
            while status == 403:  # until the daemon has told the front door whom it trusts: nothing to wait on from outside
                await asyncio.sleep(PROBE_S)
                status, said = await post(stack.url, stack.token, body)
            assert status == 202, said
            good, bad = said["tasks"]
            assert await fx.task(good) == 42
            with pytest.raises(TypeError):
                await fx.task(bad)
            assert (await ended(stack, good))["value"] == 42
            failed = await ended(stack, bad)
            assert (failed["state"], failed["type_name"]) == ("failed", "TypeError")
        finally:
            await run("endpoint", "trust", "remove", "dev", key)


async def ended(stack: Stack, task: str) -> dict[str, Any]:
    """The result as HTTP tells it: the store has it a moment after the stream."""
    while (said := await get(stack.url, stack.token, f"/tasks/{task}/result"))["state"] not in api.ENDS:
        await asyncio.sleep(PROBE_S)
    return said


async def run(*words: str) -> None:
    result = await asyncio.to_thread(CliRunner().invoke, cli, list(words))
    assert result.exit_code == 0, (words, result.output, result.exception)
