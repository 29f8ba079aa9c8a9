"""Laws of what an endpoint's owner says from afar: only the owner is heard, and only by the daemon that was meant."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from funcmq.broker import api, codec, topology
from funcmq.broker.connection import Broker
from funcmq.broker.errors import EndpointOffline, InvalidRequest, NotAllowed, NotFound, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.broker.messages import Ask
from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(90)]


async def order(front: Api, endpoint: str, verb: Literal["drain", "stop", "logs"] = "logs", size: int = 4096) -> api.OrderAnswer:
    return await front.call("POST", f"/endpoints/{endpoint}/orders", api.OrderRequest(verb=verb, size=size), api.OrderAnswer)


async def new_user(stack: Stack, admin: Api) -> tuple[str, str]:
    """Name and token."""
    name = f"user-{new_hex()[-8:]}"
    made = await admin.call("POST", "/users", api.UserRequest(name=name), api.UserAnswer)
    async with Api(stack.url) as nobody:
        login = await nobody.call("POST", "/login", api.LoginRequest(code=made.code or ""), api.TokenAnswer)
    return name, login.token


async def test_only_the_owner_is_heard(stack: Stack) -> None:
    """A stranger does not find the endpoint, a guest may not, another endpoint neither; nobody stops it, and nobody sees its keys."""
    async with Api(stack.url, stack.token) as admin, Api(stack.url) as nobody:
        name, token = await new_user(stack, admin)
        async with Api(stack.url, token) as other:
            with pytest.raises(NotFound):
                await order(other, stack.endpoint_id, "stop")
            await admin.call("PATCH", f"/endpoints/{stack.endpoint_id}", api.EndpointPatch(allow=[name]), api.EndpointView)
            for refused in (order(other, stack.endpoint_id, "stop"), other.list(f"/endpoints/{stack.endpoint_id}/keys", api.UserKey)):
                with pytest.raises(NotAllowed):
                    await refused
            body = api.EndpointRequest(name="theirs", key=PrivateKey.generate().public.text)
            theirs = await other.call("POST", "/endpoints", body, api.EndpointAnswer)
            async with Api(stack.url, theirs.token) as machine:
                with pytest.raises(NotFound):
                    await order(machine, stack.endpoint_id, "stop")
                with pytest.raises(NotFound):
                    await machine.tell("DELETE", f"/endpoints/{stack.endpoint_id}")
                with pytest.raises(EndpointOffline):
                    await order(machine, theirs.id)
                await machine.tell("DELETE", f"/endpoints/{theirs.id}")
                with pytest.raises(NotLoggedIn):
                    await order(machine, theirs.id)
            await admin.call("PATCH", f"/endpoints/{stack.endpoint_id}", api.EndpointPatch(deny=[name]), api.EndpointView)
        with pytest.raises(NotLoggedIn):
            await order(nobody, stack.endpoint_id)
        assert (await order(admin, stack.endpoint_id)).pid > 0


async def test_what_is_shown_is_bounded(stack: Stack) -> None:
    """The end of the log, in whole lines, at most as many bytes as were asked for; a verb that is none is refused."""
    async with Api(stack.url, stack.token) as admin:
        told = await order(admin, stack.endpoint_id, size=150)
        assert len(told.text.encode()) <= 150
        assert (await order(admin, stack.endpoint_id, size=-1)).text == ""
        whole = (await order(admin, stack.endpoint_id, size=10**9)).text
        assert len(whole.encode()) <= 256 * 1024
        assert "lease" in whole
        with pytest.raises(InvalidRequest):
            await order(admin, stack.endpoint_id, "explode")  # type: ignore[arg-type]


async def test_an_order_is_for_one_epoch(stack: Stack, broker_of_stack: Broker) -> None:
    """A stop that was meant for an earlier daemon, and waited in the queue, does not end the one that runs now."""

    async def administrator() -> Broker:
        return broker_of_stack

    async with Api(stack.url, stack.token) as admin, Link("late", administrator) as link:
        before = (await order(admin, stack.endpoint_id)).pid
        for epoch in (0, 10**6):
            ask = Ask(1, epoch, "stop", new_hex())
            await link.publish(topology.CONTROL, stack.endpoint_id, "ask/1", codec.encode(ask))
        after = await order(admin, stack.endpoint_id)  # it comes after them in the queue
        assert after.pid == before
        assert "the owner says: stop" not in after.text


async def test_concurrent_questions_have_their_own_answers(stack: Stack) -> None:
    """Ten at once are all answered, time after time: a consumer that ends costs nobody the connection."""
    async with Api(stack.url, stack.token) as admin:
        for _ in range(8):
            orders = (order(admin, stack.endpoint_id, size=size) for size in range(100, 2000, 200))
            told = await asyncio.gather(*orders, return_exceptions=True)
            assert [type(answer) for answer in told] == [api.OrderAnswer] * 10
