"""Laws of named functions at the front door, on both databases."""

from urllib.parse import quote

import pytest

from funcmq.broker import api, codec
from funcmq.broker.errors import InvalidRequest, NotAllowed, NotFound
from funcmq.broker.ids import group_id, sha256
from funcmq.broker.messages import FunctionRecord, FunctionRef
from tests.forwarder_rig import Fabric, User, call_task

pytestmark = pytest.mark.asyncio


async def register(user: User, content: str, name: str = "") -> api.FunctionAnswer:
    """Send a function of this content, under this name."""
    record = codec.encode(FunctionRecord(1, "pickle", "f", "3.11", content.encode(), None))
    answer = await user.api.send_raw(f"/functions?name={quote(name, safe='')}", record, api.FunctionAnswer)
    assert answer.id == sha256(record)
    return answer


async def named(user: User, name: str) -> list[api.FunctionView]:
    return await user.api.list(f"/functions?name={quote(name, safe='')}", api.FunctionView)


async def verdicts(user: User, endpoint: str, function: str) -> list[str]:
    """What becomes of a task of this function."""
    work = user.work(endpoint, FunctionRef(function, "f"), [call_task()], group=group_id(user.id, "g"))
    return [verdict.code for verdict in (await user.post(user.sign(work))).verdicts]


async def test_versions_are_counted(fabric: Fabric) -> None:
    """Each new content under a name is its next version, once; numbers are never given twice, and a name is its owner's."""
    ada, bob = fabric.admin, await fabric.user("bob")
    name = f"{ada.name}/recon"
    one, again, two = await register(ada, "1", name), await register(ada, "1", name), await register(ada, "2", name)
    assert (one.version, again.version, two.version, again.name) == (1, 1, 2, name)
    assert [(view.id, view.names) for view in await named(ada, name)] == [(two.id, [f"{name}@2"]), (one.id, [f"{name}@1"])]
    assert [view.id for view in await named(ada, f"{name}@1")] == [one.id]
    await ada.api.tell("DELETE", f"/functions/{quote(f'{name}@2', safe='')}")
    assert [view.id for view in await named(ada, name)] == [one.id]
    assert (await register(ada, "3", name)).version == 3
    with pytest.raises(NotAllowed, match="not yours"):
        await register(bob, "1", name)
    for wrong in ("recon", "/recon", f"{name}@x", f"{name}@3", "a b/c", f"{ada.name}/{'x' * 200}"):
        with pytest.raises(InvalidRequest):
            await register(ada, "1", wrong)
    for unknown in (f"{name}@7", f"{ada.name}/other"):
        with pytest.raises(NotFound):
            await named(ada, unknown)


async def test_a_name_is_shared(fabric: Fabric) -> None:
    """Whom its owner lets in may list, read and run all versions, until no longer; nobody else knows that it exists."""
    ada, bob, eve = fabric.admin, await fabric.user("bob"), await fabric.user("eve")
    name, endpoint = f"{ada.name}/recon", await fabric.endpoint(ada)
    bobs = await fabric.endpoint(bob)
    one = (await register(ada, "1", name)).id
    path = f"/functions/{quote(name, safe='')}"
    with pytest.raises(NotFound):
        await named(bob, name)
    assert await verdicts(bob, bobs.id, one) == ["NotFound"]
    views = await ada.api.list("/functions", api.FunctionView)
    assert [(view.names, view.allowed) for view in views] == [([f"{name}@1"], [])]
    await ada.api.tell("PATCH", path, api.FunctionPatch(allow=["bob"]))
    two = (await register(ada, "2", name)).id
    assert [view.id for view in await named(bob, name)] == [two, one]
    assert {view.id for view in await bob.api.list("/functions", api.FunctionView)} == {one, two}
    assert sha256(await bob.api.fetch_raw(f"/functions/{one}")) == one
    assert await verdicts(bob, bobs.id, two) == []
    assert sha256(await bobs.api.fetch_raw(f"/functions/{two}")) == two
    assert (await named(ada, name))[0].allowed == ["bob"]
    for stranger in (eve.api, endpoint.api):
        with pytest.raises((NotFound, NotAllowed)):
            await stranger.fetch_raw(f"/functions/{one}")
    with pytest.raises(NotFound):
        await bob.api.tell("PATCH", path, api.FunctionPatch(allow=["eve"]))
    await ada.api.tell("PATCH", f"/functions/{two}", api.FunctionPatch(deny=["bob"]))
    with pytest.raises(NotFound):
        await named(bob, name)
    assert await verdicts(bob, bobs.id, one) == ["NotFound"]


async def test_what_is_deleted_is_gone(fabric: Fabric) -> None:
    """A name goes without its function, a function with its names; neither can be deleted by others, or twice."""
    ada, bob, endpoint = fabric.admin, await fabric.user("bob"), await fabric.endpoint(fabric.admin)
    name = f"{ada.name}/recon"
    one = (await register(ada, "1", name)).id
    for given in (one, quote(name, safe="")):
        with pytest.raises(NotFound):
            await bob.api.tell("DELETE", f"/functions/{given}")
    await ada.api.tell("DELETE", f"/functions/{quote(name, safe='')}")
    assert await verdicts(ada, endpoint.id, one) == []
    await register(ada, "1", name)
    await ada.api.tell("DELETE", f"/functions/{one}")
    with pytest.raises(NotFound):
        await named(ada, name)
    assert await verdicts(ada, endpoint.id, one) == ["NotFound"]
    with pytest.raises(NotFound):
        await ada.api.tell("DELETE", f"/functions/{one}")
