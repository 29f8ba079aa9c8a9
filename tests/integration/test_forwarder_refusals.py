"""What the front door does not take, and who may do what, on both databases."""

from __future__ import annotations

import asyncio
from typing import Any

import aio_pika
import pytest

from funcmq.broker import api, codec, messages, signing, topology
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import (
    InvalidRequest,
    NotAllowed,
    NotFound,
    NotLoggedIn,
    PayloadTooLarge,
    VersionMismatch,
)
from funcmq.broker.ids import group_id, new_hex, new_id
from funcmq.broker.messages import (
    FunctionRef,
    Inline,
    Options,
    Refused,
    Work,
)
from funcmq.broker.signing import PrivateKey
from tests.forwarder_rig import (
    HOUR_MS,
    Fabric,
    bundle_id,
    call_task,
    now_ms,
    outcome_of,
    refuses,
)

# ---- what must not come in


@pytest.mark.asyncio
async def test_bundles_that_are_not_the_callers_are_refused_whole(fabric: Fabric) -> None:
    """Forged, altered, unknown or untrusted keys, strangers' bundles, endpoints and groups: a named error, and nothing is stored."""
    user, other = await fabric.user("ann"), await fabric.user("bob")
    endpoint, foreign = await fabric.endpoint(user), await fabric.endpoint(other)
    function = await user.register()

    def work(**changes: Any) -> Work:
        return user.work(changes.pop("at", endpoint.id), function, [call_task()], **changes)

    good = user.sign(work())
    altered = bytearray(good)
    altered[-3] ^= 1  # the argument
    stranger = PrivateKey.generate()
    await refuses(user, bytes(altered), NotAllowed)
    await refuses(user, stranger.sign(signing.BUNDLE, codec.encode(work())), NotAllowed)
    await refuses(user, stranger.sign(signing.BUNDLE, codec.encode(work(key=stranger.public.id))), NotAllowed)
    await refuses(user, user.key.sign(signing.RESULTS, codec.encode(work())), NotAllowed)
    await refuses(user, codec.encode(messages.Signed(messages.Unsigned(), codec.encode(work()))), NotAllowed)
    await refuses(other, good, NotAllowed)
    await refuses(user, user.sign(work(at=foreign.id)), NotFound)
    await refuses(user, user.sign(work(at=new_hex())), NotFound)
    await refuses(user, user.sign(work(v=2)), VersionMismatch)
    await refuses(user, b"\x93garbage", InvalidRequest)
    await refuses(user, user.sign(work(signed_at=now_ms() + HOUR_MS)), InvalidRequest)
    large = [call_task(args=Inline("pickle", bytes(600_000))) for _ in range(2)]
    await refuses(user, user.sign(user.work(endpoint.id, function, large)), PayloadTooLarge)
    await refuses(user, bytes(9_000_000), PayloadTooLarge)
    theirs = other.work(foreign.id, await other.register(), [call_task()])
    await other.post(other.sign(theirs))
    await refuses(user, user.sign(work(group=theirs.group)), NotFound)
    async with endpoint.connected():
        pass
    endpoint.trusted = []
    await endpoint.take_lease()
    with pytest.raises(NotAllowed) as untrusted:
        await user.post(good)
    assert f"funcmq endpoint trust {endpoint.name}" in untrusted.value.hint
    assert await user.api.list("/tasks", api.TaskView) == []


@pytest.mark.asyncio
async def test_a_wrong_task_does_not_take_its_neighbours_along(fabric: Fabric) -> None:
    """Unknown function, time that is up and arguments of another kind are verdicts on that task alone."""
    user = fabric.admin
    endpoint = await fabric.endpoint(user)
    function = await user.register()
    unknown = FunctionRef("0" * 64, "g")
    options = [Options(not_after=now_ms() + HOUR_MS), Options(not_after=now_ms() - 1000)]
    tasks = [
        call_task(function=1),
        call_task(options=1),
        call_task(),
        call_task(args=messages.Uri("pickle", "file:///x", "0" * 64, 1)),
    ]
    bundle = user.sign(user.work(endpoint.id, function, tasks, functions=[function, unknown], options=options))
    answer = await user.post(bundle)
    assert answer.accepted == 1
    assert [(verdict.index, verdict.code) for verdict in answer.verdicts] == [
        (0, "NotFound"),
        (1, "TaskExpired"),
        (3, "EnvironmentMismatch"),
    ]
    assert await user.post(bundle) == answer
    async with endpoint.connected():
        assert (await endpoint.next_dispatch()).only == [2]
        assert await endpoint.api.fetch_raw(f"/functions/{function.id}")
        with pytest.raises(NotFound):
            await endpoint.api.fetch_raw(f"/functions/{unknown.id}")


