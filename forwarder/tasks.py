"""Tasks in the store: asked to end, and ended by the front door itself.  How they are shown is in `views`."""

from __future__ import annotations

from sqlalchemy import and_, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.forwarder.prepared import Prepared, insert, many, select_in, values
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundles, cancels, failures, tasks

_END_HERE = Prepared(
    "state id was",
    lambda _: update(tasks).where(tasks.c.id == bindparam("id_"), tasks.c.state == bindparam("was_")).values(values("state")),
)


async def cancel(connection: AsyncConnection, user: str, ids: list[bytes], now: int) -> dict[str, list[bytes]]:
    """Note that these tasks are to end; those of this user that have not, by endpoint."""
    head = (
        "SELECT tasks.id, tasks.state, bundles.endpoint_id, bundles.user_id FROM tasks "
        "JOIN bundles ON bundles.seq = tasks.bundle WHERE tasks.id"
    )
    asked: dict[str, list[bytes]] = {}
    for task, state, endpoint, owner in await select_in(connection, head, ids):
        if owner == user and state == State.ACCEPTED:
            asked.setdefault(endpoint, []).append(task)
    rows = [{"task": task, "endpoint_id": endpoint, "asked": now} for endpoint, several in asked.items() for task in several]
    if rows:
        await connection.execute(insert(connection.dialect, cancels).on_conflict_do_nothing(), rows)
    return asked


async def group_tasks(connection: AsyncConnection, group: str) -> list[bytes]:
    """Open tasks of a group."""
    waiting = and_(bundles.c.group_id == group, tasks.c.state == int(State.ACCEPTED))
    return [row.id for row in await connection.execute(select(tasks.c.id).join(bundles, bundles.c.seq == tasks.c.bundle).where(waiting))]


async def pending_cancels(connection: AsyncConnection, endpoint: str) -> list[str]:
    """Tasks that this endpoint may still hold and that are to end; requests for what has ended are swept."""
    ended = select(tasks.c.id).where(tasks.c.id == cancels.c.task, tasks.c.state != int(State.ACCEPTED)).exists()
    await connection.execute(delete(cancels).where(cancels.c.endpoint_id == endpoint, ended))
    rows = await connection.execute(select(cancels.c.task).where(cancels.c.endpoint_id == endpoint).order_by(cancels.c.task))
    return [bytes(row.task).hex() for row in rows]


async def end_here(connection: AsyncConnection, ids: list[bytes], state: State, code: str, message: str, now: int) -> None:
    """The front door itself ends these open tasks."""
    rows = [(int(state), task, int(State.ACCEPTED)) for task in ids]
    await many(connection, _END_HERE, rows)
    said = [{"task": task, "code": code[:64], "message": message, "ended": now} for task in ids]
    if said:
        await connection.execute(insert(connection.dialect, failures).on_conflict_do_nothing(), said)
