"""Laws of asking the front door: which tasks, of which group, and why they wait; on both databases."""

import asyncio
import re
from typing import Any
from urllib.parse import quote

import pytest

from funcmq.broker import api, codec, topology
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import group_id
from funcmq.broker.messages import Failure, Heartbeat, Inline, Options, PoolStatus, Receipt, Running, Work
from tests.forwarder_rig import HOUR_MS, Endpoint, Fabric, User, bundle_id, call_task, now_ms, outcome_of

pytestmark = pytest.mark.asyncio


async def submitted(user: User, endpoint: Endpoint, count: int = 1, function: str = "f", **changes: Any) -> Work:
    """A bundle of new tasks that was accepted."""
    ref = await user.register(function)
    work = user.work(endpoint.id, ref, [call_task(number) for number in range(count)], **changes)
    await user.post(user.sign(work))
    return work


async def listed(user: User, query: str) -> list[str]:
    return [view.id for view in await user.api.list(f"/tasks?{query}", api.TaskView)]


def ids(*works: Work) -> list[str]:
    """Ids in the order of a list, newest first."""
    return [task.id.hex() for work in reversed(works) for task in reversed(work.tasks)]


async def test_filters_and_pages(fabric: Fabric) -> None:
    """A list is newest first, of the caller only, and narrowed by each parameter; pages follow each other without gap or repetition."""
    ada, bob = fabric.admin, await fabric.user("bob")
    one, two = await fabric.endpoint(ada, "one"), await fabric.endpoint(ada, "two")
    first = await submitted(ada, one, 3, "f")
    second = await submitted(ada, two, 3, "mod.g", group=group_id(ada.id, "night"))
    every = ids(first, second)
    assert await listed(ada, "") == every
    assert await listed(ada, "endpoint=two") == await listed(ada, f"endpoint={two.id}") == ids(second)
    assert await listed(ada, "group=night") == await listed(ada, f"group={second.group}") == ids(second)
    assert await listed(ada, "function=g") == await listed(ada, f"function={second.functions[0].id}") == ids(second)
    assert await listed(ada, "function=f&limit=2") == ids(first)[:2]
    assert await listed(ada, "function=nothing") == []
    assert await listed(ada, f"since={now_ms() + HOUR_MS}") == []
    assert await listed(ada, f"since={now_ms() - HOUR_MS}&state=succeeded") == []
    pages, before = [], ""
    while page := await listed(ada, f"limit=2&before={before}"):
        pages += page
        before = page[-1]
    assert pages == every
    assert await listed(bob, "") == []
    for wrong in ("group=unknown", "endpoint=unknown", f"before={'0' * 32}"):
        with pytest.raises(NotFound):
            await listed(ada, wrong)
    for wrong in ("state=asleep", "limit=many", "before=x"):
        with pytest.raises(InvalidRequest):
            await listed(ada, wrong)


async def test_short_ids(fabric: Fabric) -> None:
    """The last 8 digits, any case, and dashes name a task of the caller; several tasks with that end are named, and nobody else's."""
    ada, bob = fabric.admin, await fabric.user("bob")
    endpoint = await fabric.endpoint(ada)
    ref = await ada.register()
    twins = [bytes.fromhex("01" * 12 + "ab" * 4), bytes.fromhex("02" * 12 + "ab" * 4)]
    single = call_task(1)
    await ada.post(ada.sign(ada.work(endpoint.id, ref, [single, *(call_task(1, id=twin) for twin in twins)])))
    whole = single.id.hex()
    dashed = "-".join((whole[:8], whole[8:12], whole[12:16], whole[16:20], whole[20:]))
    for given in (whole, dashed, whole[-8:], whole[-8:].upper(), whole[-12:]):
        assert (await ada.api.call("GET", f"/tasks/{given}", None, api.TaskView)).id == whole
    with pytest.raises(InvalidRequest, match="Several tasks") as several:
        await ada.api.tell("GET", "/tasks/abababab")
    assert twins[0].hex() in str(several.value)
    for user, given in ((bob, whole[-8:]), (ada, "deadbeef"), (ada, "xyz"), (ada, whole[-6:])):
        with pytest.raises(NotFound):
            await user.api.tell("GET", f"/tasks/{given}")


async def test_a_task_can_be_read_again(fabric: Fabric) -> None:
    """The signed call, the plain value and how it failed, with the exception's type, are there for its user alone."""
    ada, bob = fabric.admin, await fabric.user("bob")
    endpoint = await fabric.endpoint(ada)
    ref = await ada.register()
    work = ada.work(endpoint.id, ref, [call_task(1), call_task(2), call_task(3)])
    data = ada.sign(work)
    await ada.post(data)
    good, odd, bad = (task.id for task in work.tasks)
    failure = Failure("TaskFailed", "division by zero", "ZeroDivisionError", "Traceback …")
    async with endpoint.connected():
        await endpoint.next_dispatch()
        outcomes = [
            outcome_of(good, 7),
            outcome_of(odd, value=Inline("pickle", b"x")),
            outcome_of(bad, state="failed", value=None, failure=failure),
        ]
        await endpoint.finish(work, outcomes)
    assert await ada.api.fetch_raw(f"/tasks/{good.hex()}/bundle") == data
    result = await ada.api.call("GET", f"/tasks/{good.hex()[-8:]}/result", None, api.ResultAnswer)
    assert (result.state, result.value) == ("succeeded", 7)
    with pytest.raises(InvalidRequest, match="pickled"):
        await ada.api.tell("GET", f"/tasks/{odd.hex()}/result")
    failed = await ada.api.call("GET", f"/tasks/{bad.hex()}/result", None, api.ResultAnswer)
    assert (failed.failure, failed.type_name) == (("TaskFailed", "division by zero"), "ZeroDivisionError")
    assert (await ada.view(bad)).traceback == "Traceback …"
    for path in (f"/tasks/{good.hex()}/bundle", f"/tasks/{good.hex()}/result"):
        with pytest.raises(NotFound):
            await bob.api.tell("GET", path)