@pytest.mark.asyncio
async def test_an_endpoint_reports_about_its_own_work_only(fabric: Fabric) -> None:
    """Results that are forged, of another endpoint's task, another group or unknown tasks are refused with a reason and change no task."""
    user = fabric.admin
    mine, other = await fabric.endpoint(user), await fabric.endpoint(user)
    function = await user.register()
    work = user.work(mine.id, function, [call_task()])
    task = work.tasks[0].id
    await user.post(user.sign(work))
    elsewhere = group_id(user.id, "elsewhere")
    async with other.connected(), mine.connected():
        forged = [
            (other, other.results(user.id, work.group, [outcome_of(task)])),
            (
                other,
                other.key.sign(signing.RESULTS, codec.decode(messages.Signed, mine.results(user.id, work.group, [outcome_of(task)])).body),
            ),
            (other, mine.results(user.id, work.group, [outcome_of(task)])),
            (mine, mine.results(user.id, elsewhere, [outcome_of(task)])),
            (mine, mine.results(new_hex(), work.group, [outcome_of(task)])),
            (mine, mine.results(user.id, work.group, [outcome_of(new_id())])),
            (mine, mine.results(user.id, work.group, [])),
            (
                mine,
                mine.key.sign(signing.BUNDLE, codec.decode(messages.Signed, mine.results(user.id, work.group, [outcome_of(task)])).body),
            ),
        ]
        for sender, data in forged:
            await sender.report("results/1", data, work.group)
            identifier, reason = (await sender.orders.get()).bundles[0]
            assert identifier == bundle_id(data)
            assert reason
        await mine.report("results/1", b"garbage", work.group)
        refusal = Refused(1, other.id, other.key.public.id, now_ms(), bundle_id(user.sign(work)), "NotAllowed", "")
        await other.report("refused/1", other.key.sign(signing.REFUSED, codec.encode(refusal)), "-")
        await mine.finish(work, [outcome_of(task)])
    assert (await user.view(task)).state == "succeeded"


# ---- who may what


@pytest.mark.asyncio
async def test_strangers_find_nothing(fabric: Fabric) -> None:
    """Every route with another user's id answers as if it did not exist, and changes nothing."""
    owner, stranger = await fabric.user("ann"), await fabric.user("eve")
    endpoint = await fabric.endpoint(owner)
    function = await owner.register()
    work = owner.work(endpoint.id, function, [call_task()])
    await owner.post(owner.sign(work))
    task, group = work.tasks[0].id, work.group
    session = await owner.api.call("POST", "/sessions", api.SessionRequest(groups=[group]), api.SessionAnswer)
    me = await owner.api.call("GET", "/me", None, api.Me)
    attempts: list[tuple[str, str, api.Record | None]] = [
        ("GET", f"/tasks/{task.hex()}", None),
        ("GET", f"/tasks?endpoint={endpoint.id}", None),
        ("GET", f"/tasks?group={group}", None),
        ("GET", f"/groups/{group}", None),
        ("POST", f"/groups/{group}/cancel", None),
        ("GET", f"/endpoints/{endpoint.id}", None),
        ("GET", f"/endpoints/{endpoint.name}", None),
        ("PATCH", f"/endpoints/{endpoint.id}", api.EndpointPatch(allow=["eve"])),
        ("DELETE", f"/endpoints/{endpoint.id}", None),
        ("GET", f"/functions/{function.id}", None),
        ("POST", "/sessions", api.SessionRequest(groups=[group])),
        ("POST", f"/sessions/{session.id}/groups", api.SessionRequest(groups=[])),
        ("DELETE", f"/sessions/{session.id}", None),
        ("DELETE", f"/tokens/{me.token}", None),
        ("DELETE", f"/keys/{owner.key.public.id}", None),
    ]
    for method, path, body in attempts:
        with pytest.raises(NotFound):
            await stranger.api.tell(method, path, body)
    forbidden: list[tuple[str, str, api.Record | None]] = [
        ("POST", f"/endpoints/{endpoint.id}/lease", None),
        ("DELETE", f"/endpoints/{endpoint.id}/lease", None),
        ("POST", "/users", api.UserRequest(name="mallory")),
        ("GET", "/users", None),
    ]
    for method, path, body in forbidden:
        with pytest.raises(NotAllowed):
            await stranger.api.tell(method, path, body)
    assert (await stranger.query(task)) == api.QueryAnswer(tasks=[], bundles=[])
    body = api.TasksRequest(tasks=[task.hex()])
    assert (await stranger.api.call("POST", "/tasks/cancel", body, api.CancelAnswer)).asked == 0
    assert await stranger.api.list("/tasks", api.TaskView) == []
    assert await stranger.api.list("/endpoints", api.EndpointView) == []
    assert await stranger.api.list("/functions", api.FunctionView) == []
    assert (await owner.view(task)).state in ("accepted", "published")


