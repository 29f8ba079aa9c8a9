"""The way of a task through the front door, with a real RabbitMQ, on both databases."""

from __future__ import annotations

import pytest

from funcmq.broker import api, codec, signing, topology
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.messages import (
    Dispatch,
    Inline,
    Receipt,
    Refused,
    Running,
    Task,
)
from tests.forwarder_rig import (
    Fabric,
    as_broker,
    bundle_id,
    call_task,
    eventually,
    listening,
    now_ms,
    outcome_of,
    publish_to_queue,
    settled,
)


@pytest.mark.asyncio
async def test_a_submitted_bundle_lies_in_the_task_queue_as_it_was_signed(fabric: Fabric) -> None:
    """The bytes that the user signed are the bytes that the endpoint gets."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(n) for n in range(5)])
    bundle = user.sign(work)
    answer = await user.post(bundle)
    assert answer == api.SubmitAnswer(bundle=bundle_id(bundle), accepted=5)
    async with endpoint.connected():
        assert await endpoint.next_dispatch() == Dispatch(1, None, bundle)


@pytest.mark.asyncio
async def test_a_result_is_stored_acknowledged_streamed_and_read(fabric: Fabric) -> None:
    """A result reaches the listener at once and the store for good, as the exact bytes that the endpoint signed."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)])
    async with endpoint.connected(), listening(user, work.group) as stream:
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        data = await endpoint.finish(work, [outcome_of(task.id) for task in work.tasks])
        assert await stream.get() == ("results/1", data)
        answer = await user.query(*(task.id for task in work.tasks))
    assert answer.bundles == [data]
    assert [task.state for task in answer.tasks] == ["succeeded", "succeeded"]
    view = await user.view(work.tasks[0].id)
    assert (view.state, view.host, view.attempt, view.function_name) == ("succeeded", "here", 1, "f")
    assert view.ended >= view.started > 0


@pytest.mark.asyncio
async def test_who_listens_late_sees_results_that_come_to_the_store_after(fabric: Fabric) -> None:
    """A result that was published before a stream was bound, and is stored after its listener was committed, is sent as a copy."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        data = endpoint.results(work.user, work.group, [outcome_of(work.tasks[0].id)])
        # the topic exchange is passed by: this is a result on whose way the stream was not bound yet
        async with Link("late", lambda: as_broker(fabric.node)) as link, listening(user, work.group) as stream:
            queue = topology.results_queue(endpoint.id)
            await publish_to_queue(link, queue, "results/1", data)
            assert await stream.get() == ("results/1", data)


@pytest.mark.asyncio
async def test_receipts_and_running_move_a_task_along(fabric: Fabric) -> None:
    """A task is published, received, running, succeeded, in the words of the interface."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    task = work.tasks[0].id
    async with endpoint.connected():
        answer = await user.post(user.sign(work))
        await endpoint.next_dispatch()
        await endpoint.report("receipt/1", codec.encode(Receipt(1, endpoint.id, endpoint.journal, [answer.bundle], now_ms())), work.group)
        await eventually(user, task, "received")
        await endpoint.report("running/1", codec.encode(Running(1, endpoint.id, [task], now_ms())), work.group)
        await eventually(user, task, "running")
        await endpoint.finish(work, [outcome_of(task)])
        assert (await user.view(task)).state == "succeeded"
    counts = await user.api.call("GET", f"/groups/{work.group}", None, api.GroupAnswer)
    assert counts.counts == {"succeeded": 1}
    assert counts.tasks == [task.hex()]


