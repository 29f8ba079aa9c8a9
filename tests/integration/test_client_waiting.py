"""Laws of waiting, cancelling and leaving."""

import asyncio
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from funcmq import Client, errors
from funcmq.broker.ids import new_hex
from tests.client_rig import LIMIT_S, double, nap

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


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


async def test_why_it_waits(fx: Client, capfd: pytest.CaptureFixture[str]) -> None:
    """`.waiting_for` is a sentence until the task has ended; lists and progress bars say it too."""
    task = fx.on(walltime="10m").submit(nap, 4.0)
    assert task.waiting_for
    said = ""
    while not said.startswith("running"):
        await asyncio.sleep(0.02)
        said = task.waiting_for
        assert said or task.done()
    assert re.fullmatch(r"running on \S+, 0 of 10 min", said)
    view = next(view for view in await fx.tasks(limit=10) if view.id == task.id)
    assert re.fullmatch(r"running on \S+, 0 of 10 min", view.waiting_for)
    assert [one async for one in fx.map(nap, [3.0, 0.1], chunksize=1, progress=True)] == [3.0, 0.1]
    assert re.search(r"nap: \d of 2 done, \d s \((running on \S+ for|waiting for|\d+ tasks? ahead)", capfd.readouterr().err)
    await task
    assert task.waiting_for == ""


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


async def script(text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(text)]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)


async def test_a_client_left_open_is_quiet(configured: None) -> None:
    """A program that forgets to leave its client or executor ends with its own words only."""
    program = """
        import asyncio
        from funcmq import Client, Executor
        async def main():
            fx = Client()
            print(await fx.submit(abs, -1))
            fx.submit(abs, -2)
            await fx.flush()
        asyncio.run(main())
        ex = Executor()
        print(ex.submit(abs, -3).result())
        ex.submit(abs, -4)
    """
    ran = await script(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1\n3\n", "")


async def test_ctrl_c_in_a_client_says_how_to_attach(fx: Client) -> None:
    """An interrupted `async with Client()` prints the group and the line with which its tasks are seen again."""
    program = """
        import asyncio, os, signal, time
        from funcmq import Client
        async def main():
            async with Client() as fx:
                task = fx.submit(time.sleep, 2)
                await fx.flush()
                print(fx.group, flush=True)
                os.kill(os.getpid(), signal.SIGINT)
                await task
        asyncio.run(main())
    """
    ran = await script(program)
    group = ran.stdout.strip()
    assert f"attach({group!r})" in ran.stderr
    assert [await task async for task in fx.attach(group)] == [None]
