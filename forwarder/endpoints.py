"""Endpoints and their leases in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, bindparam, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import Conflict, NotAllowed, NotFound
from funcmq.broker.ids import is_id
from funcmq.broker.messages import Work
from funcmq.broker.signing import PublicKey
from funcmq.forwarder.bundles import read_work
from funcmq.forwarder.lease import Grant, Held, decide
from funcmq.forwarder.prepared import Prepared, insert, values
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundle_bytes, bundles, endpoint_users, endpoints, tasks, tokens, users
from funcmq.forwarder.tasks import end_here

SEEN = Prepared("seen status id", lambda _: update(endpoints).where(endpoints.c.id == bindparam("id_")).values(values("seen status")))
FENCED = Prepared("fenced id", lambda _: update(endpoints).where(endpoints.c.id == bindparam("id_")).values(values("fenced")))


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease as it was written.  `fence`: epochs whose connections are still to be closed; `orphans`: whether bundles wait to be sent
    again.
    """

    epoch: int
    fence: range
    orphans: bool


def _may_use(user: str) -> ColumnElement[bool]:
    guest = (
        select(endpoint_users.c.user_id).where(endpoint_users.c.endpoint_id == endpoints.c.id, endpoint_users.c.user_id == user).exists()
    )
    return and_(endpoints.c.deleted == 0, or_(endpoints.c.owner == user, guest))


async def find(connection: AsyncConnection, user: str, name: str) -> Row[Any]:
    """The endpoint of this id or name that the user may send tasks to; an own one goes before others of the same name.

    :raises NotFound: there is none, or the user may not know of it.
    """
    named = endpoints.c.id == name if is_id(name) else endpoints.c.name == name
    query = select(endpoints, users.c.name.label("owner_name")).join(users, users.c.id == endpoints.c.owner).where(named, _may_use(user))
    row = (await connection.execute(query.order_by((endpoints.c.owner == user).desc(), endpoints.c.created).limit(1))).first()
    if row is None:
        raise NotFound(f"There is no endpoint {name!r} that you may use.", hint="See `funcmq endpoint list`, or ask its owner for access.")
    return row


async def find_own(connection: AsyncConnection, user: str, name: str) -> Row[Any]:
    """As `find`, for what only the owner may do.

    :raises NotAllowed: the user may send it tasks, and no more.
    """
    row = await find(connection, user, name)
    if row.owner != user:
        raise NotAllowed(f"Only {row.owner_name} may do this with the endpoint {row.name}.", hint=f"Ask {row.owner_name}.")
    return row


async def list_visible(connection: AsyncConnection, user: str) -> list[Row[Any]]:
    """Endpoints that the user may send tasks to, by name."""
    query = select(endpoints, users.c.name.label("owner_name")).join(users, users.c.id == endpoints.c.owner).where(_may_use(user))
    return list((await connection.execute(query.order_by(endpoints.c.name, endpoints.c.created))).all())


async def guests(connection: AsyncConnection, endpoint: str) -> list[str]:
    """Names of the users whom the owner lets in."""
    query = (
        select(users.c.name).join(endpoint_users, endpoint_users.c.user_id == users.c.id).where(endpoint_users.c.endpoint_id == endpoint)
    )
    return [row.name for row in await connection.execute(query.order_by(users.c.name))]


async def all_keys(connection: AsyncConnection) -> list[tuple[str, PublicKey]]:
    """Id and key of every endpoint."""
    rows = await connection.execute(select(endpoints.c.id, endpoints.c.key).where(endpoints.c.deleted == 0))
    return [(row.id, PublicKey.parse(row.key)) for row in rows]


async def add(connection: AsyncConnection, identifier: str, owner: str, name: str, key: PublicKey, now: int) -> None:
    """Register an endpoint.

    :raises Conflict: the owner has one of this name.
    """
    row = {"id": identifier, "owner": owner, "name": name, "key": key.text, "created": now}
    made = await connection.execute(insert(connection.dialect, endpoints).values(row).on_conflict_do_nothing().returning(endpoints.c.id))
    if made.first() is None:
        raise Conflict(f"You have an endpoint {name!r} already.", hint=f"Take another name, or run `funcmq endpoint delete {name}`.")


async def change_guests(connection: AsyncConnection, endpoint: str, allow: list[str], deny: list[str]) -> None:
    """Let these users in, and these no longer."""
    if allow:
        rows = [{"endpoint_id": endpoint, "user_id": user} for user in allow]
        await connection.execute(insert(connection.dialect, endpoint_users).on_conflict_do_nothing(), rows)
    if deny:
        await connection.execute(delete(endpoint_users).where(endpoint_users.c.endpoint_id == endpoint, endpoint_users.c.user_id.in_(deny)))


async def epochs(connection: AsyncConnection, endpoint: str) -> tuple[int, int]:
    """Up to which epoch connections have been closed, and the newest."""
    row = (await connection.execute(select(endpoints.c.fenced, endpoints.c.epoch).where(endpoints.c.id == endpoint))).one()
    return row.fenced, row.epoch


