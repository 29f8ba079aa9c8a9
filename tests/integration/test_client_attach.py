"""Laws of coming back: groups and tasks, from another process and on another day."""

import asyncio
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from funcmq import Client, errors
from funcmq.broker import api
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack
from tests.client_rig import double, fail, nap

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


def read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


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


async def test_a_named_group_gathers_what_several_programs_submit(fx: Client) -> None:
    """A group's id is made of user and name, so whoever says the name again finds it: for attach, for lists, and for cancel."""
    name = f"night/{new_hex()}"
    first = [fx.on(group=name).submit(double, number) for number in range(3)]
    async with Client() as other:
        second = [other.on(group=name).submit(double, number) for number in range(3, 6)]
        await other.flush()
        await fx.flush()
        assert first[0].group == second[0].group == other.on(group=name).group
    async with Client() as third:
        again = [task async for task in third.attach(name)]
        assert sorted(await third.gather(again)) == [0, 2, 4, 6, 8, 10]
        assert {view.id for view in await third.tasks(group=name)} == {task.id for task in first + second}
        assert await third.cancel(name) == 0
    with pytest.raises(errors.NotFound):
        await fx.cancel("no-such-group")


async def test_attach_in_pages(fx: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group larger than a page comes whole and in order, also to a client of which some futures are still open."""
    monkeypatch.setattr("funcmq.client.lists.PAGE", 7)
    view = fx.on(group=new_hex())
    tasks = [view.submit(double, number) for number in range(40)] + [view.submit(nap, 1.0)]
    await fx.gather(tasks[:30])
    again = [task async for task in view.attach()]
    assert [task.id for task in again] == [task.id for task in tasks]
    assert again[-1] is tasks[-1]
    assert await fx.gather(again) == [2 * number for number in range(40)] + [1.0]


async def test_who_has_seen_a_result_never_sees_it_waiting(fx: Client) -> None:
    """The store learns of an end a little later than the client; the same client does not notice."""
    for number in range(8):
        task = fx.submit(double, number)
        await task
        views = await fx.tasks(limit=1)
        assert [(view.id, view.state, view.waiting_for) for view in views] == [(task.id, "succeeded", "")]
        again = fx.submit(double, number)
        await again
        assert await fx.task(again.id) == 2 * number


async def test_a_task_by_any_form_of_its_id(fx: Client) -> None:
    """Whole, with dashes, or its last 8 digits; while it is open here it is the same future; what is no id is refused at once."""
    task = fx.submit(nap, 1.0)
    await fx.flush()
    dashed = "-".join((task.id[:8], task.id[8:12], task.id[12:16], task.id[16:20], task.id[20:]))
    assert fx.task(task.id) is fx.task(dashed) is fx.task(task.id[-8:]) is task
    async with Client() as other:
        found = [other.task(form) for form in (task.id, dashed, task.id[-8:])]
        assert await other.gather(found) == [1.0] * 3
        assert {future.id for future in found} == {task.id}
        with pytest.raises(errors.NotFound):
            await other.task("deadbeef")
    for wrong in ("", "abc", "no-such-task", task.id + "0"):
        with pytest.raises(errors.InvalidRequest):
            fx.task(wrong)


async def test_tasks_by_filter(fx: Client, stack: Stack) -> None:
    """State, group, endpoint, function and time narrow a list; there is no limit but the one given."""
    view = fx.on(group=new_hex())
    good, bad = [view.submit(double, number) for number in range(5)], view.submit(fail, "so")
    await fx.gather([*good, bad], errors="return")
    group = view.group

    async def ids(**wanted: Any) -> set[str]:
        return {row.id for row in await fx.tasks(**({"group": group} | wanted))}

    every = {task.id for task in [*good, bad]}
    assert await ids() == await ids(endpoint="dev") == await ids(endpoint=stack.endpoint_id) == await ids(limit=2500) == every
    assert await ids(state="failed") == await ids(function=fail) == await ids(function="fail") == {bad.id}
    assert await ids(since="10m") == await ids(since=timedelta(minutes=10)) == every
    assert (
        await ids(since=time.time() + 60) == await ids(since=datetime.now(UTC) + timedelta(seconds=60)) == await ids(state="lost") == set()
    )
    assert [row.id for row in await fx.tasks(group=group, limit=2)] == [bad.id, good[-1].id]
    failed = (await fx.tasks(state="failed", group=group))[0]
    assert (failed.type_name, failed.failure) == ("ValueError", ("TaskFailed", "so"))
    for wrong in ({"state": "asleep"}, {"limit": 0}, {"since": "yesterday"}):
        with pytest.raises(ValueError):
            await fx.tasks(**wrong)  # type: ignore[arg-type]


async def test_a_task_can_be_retried(fx: Client, tmp_path: Path) -> None:
    """The same function and arguments run again as a new task of the same group, signed anew by the same key."""
    path = tmp_path / "there"
    task = fx.on(walltime="1m", key=new_hex()).submit(read, str(path))
    with pytest.raises(FileNotFoundError):
        await task
    path.write_text("found")
    async with Client() as other:
        again = await other.retry(task.id[-8:])
        assert await again == "found"
        assert again.id != task.id
        assert again.group == task.group
        assert await (await other.retry(again.id)) == "found"
        with pytest.raises(errors.NotFound):
            await other.retry("0" * 32)


async def test_what_another_key_signed_is_not_signed_again(stack: Stack, fx: Client, tmp_path: Path) -> None:
    """A front door that gives somebody else's call for this user's own does not get it signed."""
    task = fx.submit(double, 1)
    await task
    other = PrivateKey.generate()
    other.save(tmp_path / "key")
    async with Api(stack.url, stack.token) as front:
        await front.call("POST", "/keys", api.KeyRequest(key=other.public.text), api.KeyView)
    async with Client(key=tmp_path / "key") as second:
        with pytest.raises(errors.NotAllowed, match="another key"):
            await second.retry(task.id)
