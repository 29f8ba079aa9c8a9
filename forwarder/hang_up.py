"""Ending what somebody may use no longer: first the rights in the store, then the connections that are still open."""

from __future__ import annotations

import logging

from funcmq.broker import rights, topology
from funcmq.broker.errors import FuncmqError
from funcmq.forwarder import sessions
from funcmq.forwarder.door import Door

log = logging.getLogger("funcmq.hang_up")


async def end_session(door: Door, session: str) -> None:
    """It may log in no more, its connections are closed and its stream is gone; its row goes last, so that this can be done again.

    :raises Busy: the connections could not be closed; doing it again is harmless.
    """
    await door.database.write(lambda connection: sessions.lock(connection, session))
    await door.management.close_connections(rights.Session(session).user)
    await door.database.write(lambda connection: sessions.remove(connection, session))
    try:
        await door.link.delete(topology.stream(session))
    except FuncmqError as left:
        log.warning("the stream of session %s expires by itself: %s", session, left.message)


async def fence(door: Door, endpoint: str, epochs: range) -> None:
    """Close what these epochs of an endpoint still hold open.

    :raises Busy: not all could be closed; the next lease tries again.
    """
    for epoch in epochs:
        await door.management.close_connections(rights.Endpoint(endpoint, epoch).user)
