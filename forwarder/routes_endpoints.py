"""Endpoints: registered, shown, shared, removed; and the lease of their daemons."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, rights, topology
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotFound, NotLoggedIn
from funcmq.broker.ids import is_hash, is_id, new_hex
from funcmq.broker.signing import PublicKey
from funcmq.forwarder import endpoints, people, tasks
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.credentials import digest, new_password
from funcmq.forwarder.door import Door
from funcmq.forwarder.endpoints import FENCED
from funcmq.forwarder.hang_up import fence
from funcmq.forwarder.live import ONLINE_MS
from funcmq.forwarder.routes_people import check_name
from funcmq.forwarder.web import Call, Routes, Who

log = logging.getLogger("funcmq.endpoints")

routes = Routes()

_OWN = "The token in an endpoint's folder is for that endpoint only; use your own, or ask for the id that `funcmq endpoint status` shows."
LARGEST = 2**53
"""Numbers from endpoints end here: databases and JSON readers take no larger ones."""


@routes("POST /endpoints", who=Who.ANYBODY, request=api.EndpointRequest, answer=api.EndpointAnswer, status=201)
async def register(door: Door, call: Call[api.EndpointRequest]) -> api.EndpointAnswer:
    """A new endpoint with its own token.  Its queues stand before anybody can know its id, or else before its first lease."""
    body, key, identifier, now = call.body, PublicKey.parse(call.body.key), new_hex(), now_ms()
    check_name(body.name)
    if is_id(body.name):
        raise InvalidRequest("An endpoint's name must not look like an id.", hint="Take a name that people can say.")
    if call.known is None and body.enrolment is None:
        raise NotLoggedIn("This needs a token or an enrolment code.")
    queues = topology.endpoint(identifier)

    async def write(connection: AsyncConnection) -> api.EndpointAnswer:
        owner = await people.use_code(connection, body.enrolment, "enrolment", now) if body.enrolment else call.caller.user
        await endpoints.add(connection, identifier, owner, body.name, key, now)
        token = await people.add_token(connection, owner, f"endpoint {body.name}", now, 0, identifier)
        owner_keys = await people.list_keys(connection, owner)
        return api.EndpointAnswer(
            id=identifier, name=body.name, token=token.token, owner=owner, owner_name=token.user_name, owner_keys=owner_keys
        )

    if door.link.up:
        await door.link.declare(queues)
    try:
        answer = await door.database.write(write)
    except FuncmqError:
        if door.link.up:
            await door.link.delete(queues)
        raise
    door.watch(identifier, key)
    return answer


@routes("GET /endpoints", answer=list[api.EndpointView])
async def list_endpoints(door: Door, call: Call[None]) -> list[api.EndpointView]:
    """What the caller may use."""
    async with door.database.read() as connection:
        rows = await endpoints.list_visible(connection, call.caller.user)
        return [await _view(door, connection, row, call.caller.user) for row in rows]


@routes("GET /endpoints/{id}", who=Who.USER | Who.ENDPOINT, answer=api.EndpointView)
async def show(door: Door, call: Call[None]) -> api.EndpointView:
    """One endpoint by id or name; an endpoint's own token sees that endpoint only."""
    name = call.path["id"]
    if call.caller.endpoint and name != call.caller.endpoint:
        raise NotFound(f"This token is not for the endpoint {name!r}.", hint=_OWN)
    async with door.database.read() as connection:
        row = await endpoints.find(connection, call.caller.user, name)
        return await _view(door, connection, row, call.caller.user)


@routes("PATCH /endpoints/{id}", request=api.EndpointPatch, answer=api.EndpointView)
async def share(door: Door, call: Call[api.EndpointPatch]) -> api.EndpointView:
    """Let users in, or no longer."""
    user, body = call.caller.user, call.body
    async with door.database.read() as connection:
        row = await endpoints.find_own(connection, user, call.path["id"])
        ids = await people.user_ids(connection, [*body.allow, *body.deny])
    allow, deny = [ids[name] for name in body.allow], [ids[name] for name in body.deny]
    await door.database.write(lambda c: endpoints.change_guests(c, row.id, allow, deny))
    door.known.forget_rights()
    async with door.database.read() as connection:
        return await _view(door, connection, row, user)


