"""Dead letters: listed, shown, and sent once more when somebody asks for it.  Administrators see all, others those of their own bundles."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, topology
from funcmq.broker.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from funcmq.forwarder import bundles, letters
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Door
from funcmq.forwarder.letters import REINJECTED
from funcmq.forwarder.sender import Sending
from funcmq.forwarder.states import State
from funcmq.forwarder.web import Call, Routes

routes = Routes()

MOST_LISTED = 1_000
REINJECT_S = 15.0


class DeadQuery(msgspec.Struct, frozen=True):
    """Parameters of the list."""

    limit: int = 100


@routes("GET /dead", query=DeadQuery, answer=list[api.DeadLetter])
async def list_letters(door: Door, call: Call[None]) -> list[api.DeadLetter]:
    """What could not be delivered, the newest first."""
    limit = max(1, min(call.query.limit, MOST_LISTED))
    async with door.database.read() as connection:
        return await letters.listed(connection, call.caller.user, admin=call.caller.admin, limit=limit)


@routes("GET /dead/{id}", answer=api.DeadLetter)
async def show_letter(door: Door, call: Call[None]) -> api.DeadLetter:
    """One of them, by its id or the end of it."""
    async with door.database.read() as connection:
        return letters.view(await letters.find(connection, call.caller.user, call.path["id"], admin=call.caller.admin))


@routes("POST /dead/{id}/reinject", answer=api.DeadLetter)
async def reinject(door: Door, call: Call[None]) -> api.DeadLetter:
    """Send it once more.  Tasks that the front door ended over it keep that end until a result comes.

    :raises Conflict: nothing of it can be sent.
    :raises Busy: the broker did not confirm; it may have it or not.
    """
    caller, now = call.caller, now_ms()
    async with door.database.read() as connection:
        row = await letters.find(connection, caller.user, call.path["id"], admin=caller.admin)
    if row.bundle is None:
        await _send_as_it_came(door, row)
    else:
        await _send_bundle(door, row, now)
    await door.database.write(lambda connection: letters.reinjected(connection, row.id, now))
    async with door.database.read() as connection:
        return letters.view(await letters.find(connection, caller.user, row.id, admin=caller.admin))


async def _send_bundle(door: Door, row: Row[Any], now: int) -> None:
    async def write(connection: AsyncConnection) -> Sending | None:
        again = await bundles.send_again(connection, row.bundle, now, REINJECTED)
        if again is not None:
            await letters.revive(connection, row.bundle)
        return again

    if State(row.bundle_state) is State.RECEIVED:
        raise Conflict("Its endpoint has received this bundle meanwhile.", hint="There is nothing to do.")
    sending = await door.database.write(write)
    if sending is None:
        raise Conflict("All tasks of this bundle have ended for good.", hint="Submit them again if their results are still wanted.")
    await door.sender.send(sending)


async def _send_as_it_came(door: Door, row: Row[Any]) -> None:
    """Its endpoint checks it like anything else that comes; whoever is no administrator does not see it."""
    if row.data is None:
        raise InvalidRequest("The body of this dead letter was too large to be kept.", hint="Whoever sent it can send it again.")
    try:
        await door.link.publish(topology.TASKS, row.endpoint_id, row.kind, row.data, timeout=REINJECT_S)
    except NotFound:
        raise NotAllowed("The endpoint that it was for does not exist.", hint="Nothing was sent.") from None