async def lock(connection: AsyncConnection, endpoint: str) -> None:
    """No daemon may log in to the broker for it any more."""
    await connection.execute(update(endpoints).where(endpoints.c.id == endpoint).values(held=False, secret=""))


async def remove(connection: AsyncConnection, endpoint: str, now: int) -> None:
    """It is gone: its token works no more, and what had not ended is lost."""
    await connection.execute(update(endpoints).where(endpoints.c.id == endpoint).values(deleted=now, held=False, secret=""))
    await connection.execute(update(tokens).where(tokens.c.endpoint_id == endpoint, tokens.c.revoked == 0).values(revoked=now))
    waiting = select(tasks.c.id).join(bundles, bundles.c.seq == tasks.c.bundle)
    rows = await connection.execute(waiting.where(bundles.c.endpoint_id == endpoint, tasks.c.state == int(State.ACCEPTED)))
    await end_here(connection, [row.id for row in rows], State.LOST_HERE, "TaskLost", "Its endpoint was deleted.", now)
    pending = and_(bundles.c.endpoint_id == endpoint, bundles.c.state.in_([int(State.ACCEPTED), int(State.PUBLISHED)]))
    await connection.execute(update(bundles).where(pending).values(state=int(State.REFUSED)))


async def hold(connection: AsyncConnection, endpoint: str, asked: api.LeaseRequest, secret: str, now: int) -> Granted | None:
    """Write the lease that `lease.decide` grants; None for a renewal.  `secret` is the digest of the new password."""
    row = (await connection.execute(select(endpoints).where(endpoints.c.id == endpoint).with_for_update())).one()
    held = Held(row.epoch, row.held, row.journal, row.birth, row.since, row.host, row.pid)
    decided = decide(held, asked)
    said: dict[str, Any] = {"host": asked.host, "pid": asked.pid, "release": asked.release, "trusted": json.dumps(asked.trusted)}
    if not isinstance(decided, Grant):
        if any(getattr(row, name) != value for name, value in said.items()):
            await connection.execute(update(endpoints).where(endpoints.c.id == endpoint).values(said))
        return None
    if decided.moved and row.held:
        said["gone"] = now
    said |= {"epoch": decided.epoch, "held": True, "journal": asked.journal, "birth": asked.birth, "since": now, "secret": secret}
    await connection.execute(update(endpoints).where(endpoints.c.id == endpoint).values(said))
    orphans = decided.moved and await _send_again(connection, endpoint, asked, now)
    return Granted(decided.epoch, range(row.fenced + 1, decided.epoch), orphans)


async def gone_at(connection: AsyncConnection, endpoint: str) -> int:
    """When a journal of it was given up for gone last; 0 never."""
    return int((await connection.execute(select(endpoints.c.gone).where(endpoints.c.id == endpoint))).scalar_one())


async def give_back(connection: AsyncConnection, endpoint: str, epoch: int | None, now: int) -> int:
    """Nobody holds it any more; the epoch that ended.

    :raises Conflict: epoch is given and is over already.
    """
    row = (await connection.execute(select(endpoints.c.epoch, endpoints.c.held).where(endpoints.c.id == endpoint).with_for_update())).one()
    if epoch is not None and epoch != row.epoch:
        raise Conflict(
            f"Epoch {epoch} of this endpoint is over; the newest is {row.epoch}.", hint="Another daemon took over.", epoch=row.epoch
        )
    await connection.execute(update(endpoints).where(endpoints.c.id == endpoint).values(held=False, secret="", since=now))
    return int(row.epoch)


async def _send_again(connection: AsyncConnection, endpoint: str, asked: api.LeaseRequest, now: int) -> bool:
    """Another journal is gone: what it had, or may have had, is to be sent to the new one; `retry="never"` of before its birth is lost."""
    given = and_(bundles.c.endpoint_id == endpoint, bundles.c.state.in_([int(State.PUBLISHED), int(State.RECEIVED)]))
    waiting = select(tasks.c.id, tasks.c.idx, tasks.c.bundle, bundles.c.state.label("where"))
    rows = (
        await connection.execute(
            waiting.join(bundles, bundles.c.seq == tasks.c.bundle).where(
                given, tasks.c.state == int(State.ACCEPTED), bundles.c.journal != asked.journal
            )
        )
    ).all()
    works = await _works(connection, {row.bundle for row in rows})
    lost = [row.id for row in rows if row.where == State.RECEIVED and _never(works[row.bundle], row.idx, asked.birth)]
    await end_here(connection, lost, State.LOST_HERE, "TaskLost", "Its endpoint's journal is gone, and it must not run twice.", now)
    again = {row.bundle for row in rows}
    await connection.execute(update(bundles).where(bundles.c.seq.in_(again)).values(state=int(State.ACCEPTED), tried=0, journal=""))
    return bool(again)


async def _works(connection: AsyncConnection, seqs: set[int]) -> dict[int, Work]:
    rows = await connection.execute(select(bundle_bytes).where(bundle_bytes.c.seq.in_(seqs))) if seqs else ()
    return {row.seq: read_work(row.data) for row in rows}


def _never(work: Work, index: int, birth: int) -> bool:
    return work.options[work.tasks[index].options].retry == "never" and work.signed_at < birth
