"""Result streams.  Order matters: the stream is bound, then the listener is committed, then the client reads the store; so one side always
sees the other.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, rights, topology
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import group_id, is_id, new_hex
from funcmq.forwarder import bundles, sessions
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.credentials import digest, new_password
from funcmq.forwarder.door import Door
from funcmq.forwarder.hang_up import end_session
from funcmq.forwarder.web import Call, Routes

routes = Routes()

MOST_GROUPS = 1_000
LONGEST_NAME = 255


@routes("POST /sessions", request=api.SessionRequest, answer=api.SessionAnswer, status=201)
async def start(door: Door, call: Call[api.SessionRequest]) -> api.SessionAnswer:
    """A new stream of the results of these groups."""
    identifier, password, groups = new_hex(), new_password(), _groups(call.body)
    names = _names(call.body, call.caller.user)
    await _check_groups(door, call.caller.user, groups)
    await door.link.declare(topology.stream(identifier, tuple(groups)))

    async def write(connection: AsyncConnection) -> None:
        for group in groups:
            await bundles.claim_group(connection, group, call.caller.user, now_ms())
        await sessions.note_names(connection, names)
        await sessions.add(connection, identifier, call.caller, digest(password), groups, now_ms())

    await door.database.write(write)
    urls, user = list(door.settings.public_brokers), rights.Session(identifier).user
    return api.SessionAnswer(
        id=identifier, streams=[api.Stream(urls=urls, queue=topology.stream_queue(identifier), user=user, password=password)]
    )


@routes("POST /sessions/{id}/groups", request=api.SessionRequest)
async def listen(door: Door, call: Call[api.SessionRequest]) -> None:
    """One more group, or several."""
    identifier, groups, user = call.path["id"], _groups(call.body), call.caller.user
    names = _names(call.body, user)
    async with door.database.read() as connection:
        await sessions.check(connection, identifier, user)
    await _check_groups(door, user, groups)
    try:
        for group in groups:
            await door.link.bind(topology.stream_queue(identifier), topology.RESULTS, topology.group_pattern(group))
    except InvalidRequest:
        await door.database.write(lambda c: sessions.remove(c, identifier))
        raise NotFound("This session's stream has expired.", hint="Make a new one with POST /v1/sessions.") from None

    async def write(connection: AsyncConnection) -> None:
        for group in groups:
            await bundles.claim_group(connection, group, user, now_ms())
        await sessions.note_names(connection, names)
        await sessions.listen(connection, identifier, groups, now_ms())

    await door.database.write(write)


@routes("DELETE /sessions/{id}")
async def end(door: Door, call: Call[None]) -> None:
    """The stream and its credentials are gone."""
    async with door.database.read() as connection:
        await sessions.check(connection, call.path["id"], call.caller.user)
    await end_session(door, call.path["id"])


def _groups(body: api.SessionRequest) -> list[str]:
    if len(body.groups) > MOST_GROUPS or not all(is_id(group) for group in body.groups):
        raise InvalidRequest(f"Groups are at most {MOST_GROUPS:,} ids of 32 hex digits.")
    return list(dict.fromkeys(body.groups))


def _names(body: api.SessionRequest, user: str) -> dict[str, str]:
    """Only what is true is noted: a group's id is made of its name."""
    for group, name in body.names.items():
        if group not in body.groups or group_id(user, name) != group or len(name) > LONGEST_NAME:
            raise InvalidRequest(f"{name[:80]!r} is not the name of the group {group[:32]}.")
    return body.names


async def _check_groups(door: Door, user: str, groups: list[str]) -> None:
    """Nobody's stream is bound to somebody else's group, not even for a moment."""
    async with door.database.read() as connection:
        for group in groups:
            await bundles.check_group(connection, group, user, known=False)
