"""Laws of a client whose fabric fails it."""

import asyncio
from pathlib import Path

import pytest

from funcmq import Client, TaskFuture, errors
from funcmq.broker import api, codec, topology, values
from funcmq.broker.connection import Broker
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.messages import Outcome, Results
from funcmq.broker.signing import RESULTS, PrivateKey
from funcmq.dev.stack import Stack
from tests.client_rig import LIMIT_S, double, hold, nap
from tests.proxy import proxy

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


async def test_a_front_door_that_goes_away_for_a_while(stack: Stack) -> None:
    """What is submitted meanwhile is sent when it is back, once; running waits see nothing of it."""
    port = int(stack.url.rpartition(":")[2])
    async with proxy(port) as wire, asyncio.timeout(LIMIT_S), Client(url=f"http://127.0.0.1:{wire.port}") as fx:
        assert await fx.submit(double, 1) == 2
        wire.refuse(True)
        wire.cut()
        tasks = [fx.submit(double, number) for number in range(50)]
        while not fx._connection.fabric.trouble.since:
            await asyncio.sleep(0.01)
        assert "does not answer" in tasks[0].waiting_for
        wire.refuse(False)
        assert await fx.gather(tasks) == [2 * number for number in range(50)]


async def test_requests_cut_in_the_middle_are_repeated(stack: Stack) -> None:
    """Connections to the front door are cut again and again: each task runs, and ends once with its result."""
    port = int(stack.url.rpartition(":")[2])
    async with proxy(port) as wire, asyncio.timeout(LIMIT_S), Client(url=f"http://127.0.0.1:{wire.port}") as fx:
        tasks: list[TaskFuture[int]] = []
        for number in range(200):
            tasks.append(fx.submit(double, number))
            if number % 20 == 0:
                await asyncio.sleep(0.005)
                wire.cut()
        assert await fx.gather(tasks) == [2 * number for number in range(200)]


async def test_a_session_that_is_gone_is_replaced(fx: Client) -> None:
    """When the front door has forgotten the session, the client makes a new one for the same groups, and results come again."""
    assert await fx.submit(double, 1) == 2
    standing = fx._connection.fabric.standing
    session = standing.listener._session
    assert session is not None
    task = fx.submit(nap, 1.0)
    await fx.flush()
    await standing.front.tell("DELETE", f"/sessions/{session.id}")
    assert await fx.on(group="another-" + new_hex()).submit(double, 2) == 4
    assert await task == 1.0


async def test_a_forged_result_is_refused(stack: Stack, fx: Client) -> None:
    """A broker administrator writes results of a running task, signed by other keys: the client refuses each, and takes the true one."""
    task = fx.submit(nap, 1.5)
    await fx.flush()

    async def admin() -> Broker:
        return stack.source.broker

    forged = Outcome(task.task_id, "succeeded", values.pack("forged"), None, 1, 1, 1, 1)
    async with Link("forger", admin) as link:
        for key in (PrivateKey.generate(), PrivateKey.generate()):
            body = codec.encode(Results(1, stack.endpoint_id, key.public.id, new_hex(), new_hex(), task.group, 1, [forged]))
            await link.publish(topology.RESULTS, topology.results_key(stack.endpoint_id, task.group), "results/1", key.sign(RESULTS, body))
    while fx._connection.fabric.inbox.refused < 2:
        await asyncio.sleep(0.01)
    assert not task.done()
    assert await task == 1.5


async def own_token(stack: Stack, days: float = 1.0) -> tuple[str, str]:
    """A token of this user and its id."""
    async with Api(stack.url, stack.token) as front:
        answer = await front.call("POST", "/tokens", api.TokenRequest(comment="short", days=days), api.TokenAnswer)
    return answer.id, answer.token


async def test_a_revoked_token_ends_all_waits(fx: Client, stack: Stack, tmp_path: Path) -> None:
    """Whoever waits hears NotLoggedIn soon, with the task that goes on, instead of waiting for ever; the next client sees its result."""
    identifier, token = await own_token(stack)
    async with Client(token=token) as other:
        waiting = [other.submit(hold, str(tmp_path)), other.submit(hold, str(tmp_path))]
        await other.flush()
        async with Api(stack.url, stack.token) as front:
            await front.tell("DELETE", f"/tokens/{identifier}")
        outcomes = await other.gather(waiting, errors="return")
        assert [type(outcome) for outcome in outcomes] == [errors.NotLoggedIn] * 2
        assert waiting[0].id in "".join(outcomes[0].__notes__)
        assert waiting[0].state != "failed"
        with pytest.raises(errors.NotLoggedIn):
            await other.submit(double, 1)
    (tmp_path / "go").touch()
    assert await fx.task(waiting[0].id) is None


async def test_an_expired_token_ends_all_waits(fx: Client, stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The next look at the store says so, though the stream still stands."""
    monkeypatch.setattr("funcmq.client.reader.SWEEP_S", 0.5)
    _, token = await own_token(stack, days=2 / 86400)
    async with Client(token=token) as other:
        waiting = other.submit(hold, str(tmp_path))
        await other.flush()
        with pytest.raises(errors.NotLoggedIn):
            await waiting
    again = fx.task(waiting.id)
    assert again.cancel() is False
    with pytest.raises(errors.TaskCancelled):
        await again