@pytest.mark.asyncio
async def test_guests_may_submit_and_no_more(fabric: Fabric) -> None:
    """Who is let in sees and uses the endpoint; administering it stays with its owner; who is shut out finds nothing again."""
    owner, guest = await fabric.user("ann"), await fabric.user("gus")
    endpoint = await fabric.endpoint(owner)
    share = api.EndpointPatch(allow=["gus"])
    view = await owner.api.call("PATCH", f"/endpoints/{endpoint.name}", share, api.EndpointView)
    assert view.allowed == ["gus"]
    work = guest.work(endpoint.id, await guest.register(), [call_task()])
    assert (await guest.post(guest.sign(work))).accepted == 1
    assert (await guest.api.call("GET", f"/endpoints/{endpoint.id}", None, api.EndpointView)).allowed == []
    for method, body in (("PATCH", share), ("DELETE", None)):
        with pytest.raises(NotAllowed):
            await guest.api.tell(method, f"/endpoints/{endpoint.id}", body)
    await owner.api.call("PATCH", f"/endpoints/{endpoint.name}", api.EndpointPatch(deny=["gus"]), api.EndpointView)
    await refuses(guest, guest.sign(guest.work(endpoint.id, await guest.register(), [call_task()])), NotFound)


@pytest.mark.asyncio
async def test_an_endpoints_token_is_for_that_endpoint_only(fabric: Fabric) -> None:
    """It opens neither its owner's tasks nor another endpoint's lease, nor functions that it was never sent."""
    user = fabric.admin
    mine, other = await fabric.endpoint(user), await fabric.endpoint(user)
    function = await user.register()
    for method, path in (("GET", "/tasks"), ("GET", "/me"), ("POST", "/enrolments"), ("GET", "/users"), ("GET", "/tokens")):
        with pytest.raises(NotAllowed):
            await mine.api.tell(method, path)
    with pytest.raises(NotFound):
        await mine.api.tell("GET", f"/endpoints/{other.id}")
    with pytest.raises(NotFound):
        await mine.api.fetch_raw(f"/functions/{function.id}")
    mine.id = other.id
    with pytest.raises(NotFound):
        await mine.take_lease()


@pytest.mark.asyncio
async def test_tokens_and_codes_end(fabric: Fabric) -> None:
    """A code works once, a revoked token never again, and the sessions made with it are cut off."""
    user = fabric.admin
    enrolment = await user.api.call("POST", "/enrolments", None, api.EnrolmentAnswer)
    request = api.EndpointRequest(name="by-code", key=PrivateKey.generate().public.text, enrolment=enrolment.code.lower())
    nobody = await fabric.api()
    assert (await nobody.call("POST", "/endpoints", request, api.EndpointAnswer)).owner == user.id
    with pytest.raises(NotLoggedIn):
        await nobody.call("POST", "/endpoints", request, api.EndpointAnswer)
    with pytest.raises(NotLoggedIn):
        await nobody.call("POST", "/login", api.LoginRequest(code="AAAA-AAAA-AAAA-AAAA-AAAA"), api.TokenAnswer)
    with pytest.raises(NotLoggedIn):
        await (await fabric.api("fx_wrong")).tell("GET", "/me")
    token = await user.api.call("POST", "/tokens", api.TokenRequest(days=1), api.TokenAnswer)
    second = await fabric.api(token.token)
    session = await second.call("POST", "/sessions", api.SessionRequest(groups=[]), api.SessionAnswer)
    stream = session.streams[0]
    connection = await aio_pika.connect(Broker(tuple(stream.urls), stream.user, stream.password).login(stream.urls[0]))
    closed = asyncio.Event()
    connection.close_callbacks.add(lambda *_: closed.set())
    await user.api.tell("DELETE", f"/tokens/{token.id}")
    async with asyncio.timeout(5):
        await closed.wait()
    with pytest.raises(NotLoggedIn):
        await second.tell("GET", "/me")
    with pytest.raises(NotAllowed):
        await check(Broker(tuple(stream.urls), stream.user, stream.password))
    await connection.close()


@pytest.mark.asyncio
async def test_a_session_whose_stream_is_gone_says_so(fabric: Fabric) -> None:
    """A client whose stream expired is told to make a new session."""
    user = fabric.admin
    session = await user.api.call("POST", "/sessions", api.SessionRequest(groups=[]), api.SessionAnswer)
    path = f"/sessions/{session.id}/groups"
    await user.api.tell("POST", path, api.SessionRequest(groups=[group_id(user.id, "x")]))
    await fabric.running.door.link.delete(topology.stream(session.id))
    with pytest.raises(NotFound):
        await user.api.tell("POST", path, api.SessionRequest(groups=[group_id(user.id, "y")]))
