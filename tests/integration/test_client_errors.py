"""Laws of what bad input gets, before it is sent, far away, and on the way back."""

import functools
import os
import sys
import threading
from pathlib import Path

import pytest

from funcmq import Client, errors
from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack
from tests.client_rig import add, double, fail, nap

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


async def test_each_fault_has_its_error_and_harms_no_neighbour(fx: Client) -> None:
    """In one burst: everything that can be wrong with a task ends that task with its named error, and the others go on."""
    lock, large = threading.Lock(), bytes(9 * 1024 * 1024)
    bad = {
        "argument": (fx.submit(double, lock), errors.NotSerializable),
        "large argument": (fx.submit(len, large), errors.PayloadTooLarge),
        "result": (fx.submit(threading.Lock), errors.NotSerializable),
        "large result": (fx.submit(bytes, 9 * 1024 * 1024), errors.PayloadTooLarge),
        "os._exit": (fx.submit(os._exit, 3), errors.WorkerDied),
        "sys.exit": (fx.submit(sys.exit, 3), errors.TaskFailed),
        "raises": (fx.submit(fail, "so"), ValueError),
        "module": (fx.submit(functools.partial(__import__, "no_such_module_here")), errors.ImportFailed),
        "function": (fx.submit("ab" * 32), errors.NotFound),
        "endpoint": (fx.on("nowhere").submit(double, 1), errors.NotFound),
        "walltime": (fx.on(walltime=0.2).submit(nap, 30), errors.WalltimeExceeded),
        "unpicklable function": (fx.submit(lambda: lock), errors.NotSerializable),
    }
    good = [fx.submit(double, number) for number in range(20)]
    assert await fx.gather(good) == [2 * number for number in range(20)]
    outcomes = await fx.gather([task for task, _ in bad.values()], errors="return")
    for (name, (_, expected)), outcome in zip(bad.items(), outcomes, strict=True):
        assert isinstance(outcome, expected), f"{name}: {outcome!r}"
        assert isinstance(outcome, errors.FuncmqError), name
        assert str(outcome), name


async def test_what_cannot_work_raises_at_once(fx: Client) -> None:
    """No callable, an unknown option, a future among the arguments: TypeError at the line that says it."""
    waiting = fx.submit(nap, 0.1)
    for wrong in (lambda: fx.submit(3), lambda: fx.submit("name"), lambda: fx.submit(double, waiting), lambda: fx.submit(add, [waiting])):
        with pytest.raises(TypeError):
            wrong()  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match=waiting.id[-8:]):
        fx.submit(double, waiting)
    with pytest.raises(TypeError, match="walltme"):
        fx.on(walltme=3)  # type: ignore[call-arg]
    with pytest.raises(RuntimeError, match="await"):
        waiting.result()
    await waiting


async def test_a_failure_reads_well(fx: Client) -> None:
    """The remote traceback shows the user's file and line; output of the task is kept."""
    task = fx.submit(fail, "so")
    with pytest.raises(ValueError, match="so") as raised:
        await task
    assert isinstance(raised.value, errors.TaskFailed)
    assert f'{fail.__code__.co_filename}", line' in raised.value.remote_traceback
    assert "endpoint dev" in "".join(raised.value.__notes__)
    assert task.stdout == "before it failed\n"


async def test_a_wrong_token_is_not_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting says so; without `async with` the future does."""
    monkeypatch.setenv("FUNCMQ_TOKEN", "fx_wrong")
    with pytest.raises(errors.NotLoggedIn):
        async with Client():
            pass
    client = Client()
    with pytest.raises(errors.NotLoggedIn):
        await client.submit(double, 1)


async def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    """Work signed by a key that the front door does not know runs nowhere, and a missing key file is a configuration error."""
    PrivateKey.generate().save(tmp_path / "key")
    async with Client(key=tmp_path / "key") as fx:
        with pytest.raises((errors.NotAllowed, errors.NotFound, errors.InvalidRequest)):
            await fx.submit(double, 1)
    with pytest.raises(errors.ConfigurationError):
        async with Client(key=tmp_path / "missing"):
            pass


async def test_nobody_there_is_unreachable() -> None:
    """A front door that was never reached is an error soon, not a wait for ever."""
    with pytest.raises(errors.Unreachable):
        async with Client(url="http://127.0.0.1:9", token="t"):
            pass


async def test_nothing_configured_says_what_to_try(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a fabric the error names the two commands that make one."""
    monkeypatch.delenv("FUNCMQ_URL")
    monkeypatch.setenv("FUNCMQ_HOME", str(tmp_path))
    with pytest.raises(errors.ConfigurationError, match="funcmq dev"):
        Client()


async def test_a_changed_endpoint_key_is_refused(stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where another key is pinned, nothing is sent, and the error says which line to look at."""
    monkeypatch.setenv("FUNCMQ_HOME", str(tmp_path))
    (tmp_path / "known_endpoints").write_text(f"{stack.endpoint_id} ed25519 {PrivateKey.generate().public.text} dev\n")
    async with Client() as fx:
        with pytest.raises(errors.NotAllowed, match="changed"):
            await fx.submit(double, 1)
