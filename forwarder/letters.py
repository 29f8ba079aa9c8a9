"""Dead letters in the store: what could not be delivered, one row for each bundle, or for each body that matches none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import new_hex
from funcmq.forwarder import states
from funcmq.forwarder.prepared import insert
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundles, dead_letters, endpoints, users

MOST = 10_000
"""Letters that are kept; the oldest go."""
MOST_BYTES = 64 * 1024
"""Of a body that matches no bundle; of a longer one only that it came is kept."""
SHORT = 8
REINJECTED = (State.ACCEPTED, State.REFUSED, State.POISONED)
"""Tasks that are sent once more when somebody asks for it: what has a result, has expired or may have run is not."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What there is to keep.  `digest` is the bundle's id, or the SHA-256 of a body that matches none; `bundle`, `user` and `endpoint` are
    None and '' there; `message` is the AMQP id of the copy that came.
    """

    digest: str
    bundle: int | None
    user: str
    endpoint: str
    reason: str
    said: str
    message: str = ""
    kind: str = ""
    data: bytes | None = None


async def keep(connection: AsyncConnection, letter: Letter, now: int) -> bool:
    """Write it, or count it once more; False where this very copy was kept before."""
    said = {"reason": letter.reason[:64], "said": letter.said, "message": letter.message[:64], "last": now}
    row = said | {
        "id": new_hex(),
        "digest": letter.digest,
        "bundle": letter.bundle,
        "user_id": letter.user,
        "endpoint_id": letter.endpoint[:32],
        "kind": letter.kind[:64],
        "data": letter.data if letter.data is None or len(letter.data) <= MOST_BYTES else None,
        "first": now,
        "times": 1,
        "reinjected": 0,
    }
    another = or_(dead_letters.c.message != said["message"], dead_letters.c.message == "")
    adding = insert(connection.dialect, dead_letters).values(row)
    counting = adding.on_conflict_do_update(
        index_elements=["digest"], set_=said | {"times": dead_letters.c.times + 1, "reinjected": 0}, where=another
    )
    return (await connection.execute(counting.returning(dead_letters.c.id))).first() is not None


async def trim(connection: AsyncConnection) -> None:
    """Forget the oldest beyond the limit."""
    newest = select(dead_letters.c.last).order_by(dead_letters.c.last.desc()).offset(MOST).limit(1)
    bound = (await connection.execute(newest)).scalar()
    if bound is not None:
        await connection.execute(delete(dead_letters).where(dead_letters.c.last <= bound))


def _rows(user: str, *, admin: bool) -> Select[Any]:
    joined = dead_letters.outerjoin(bundles, bundles.c.seq == dead_letters.c.bundle)
    joined = joined.outerjoin(endpoints, endpoints.c.id == dead_letters.c.endpoint_id)
    joined = joined.outerjoin(users, users.c.id == dead_letters.c.user_id)
    columns = (
        dead_letters,
        bundles.c.state.label("bundle_state"),
        bundles.c.deaths,
        bundles.c.resent,
        bundles.c.group_id,
        endpoints.c.name.label("endpoint_name"),
        users.c.name.label("user_name"),
    )
    rows = select(*columns).select_from(joined)
    return rows if admin else rows.where(dead_letters.c.user_id == user)


async def listed(connection: AsyncConnection, user: str, *, admin: bool, limit: int) -> list[api.DeadLetter]:
    """The newest letters first: an administrator sees all, anybody else those of their own bundles."""
    rows = await connection.execute(_rows(user, admin=admin).order_by(dead_letters.c.last.desc(), dead_letters.c.id).limit(limit))
    return [view(row) for row in rows]


async def find(connection: AsyncConnection, user: str, given: str, *, admin: bool) -> Row[Any]:
    """The letter of this id, or whose id ends so.

    :raises NotFound: there is none that this user may see.
    :raises InvalidRequest: there are several.
    """
    text = given.lower()
    known = SHORT <= len(text) <= 32 and set(text) <= set("0123456789abcdef")
    query = _rows(user, admin=admin).where(dead_letters.c.id.like(f"%{text}")).limit(2)
    rows: list[Row[Any]] = list((await connection.execute(query)).all()) if known else []
    if len(rows) > 1:
        raise InvalidRequest(f"Several dead letters end in {given!r}.", hint="Give more of the id; see `funcmq dead list -o json`.")
    if not rows:
        raise NotFound(f"There is no dead letter {given[:64]!r}.", hint="See `funcmq dead list`.")
    return rows[0]


async def reinjected(connection: AsyncConnection, identifier: str, now: int) -> None:
    """Somebody had it sent once more."""
    await connection.execute(update(dead_letters).where(dead_letters.c.id == identifier).values(reinjected=now))


async def revive(connection: AsyncConnection, seq: int) -> None:
    """Count afresh what happens to a bundle that somebody has sent once more; its tasks keep their ends until a result comes."""
    fresh = {"deaths": 0, "resent": 0, "state": int(State.ACCEPTED)}
    await connection.execute(update(bundles).where(bundles.c.seq == seq).values(fresh))


def view(row: Row[Any]) -> api.DeadLetter:
    """A letter as people see it."""
    return api.DeadLetter(
        id=row.id,
        bundle=row.digest if row.bundle is not None else "",
        user=row.user_id,
        user_name=row.user_name or "",
        endpoint=row.endpoint_id,
        endpoint_name=row.endpoint_name or "",
        group=row.group_id or "",
        reason=row.reason,
        message=row.said,
        state=_state(row),
        kind=row.kind,
        size=len(row.data or b""),
        first=row.first,
        last=row.last,
        times=row.times,
        reinjected=row.reinjected,
    )


def _state(row: Row[Any]) -> str:
    if row.bundle_state is None:
        return "unknown"
    state = State(row.bundle_state)
    return "left alone" if state in (State.ACCEPTED, State.PUBLISHED) and row.reason == "missing" and not row.reinjected else _word(state)


def _word(state: State) -> str:
    return "sent again" if state in (State.ACCEPTED, State.PUBLISHED) else states.name(state, state)