async def test_a_group_by_its_name(fabric: Fabric) -> None:
    """A group is found by name or id, in pages in the order of submission; a false name is refused, and nobody else finds it."""
    ada, bob = fabric.admin, await fabric.user("bob")
    endpoint, group = await fabric.endpoint(ada), group_id(ada.id, "night run/3")
    request = api.SessionRequest(groups=[group], names={group: "night run/3"})
    await ada.api.call("POST", "/sessions", request, api.SessionAnswer)
    works = [await submitted(ada, endpoint, 3, group=group) for _ in range(2)]
    order = [task.id.hex() for work in works for task in work.tasks]
    named = quote("night run/3", safe="")
    answer = await ada.api.call("GET", f"/groups/{named}", None, api.GroupAnswer)
    assert (answer.id, answer.name, answer.tasks) == (group, "night run/3", order)
    short = await ada.api.call("GET", f"/groups/{named}?tasks=false", None, api.GroupAnswer)
    assert (short.id, short.name, short.tasks) == (group, "night run/3", [])
    pages: list[str] = []
    while page := await ada.api.list(f"/groups/{named}/tasks?limit=4&after={pages[-1] if pages else ''}", api.TaskBrief):
        pages += [brief.id for brief in page]
        assert {(brief.endpoint, brief.function_name, brief.state in api.ENDS) for brief in page} == {(endpoint.id, "f", False)}
    assert pages == order
    with pytest.raises(InvalidRequest, match="not the name"):
        await ada.api.call("POST", "/sessions", api.SessionRequest(groups=[group], names={group: "day"}), api.SessionAnswer)
    for given in (named, group):
        with pytest.raises(NotFound):
            await bob.api.tell("GET", f"/groups/{given}")


POOL = PoolStatus("cpu", "local", 2, 2, 2, 1, {})


async def beat(endpoint: Endpoint, *pools: PoolStatus, queued: int = 0) -> None:
    """Say so, and return when the front door has heard it."""
    assert endpoint.link is not None
    assert endpoint.lease is not None
    said = Heartbeat(1, endpoint.id, endpoint.lease.epoch, endpoint.journal, now_ms(), "login3", 1, "0", list(pools), {"u": queued}, 0, 0)
    await endpoint.link.publish(topology.STATUS, endpoint.id, "heartbeat/1", codec.encode(said))


async def sentence(user: User, task: bytes, wanted: str) -> None:
    """The task says so, in a moment."""
    said = ""
    try:
        async with asyncio.timeout(20):
            while not re.fullmatch(wanted, said := (await user.view(task)).waiting_for):
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{said!r} is not {wanted!r}")


async def test_why_a_task_waits(fabric: Fabric) -> None:
    """From acceptance to its end each task says in one sentence what is between it and its result."""
    ada = fabric.admin
    endpoint = await fabric.endpoint(ada)
    options = [Options(not_after=now_ms() + HOUR_MS, walltime_s=600)]
    work = await submitted(ada, endpoint, 30, options=options)
    first, last = work.tasks[0].id, work.tasks[-1].id
    await sentence(ada, first, "endpoint offline")
    async with endpoint.connected():
        await beat(endpoint, POOL)
        await sentence(ada, first, "waiting for the endpoint to take it from its queue")
        receipt = Receipt(1, endpoint.id, endpoint.journal, [bundle_id(ada.sign(work))], now_ms())
        await endpoint.report("receipt/1", codec.encode(receipt), work.group)
        await beat(endpoint, POOL, queued=17_203)
        await sentence(ada, last, "29 tasks ahead")
        await sentence(ada, first, "waiting for a worker")
        pending = PoolStatus("cpu", "slurm", 0, 0, 2, 1, {}, "block started 2 min ago, no worker yet: module not found")
        await beat(endpoint, pending, queued=30)
        await sentence(ada, first, pending.reason)
        await beat(endpoint, POOL, queued=29)
        running = Running(1, endpoint.id, [first], now_ms() - 180_000, "nid0012")
        await endpoint.report("running/1", codec.encode(running), work.group)
        await sentence(ada, first, "running on nid0012, 3 of 10 min")
        await endpoint.finish(work, [outcome_of(first)])
        await sentence(ada, first, "")
    await endpoint.take_lease(host="login3")
    await endpoint.api.tell("DELETE", f"/endpoints/{endpoint.id}/lease")
    await sentence(ada, last, r"endpoint offline since \d\d:\d\d UTC \(login3\)")
