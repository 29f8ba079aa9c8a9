"""Users leave: what was theirs works no more, what they did stays on record."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from funcmq.broker import api
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import Conflict, InvalidRequest, NotAllowed, NotFound, NotLoggedIn
from funcmq.cli import status
from funcmq.dev.rabbitmq import Node
from tests.integration.test_forwarder_root import fabric_of, token_of


@pytest.mark.asyncio
async def test_a_removed_user_is_locked_out_everywhere(rabbitmq: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token, endpoint token, broker credentials of session and daemon, and being let in elsewhere: all over, at once and for good."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        admin, ann = fabric.admin, await fabric.user("ann")
        endpoint = await fabric.endpoint(ann, "hers")
        lease = await endpoint.take_lease()
        mine = await fabric.endpoint(admin, "mine")
        await admin.api.call("PATCH", f"/endpoints/{mine.id}", api.EndpointPatch(allow=["ann"]), api.EndpointView)
        session = (await ann.api.call("POST", "/sessions", api.SessionRequest(groups=[]), api.SessionAnswer)).streams[0]
        logins = [Broker(tuple(lease.brokers), lease.user, lease.password), Broker(tuple(session.urls), session.user, session.password)]
        for login in logins:
            await check(login)
        monkeypatch.setenv("FUNCMQ_URL", fabric.running.url)
        monkeypatch.setenv("FUNCMQ_TOKEN", await token_of(fabric))
        assert await asyncio.to_thread(status, ["user", "remove", "ann", "--yes"]) == 0
        for refused in (ann.api.call("GET", "/me", None, api.Me), endpoint.take_lease()):
            with pytest.raises(NotLoggedIn):
                await refused
        for login in logins:
            with pytest.raises(NotAllowed):
                await check(login)
        assert [user.name for user in await admin.api.list("/users", api.UserAnswer)] == ["admin"]
        assert (await admin.api.call("GET", "/endpoints/mine", None, api.EndpointView)).allowed == []
        with pytest.raises(Conflict):
            await admin.api.call("POST", "/users", api.UserRequest(name="ann"), api.UserAnswer)
        with pytest.raises(NotFound):
            await admin.api.call("PATCH", f"/endpoints/{mine.id}", api.EndpointPatch(allow=["ann"]), api.EndpointView)
        await admin.api.tell("DELETE", f"/users/{ann.id}")


@pytest.mark.asyncio
async def test_only_administrators_remove_and_never_themselves(rabbitmq: Node, tmp_path: Path) -> None:
    """Others may not, nobody removes who asks, and a name that nobody has is not found."""
    async with fabric_of(rabbitmq, tmp_path) as fabric:
        ann = await fabric.user("ann")
        with pytest.raises(NotAllowed):
            await ann.api.tell("DELETE", "/users/admin")
        for name in ("admin", fabric.admin.id):
            with pytest.raises(InvalidRequest, match="yourself"):
                await fabric.admin.api.tell("DELETE", f"/users/{name}")
        with pytest.raises(NotFound):
            await fabric.admin.api.tell("DELETE", "/users/nobody")
