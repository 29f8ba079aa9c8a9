"""Bundles that went missing, in the store: found, counted and sent again by whoever changes their row first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.forwarder.bundles import send_again
from funcmq.forwarder.evidence import LEFT_ALONE, Spans, Witness, wait
from funcmq.forwarder.letters import Letter, keep
from funcmq.forwarder.sender import Sending
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import PENDING, bundles, endpoints, tasks

_SEEN = (int(State.RECEIVED), int(State.REFUSED))
"""The endpoint has said that it saw the bundle."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A bundle that was confirmed long enough ago."""

    seq: int
    tried: int
    confirmed: int
    repeats: int


def _due(now: int, spans: Spans) -> ColumnElement[bool]:
    late = (and_(bundles.c.resent == n, bundles.c.published < now - wait(spans, n)) for n in range(LEFT_ALONE))
    return and_(PENDING, bundles.c.state == int(State.PUBLISHED), or_(*late))


async def waiting(connection: AsyncConnection, now: int, spans: Spans) -> list[str]:
    """Endpoints that have not received what was confirmed long enough ago."""
    rows = await connection.execute(select(bundles.c.endpoint_id).where(_due(now, spans)).distinct())
    return [row.endpoint_id for row in rows]


async def heard(connection: AsyncConnection, endpoint: str) -> int:
    """When the newest bundle was accepted that this endpoint has received; 0 if it has none."""
    seen = select(bundles.c.accepted).where(bundles.c.endpoint_id == endpoint, bundles.c.state.in_(_SEEN))
    return int((await connection.execute(seen.order_by(bundles.c.seq.desc()).limit(1))).scalar() or 0)


async def suspects(connection: AsyncConnection, endpoint: str, witness: Witness, now: int, spans: Spans, limit: int) -> list[Suspect]:
    """What this endpoint should have received by what is known of its queue, oldest first."""
    query = select(bundles.c.seq, bundles.c.tried, bundles.c.published, bundles.c.resent)
    query = query.where(_due(now, spans), bundles.c.endpoint_id == endpoint)
    if not witness.empty:
        query = query.where(bundles.c.published < witness.heard)
    rows = await connection.execute(query.order_by(bundles.c.seq).limit(limit))
    return [Suspect(row.seq, row.tried, row.published, row.resent) for row in rows]


async def repeat(connection: AsyncConnection, suspect: Suspect, now: int) -> Sending | None:
    """Count one more sending, or leave the bundle alone after the last; None also when somebody else was first, or nothing is open."""
    mine = and_(bundles.c.seq == suspect.seq, bundles.c.state == int(State.PUBLISHED), bundles.c.tried == suspect.tried)
    mine = and_(mine, bundles.c.resent == suspect.repeats)
    last = suspect.repeats + 1 >= LEFT_ALONE
    state = State.PUBLISHED if last else State.ACCEPTED
    counted = update(bundles).where(mine).values(resent=bundles.c.resent + 1, state=int(state))
    row = (await connection.execute(counted.returning(bundles.c.id, bundles.c.user_id, bundles.c.endpoint_id))).first()
    if row is None:
        return None
    if not last:
        return await send_again(connection, suspect.seq, now)
    said = f"It was sent {LEFT_ALONE} times, and its endpoint received none of them."
    await keep(connection, Letter(row.id, suspect.seq, row.user_id, row.endpoint_id, "missing", said), now)
    return None


async def silent(connection: AsyncConnection, before: int, limit: int) -> list[Any]:
    """Open tasks of endpoints that have given no sign since then, with the endpoint of each."""
    quiet = and_(endpoints.c.seen < before, endpoints.c.since < before, endpoints.c.created < before, endpoints.c.deleted == 0)
    query = select(tasks.c.id, bundles.c.endpoint_id).join(bundles, bundles.c.seq == tasks.c.bundle)
    query = query.join(endpoints, endpoints.c.id == bundles.c.endpoint_id)
    query = query.where(quiet, bundles.c.state == int(State.RECEIVED), tasks.c.state == int(State.ACCEPTED))
    return list((await connection.execute(query.order_by(tasks.c.id).limit(limit))).all())
