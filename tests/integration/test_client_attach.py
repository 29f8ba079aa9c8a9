"""Laws of coming back: groups and tasks, from another process and on another day."""

import asyncio
import subprocess
import sys

import pytest

from funcmq import Client, errors
from tests.client_rig import double, fail, nap

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


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
