"""Laws of the Client, with a whole fabric behind it."""

import ast
import asyncio
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from funcmq import Client, TaskFuture, errors, function
from funcmq.broker import codec, topology, values
from funcmq.broker.connection import Broker
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.messages import Outcome, Results
from funcmq.broker.signing import RESULTS, PrivateKey
from funcmq.dev.stack import Stack
from tests.proxy import proxy

pytestmark = pytest.mark.asyncio

LIMIT_S = 40


def double(number: int) -> int:
    return 2 * number


def add(*numbers: int, plus: int = 0) -> int:
    return sum(numbers) + plus


def fail(text: str) -> None:
    sys.stdout.write("before it failed\n")
    raise ValueError(text)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.fixture(autouse=True)
def configured(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.use(monkeypatch)


@pytest_asyncio.fixture
async def fx(configured: None) -> AsyncIterator[Client]:
    async with asyncio.timeout(LIMIT_S), Client() as client:
        yield client


# What goes out comes back


async def test_a_call_goes_out_and_its_result_comes_back(fx: Client) -> None:
    """Arguments are the function's own, and the future tells where and when it ran."""
    task = fx.submit(add, 1, 2, plus=3)
    assert await task == 6
    assert (task.state, task.endpoint) == ("succeeded", "dev")
    stamps = task.timeline
    assert list(stamps) == ["submitted", "accepted", "received", "started", "ended"] or "accepted" not in stamps
    assert task.host


class Scale:
    """A callable object with a method."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, number: int) -> int:
        return self.factor * number

    __call__ = times


async def later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def enclose(factor: int) -> Any:
    def inner(number: int) -> int:
        return factor * double(number) // 2

    return inner


@function
def decorated(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize(
    "kind",
    [
        double,
        lambda n: 2 * n,
        enclose(2),
        functools.partial(add, plus=0),
        Scale(2),
        Scale(2).times,
        later,
        decorated,
        functools.partial(Scale(2).times),
    ],
    ids=["module", "lambda", "closure", "partial", "object", "method", "async", "decorated", "partial-method"],
)
async def test_every_kind_of_function(fx: Client, kind: Any) -> None:
    """Functions of local modules, lambdas, closures, partials, objects, methods and coroutine functions run far away as they do here."""
    expected = 8 if not isinstance(kind, functools.partial) or kind.func is not add else 4
    assert await fx.submit(kind, 4) == expected


async def test_plain_values_come_back_as_they_were(fx: Client) -> None:
    """Tuples stay tuples, bytes stay bytes, and objects are pickled."""
    for value in [
        None,
        (1, (2, [3])),
        b"\x00",
        {"k": 1.5, 2: "x"},
        {1, 2},
        Path("/x"),
        1 << 100,
        "ü\ud83d\ude00".encode("utf-16", "surrogatepass"),
    ]:
        assert await fx.submit(lambda x: x, value) == value
        assert type(await fx.submit(lambda x: x, value)) is type(value)


async def test_map_gives_all_in_order(fx: Client) -> None:
    """Thousands of calls, in order; unordered gives the same set; several iterables give several arguments."""
    assert [one async for one in fx.map(double, range(5000))] == [2 * n for n in range(5000)]
    assert {one async for one in fx.map(double, iter(range(300)), ordered=False)} == {2 * n for n in range(300)}
    assert [one async for one in fx.map(add, [1, 2], [3, 4], chunksize=1)] == [4, 6]
    assert [one async for one in fx.map(later, range(3))] == [0, 2, 4]


async def test_map_knows_three_ways_with_errors(fx: Client) -> None:
    """One failing call takes no neighbour along; "raise" gives what came before it, then its error."""
    numbers = [1, 0, 2]
    outcomes = [one async for one in fx.map(lambda n: 1 / n, numbers, errors="return", chunksize=3)]
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [one async for one in fx.map(lambda n: 1 / n, numbers, errors="skip")] == [1, 0.5]
    given = []
    with pytest.raises(ZeroDivisionError) as raised:
        async for one in fx.map(lambda n: 1 / n, numbers, chunksize=3):
            given += [one]
    assert given == [1]
    assert isinstance(raised.value, errors.TaskFailed)
    assert "ZeroDivisionError" in raised.value.remote_traceback


async def test_a_dying_call_takes_no_neighbour_along(fx: Client) -> None:
    """In a chunk one call ends its process: only that call is WorkerDied."""
    outcomes = [one async for one in fx.map(lambda n: os._exit(3) if n == 5 else n, range(10), chunksize=10, errors="return")]
    assert isinstance(outcomes[5], errors.WorkerDied)
    assert [one for one in outcomes if isinstance(one, int)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


# What bad input gets


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
    assert f'{__file__}", line' in raised.value.remote_traceback
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


# Cancelling and waiting


async def test_cancelling_what_was_not_sent(fx: Client) -> None:
    """cancel() is True, the future ends at once, and the task never runs."""
    await fx.submit(double, 1)
    task = fx.submit(double, 2)
    assert task.cancel() is True
    assert task.cancelled()
    with pytest.raises(errors.TaskCancelled):
        await task
    assert task.cancel() is False


async def test_cancelling_what_runs(fx: Client) -> None:
    """cancel() is False, and the future ends as TaskCancelled within seconds."""
    task = fx.submit(nap, 60)
    while task.state != "running":
        await asyncio.sleep(0.05)
    assert task.cancel() is False
    async with asyncio.timeout(10):
        with pytest.raises(errors.TaskCancelled):
            await task
    assert (task.state, task.cancelled()) == ("cancelled", True)


async def test_cancelling_a_group(fx: Client) -> None:
    """All of the group's tasks end, and nobody else's."""
    other = fx.submit(double, 4)
    naps = [fx.on(group="naps-" + new_hex()).submit(nap, 60) for _ in range(1)]
    view = fx.on(group=naps[0].scope.group if naps[0].scope else "")
    naps += [view.submit(nap, 60) for _ in range(4)]
    await fx.flush()
    assert await view.cancel() == 5
    assert all(isinstance(outcome, errors.TaskCancelled) for outcome in await fx.gather(naps, errors="return"))
    assert await other == 8


async def test_a_timed_out_wait_leaves_the_task_alone(fx: Client) -> None:
    """After the time-out the task goes on to its result."""
    task = fx.submit(nap, 1.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.gather(task), 0.1)
    assert await task == 1.0


async def test_why_it_waits(fx: Client) -> None:
    """`.waiting_for` is a sentence until the task has ended."""
    task = fx.submit(nap, 0.5)
    assert task.waiting_for
    await task
    assert task.waiting_for == ""


# Coming back


async def test_a_group_can_be_attached_elsewhere(fx: Client) -> None:
    """Another process sees tasks of the group, ended and open, with their results."""
    tasks = [fx.submit(double, number) for number in range(20)] + [fx.submit(nap, 1.5), fx.submit(fail, "so")]
    await fx.gather(tasks[:20])
    code = (
        "import asyncio, sys\nfrom funcmq import Client\n"
        "async def main():\n"
        "    async with Client() as fx:\n"
        "        tasks = [task async for task in fx.attach(sys.argv[1])]\n"
        "        print(await fx.gather(tasks[:21]), repr(tasks[21].exception() or await fx.gather(tasks[21:], 'return')))\n"
        "asyncio.run(main())\n"
    )
    ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, fx.group], capture_output=True, text=True, timeout=30)
    assert str([2 * number for number in range(20)] + [1.5]) in ran.stdout, ran.stderr
    assert "ValueError" in ran.stdout + ran.stderr


async def test_attach_while_results_arrive(fx: Client) -> None:
    """Whoever attaches at any moment misses nothing."""
    tasks = [fx.submit(nap, 0.01) for _ in range(30)]
    await fx.flush()
    for _ in range(5):
        async with Client() as other:
            again = [task async for task in other.attach(fx.group)]
            assert await other.gather(again) == [0.01] * 30
            assert [task.id for task in again] == [task.id for task in tasks]


async def test_looking_at_tasks(fx: Client) -> None:
    """A task by its id, the latest ones, the endpoints; what does not exist is NotFound."""
    done = fx.submit(double, 21)
    await done
    async with Client() as other:
        assert await other.task(done.id) == 42
        assert done.id in [view.id for view in await other.tasks(state="succeeded", limit=50)]
        assert [view.name for view in await other.endpoints()] == ["dev"]
        with pytest.raises(errors.NotFound):
            await other.task("0" * 32)
        with pytest.raises(errors.NotFound):
            [task async for task in other.attach("no-such-group")]


async def test_a_key_names_one_task(fx: Client) -> None:
    """Two submissions with one key are one task, in one burst, later, and from another client."""
    view = fx.on(key="run-" + new_hex())
    first, second = view.submit(time.time_ns), view.submit(time.time_ns)
    assert await first == await second
    assert first.id == second.id
    third = view.submit(time.time_ns)
    assert await third == await first
    async with Client() as other:
        again = other.on(key=view.scope.key).submit(time.time_ns)
        assert await again == await first
        assert again.group == first.group != other.group


async def test_a_registered_function_runs_by_its_id(fx: Client) -> None:
    """register() gives an id that submit and map take; the same source has the same id."""
    identifier = await fx.register(double)
    assert identifier == await fx.register(double)
    assert await fx.submit(identifier, 4) == 8
    assert [one async for one in fx.map(identifier, [1, 2])] == [2, 4]


async def test_leaving_leaves_tasks_running(tmp_path: Path) -> None:
    """`async with` ends when everything is accepted; the tasks go on, and their futures say where to find them."""
    mark = tmp_path / "mark"
    async with Client() as fx:
        task = fx.submit(lambda path: (time.sleep(1), Path(path).write_text("x"))[1], str(mark))
        group = fx.group
    with pytest.raises(errors.Unreachable, match="goes on"):
        await task
    with pytest.raises(RuntimeError, match="closed"):
        fx.submit(double, 1)
    async with Client() as other, asyncio.timeout(LIMIT_S):
        assert [await task async for task in other.attach(group)] == [1]
    assert mark.exists()


async def test_a_notebook_needs_no_with() -> None:
    """A client connects at first use, on the loop that runs."""
    fx = Client()
    assert await fx.submit(double, 3) == 6
    assert [one async for one in fx.map(double, [1])] == [2]
    await fx._connection.leave(1)


# Faults


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


# The example


async def test_the_demonstration_tells_the_truth(tmp_path: Path) -> None:
    """Every number that examples/metadata.py prints can be computed again from the files."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "examples" / "metadata.py"), str(root / "broker"), "--json", str(tmp_path / "out.json")]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    paths = sorted(str(path) for path in (root / "broker").rglob("*") if path.is_file())
    assert sorted(said["files"]) == paths
    assert said["skipped"] == {}
    for path, found in said["files"].items():
        data = Path(path).read_bytes()
        assert (found["size"], found["sha256"], found["lines"]) == (len(data), hashlib.sha256(data).hexdigest(), data.count(b"\n"))
        if path.endswith(".py"):
            kinds = [type(node).__name__ for node in ast.walk(ast.parse(data))]
            functions, classes = sum(kind in ("FunctionDef", "AsyncFunctionDef") for kind in kinds), kinds.count("ClassDef")
            run = said["runs"][path]
            assert (run["functions"], run["classes"], len(found["names"])) == (functions, classes, functions + classes)
    assert said["totals"]["files"] == len(paths)
    assert said["totals"]["bytes"] == sum(found["size"] for found in said["files"].values())
    assert sum(said["hosts"].values()) == len(paths)
    assert said["failed"]["type"] == "FileNotFoundError"
    assert said["cancelled"]["state"] == "cancelled"
    assert f"{said['totals']['files']:,} files" in ran.stdout
    assert len(ran.stdout.rstrip().splitlines()[-3:]) == 3