@routes("DELETE /endpoints/{id}", who=Who.USER | Who.ENDPOINT)
async def remove(door: Door, call: Call[None]) -> None:
    """It is gone for everybody: its daemon is cut off, then its open tasks are lost.  The row goes last, so that this can be done again."""
    if call.caller.endpoint:  # on a host where nobody is logged in; its token is over with it
        _itself(call)
    async with door.database.read() as connection:
        row = await endpoints.find_own(connection, call.caller.user, call.path["id"])
    await door.database.write(lambda c: endpoints.lock(c, row.id))
    await fence(door, row.id, range(row.fenced + 1, row.epoch + 1))
    await door.database.write(lambda c: endpoints.remove(c, row.id, now_ms()))
    door.known.forget_rights()
    await door.unwatch(row.id)
    door.live.forget(row.id)
    await door.link.delete(topology.endpoint(row.id))


@routes("POST /endpoints/{id}/lease", who=Who.ENDPOINT, request=api.LeaseRequest, answer=api.Lease)
async def lease(door: Door, call: Call[api.LeaseRequest]) -> api.Lease:
    """A daemon starts or comes back; earlier epochs are cut off before this answers."""
    endpoint, body, password, now = _itself(call), call.body, new_password(), now_ms()
    _check_lease(body)
    if body.epoch is None:  # whatever has become of the broker's data meanwhile
        await door.link.declare(topology.endpoint(endpoint))

    async def write(connection: AsyncConnection) -> tuple[endpoints.Granted | None, Left]:
        granted = await endpoints.hold(connection, endpoint, body, digest(password), now)
        return granted, Left(await tasks.pending_cancels(connection, endpoint), await endpoints.gone_at(connection, endpoint))

    granted, left = await door.database.write(write)
    door.known.access.clear()
    if granted is None:
        return _answer(door, endpoint, body.epoch or 0, "", left)
    log.info("endpoint %s starts epoch %d on %s", endpoint, granted.epoch, body.host, extra={"action": "lease"})
    await fence(door, endpoint, granted.fence)
    door.database.write.later(FENCED, (granted.epoch - 1, endpoint))
    if granted.orphans:
        door.send_soon()
    return _answer(door, endpoint, granted.epoch, password, left)


@routes("DELETE /endpoints/{id}/lease", who=Who.ENDPOINT, query=api.LeaseQuery)
async def give_back(door: Door, call: Call[None]) -> None:
    """An orderly stop with nothing open."""
    endpoint = _itself(call)
    ended = await door.database.write(lambda c: endpoints.give_back(c, endpoint, call.query.epoch, now_ms()))
    door.live.forget(endpoint)
    log.info("endpoint %s gave back epoch %d", endpoint, ended, extra={"action": "lease_given_back"})


def _itself(call: Call[Any]) -> str:
    if call.path["id"] != call.caller.endpoint:
        raise NotFound(f"This token is not for the endpoint {call.path['id'][:64]!r}.", hint=_OWN)
    return call.caller.endpoint


def _check_lease(body: api.LeaseRequest) -> None:
    if not 1 <= len(body.journal) <= 64 or not all(is_hash(key) for key in body.trusted):
        raise InvalidRequest("A journal is named by 1 to 64 characters, a trusted key by 64 hex digits.")
    if len(body.host) > 255 or len(body.release) > 64 or not (0 <= body.birth < LARGEST and 0 <= body.pid < LARGEST):
        raise InvalidRequest("A host has at most 255 characters, a release 64; birth and pid are not negative.")


@dataclass(frozen=True, slots=True)
class Left:
    """What was left for a daemon: requests to cancel, and when a journal before its own was given up for gone."""

    cancels: list[str]
    gone: int


def _answer(door: Door, endpoint: str, epoch: int, password: str, left: Left) -> api.Lease:
    user, brokers = rights.Endpoint(endpoint, epoch).user, list(door.settings.public_brokers)
    return api.Lease(epoch=epoch, brokers=brokers, user=user, password=password, cancels=left.cancels, gone=left.gone)


async def _view(door: Door, connection: AsyncConnection, row: Row[Any], user: str) -> api.EndpointView:
    sign = door.live.sign(row.id)
    said = None if sign is None else sign.heartbeat
    seen = max(row.seen, 0 if sign is None else sign.seen)
    return api.EndpointView(
        id=row.id,
        name=row.name,
        owner=row.owner,
        owner_name=row.owner_name,
        key=row.key,
        online=row.held and now_ms() - seen <= ONLINE_MS,
        seen=seen,
        since=row.since,
        host=row.host,
        pid=row.pid,
        release=row.release,
        pools=said.pools if said else [],
        queued=min(sum(said.queued.values()), LARGEST) if said else 0,
        running=said.running if said else 0,
        unstored=said.unstored if said else 0,
        reason="  ".join(filter(None, (said.reason if said else "", door.live.clock_said(row.id)))),
        trusted=json.loads(row.trusted or "[]"),
        allowed=await endpoints.guests(connection, row.id) if row.owner == user else [],
    )