@pytest.mark.asyncio
async def test_the_same_bundle_again_changes_nothing(fabric: Fabric) -> None:
    """A repeated POST of a confirmed bundle gives the same answer and sends nothing."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    bundle = user.sign(user.work(endpoint.id, function, [call_task()]))
    first = await user.post(bundle)
    await settled(fabric)
    assert await user.post(bundle) == first
    marker = user.sign(user.work(endpoint.id, function, [call_task()]))
    await user.post(marker)
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).bundle == bundle
        assert (await endpoint.next_dispatch()).bundle == marker


@pytest.mark.asyncio
async def test_ids_and_keys_known_before_are_the_same_task(fabric: Fabric) -> None:
    """A known task is `same`, other content under its id is refused, a known key stands for its first task; the rest goes on."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    first, keyed = call_task(1), call_task(2, key="k")
    before = user.work(endpoint.id, function, [first, keyed])
    await user.post(user.sign(before))
    other = Task(keyed.id, 0, 0, Inline("msgpack", b"\x09"))
    tasks = [first, other, call_task(3, key="k"), call_task(4)]
    answer = await user.post(user.sign(user.work(endpoint.id, function, tasks, options=before.options)))
    assert answer.accepted == 1
    group = before.group
    same = [(verdict.index, verdict.verdict, verdict.id, verdict.group, verdict.code) for verdict in answer.verdicts]
    assert same == [
        (0, "same", first.id.hex(), group, ""),
        (1, "refused", "", "", "Conflict"),
        (2, "same", keyed.id.hex(), group, ""),
    ]
    async with endpoint.connected():
        await endpoint.next_dispatch()
        assert (await endpoint.next_dispatch()).only == [3]


@pytest.mark.asyncio
async def test_the_first_result_wins(fabric: Fabric) -> None:
    """A second result for a task that has one changes nothing, is acknowledged and counted."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        first = await endpoint.finish(work, [outcome_of(work.tasks[0].id, 1)])
        await endpoint.finish(work, [outcome_of(work.tasks[0].id, 2)])
        await endpoint.report("results/1", first, work.group)
        assert (await endpoint.orders.get()).bundles == [(bundle_id(first), "")]
    assert (await user.query(work.tasks[0].id)).bundles == [first]


@pytest.mark.asyncio
async def test_a_refusal_fails_the_tasks_of_its_bundle_and_a_result_still_wins(fabric: Fabric) -> None:
    """A signed refusal ends what was open, with its code; a result that comes after all replaces that end."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task()])
    task = work.tasks[0].id
    async with endpoint.connected(), listening(user, work.group) as stream:
        answer = await user.post(user.sign(work))
        await endpoint.next_dispatch()
        refusal = Refused(1, endpoint.id, endpoint.key.public.id, now_ms(), answer.bundle, "NotAllowed", "No such key here.")
        data = endpoint.key.sign(signing.REFUSED, codec.encode(refusal))
        await endpoint.report("refused/1", data, "-")
        assert await stream.get() == ("refused/1", data)
        told = (await user.query(task)).tasks
        assert told == [api.TaskState(id=task.hex(), state="failed", failure=("NotAllowed", "No such key here."))]
        await endpoint.finish(work, [outcome_of(task)])
        assert (await user.view(task)).state == "succeeded"


@pytest.mark.asyncio
async def test_a_cancel_is_a_request_to_the_endpoint(fabric: Fabric) -> None:
    """Open tasks are asked for over AMQP and at the next lease, ended ones not."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    work = user.work(endpoint.id, await user.register(), [call_task(1), call_task(2)])
    done, open_ = work.tasks
    async with endpoint.connected():
        await user.post(user.sign(work))
        await endpoint.next_dispatch()
        await endpoint.finish(work, [outcome_of(done.id)])
        body = api.TasksRequest(tasks=[done.id.hex(), open_.id.hex(), new_hex()])
        assert (await user.api.call("POST", "/tasks/cancel", body, api.CancelAnswer)).asked == 1
        assert (await endpoint.orders.get()).tasks == [open_.id]
        assert (await endpoint.take_lease()).cancels == [open_.id.hex()]
        answer = await user.api.call("POST", f"/groups/{work.group}/cancel", None, api.CancelAnswer)
        assert answer.asked == 1
