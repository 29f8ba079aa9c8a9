"""Bundles and their tasks in the store: taken in, sent again, received, refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from sqlalchemy import and_, bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.errors import Conflict, NotFound
from funcmq.broker.messages import Signed, Task, Work
from funcmq.forwarder.admission import Bundle, refused, same_work
from funcmq.forwarder.evidence import LEFT_ALONE
from funcmq.forwarder.prepared import Prepared, insert, insert_new, many, one, select_in, values
from funcmq.forwarder.sender import Sending
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import PENDING, bundle_bytes, bundles, endpoint_functions, groups, task_keys, tasks

_BUNDLE = "id endpoint_id user_id group_id verdicts dispatches state journal expires accepted tried published received"
_ADD_BUNDLE = Prepared(
    _BUNDLE, lambda d: insert(d, bundles).values(values(_BUNDLE)).on_conflict_do_nothing(index_elements=["id"]).returning(bundles.c.seq)
)
_ADD_BYTES = Prepared("seq data", lambda d: insert(d, bundle_bytes).values(values("seq data")))
_ADD_FUNCTION = Prepared(
    "endpoint_id function_id", lambda d: insert(d, endpoint_functions).values(values("endpoint_id function_id")).on_conflict_do_nothing()
)
_ADD_KEY = Prepared(
    "user_id key task group_id", lambda d: insert(d, task_keys).values(values("user_id key task group_id")).on_conflict_do_nothing()
)
_RECEIVED = Prepared(
    "state journal received id endpoint_id",
    lambda _: (
        update(bundles)
        .where(bundles.c.id == bindparam("id_"), bundles.c.endpoint_id == bindparam("endpoint_id_"), PENDING)
        .values(values("state journal received"))
    ),
)


@dataclass(frozen=True, slots=True)
class TakenIn:
    """A bundle in the store.

    `again`: it was there before; `sending` is None when the broker has confirmed it, or nothing of it is to run.
    """

    verdicts: list[api.Verdict]
    again: bool
    sending: Sending | None


async def claim_group(connection: AsyncConnection, group: str, user: str, now: int) -> None:
    """Make the group this user's if it is nobody's.

    :raises NotFound: it is somebody else's.
    """
    row = {"id": group, "owner": user, "name": "", "created": now}
    await connection.execute(insert(connection.dialect, groups).values(row).on_conflict_do_nothing())
    await check_group(connection, group, user)


async def check_group(connection: AsyncConnection, group: str, user: str, *, known: bool = True) -> bool:
    """Whether the group exists and is this user's; with `known` it must exist.

    :raises NotFound: it is somebody else's, or does not exist and must.
    """
    owner = (await connection.execute(select(groups.c.owner).where(groups.c.id == group))).scalar()
    if owner != user and (owner is not None or known):
        raise NotFound(f"There is no group {group[:64]}.", hint="`funcmq task list` shows your tasks with their groups.")
    return owner is not None


async def take_in(connection: AsyncConnection, bundle: Bundle, verdicts: list[api.Verdict], now: int, new_functions: list[str]) -> TakenIn:
    """Write a bundle and its tasks; a bundle that is there already is not changed.  `verdicts` are the tasks that may not come in."""
    work = bundle.work
    expires = max(options.not_after for options in work.options)
    row = (bundle.id, work.endpoint, work.user, work.group, _pack(verdicts), 1, int(State.ACCEPTED), "", expires, now, now, 0, 0)
    made = await one(connection, _ADD_BUNDLE, row)
    if not made:
        return await _known(connection, bundle, now)
    seq = int(made[0][0])
    out = {verdict.index for verdict in verdicts}
    verdicts = [*verdicts, *await _claim_keys(connection, work, out)]
    out |= {verdict.index for verdict in verdicts}
    verdicts = [*verdicts, *await _add_tasks(connection, work, seq, out)]
    only = _only(len(work.tasks), verdicts)
    if only == []:
        await connection.execute(bundles.delete().where(bundles.c.seq == seq))
        return TakenIn(_sorted(verdicts), again=False, sending=None)
    if only is not None:
        await connection.execute(update(bundles).where(bundles.c.seq == seq).values(verdicts=_pack(_sorted(verdicts))))
    await one(connection, _ADD_BYTES, (seq, bundle.data))
    await many(connection, _ADD_FUNCTION, [(work.endpoint, function) for function in new_functions])
    return TakenIn(_sorted(verdicts), again=False, sending=Sending(seq, work.endpoint, 1, only, bundle.data))


async def _add_tasks(connection: AsyncConnection, work: Work, seq: int, out: set[int]) -> list[api.Verdict]:
    state = int(State.ACCEPTED)
    rows = [(task.id, seq, index, state) for index, task in enumerate(work.tasks) if index not in out]
    written = await insert_new(connection, "tasks", "id, bundle, idx, state", rows)
    return [] if written == len(rows) else await _compare(connection, work, seq, {row[0]: row[2] for row in rows})


async def _compare(connection: AsyncConnection, work: Work, seq: int, wanted: dict[bytes, int]) -> list[api.Verdict]:
    """Verdicts for ids that were there before: the same task, or something else under the same id."""
    found = await select_in(connection, "SELECT id, bundle, idx FROM tasks WHERE id", list(wanted))
    others = {bundle for _, bundle, _ in found if bundle != seq}
    before = {
        bundle: read_work(data)
        for bundle, data in await select_in(connection, "SELECT seq, data FROM bundle_bytes WHERE seq", list(others))
    }
    return [_same(work, wanted[task], before[bundle], idx) for task, bundle, idx in found if bundle != seq]


def _same(work: Work, index: int, before: Work, at: int) -> api.Verdict:
    task = work.tasks[index].id.hex()
    if same_work(work, index, before, at):
        return api.Verdict(index=index, verdict="same", id=task, group=before.group)
    return refused(
        index, Conflict(f"The task id {task} is taken by another task.", hint="Submit it under a new id; the other task is unchanged.")
    )


async def _claim_keys(connection: AsyncConnection, work: Work, out: set[int]) -> list[api.Verdict]:
    """Verdicts for tasks whose idempotency key stands for another task already."""
    keyed: list[tuple[int, Task]] = [(index, task) for index, task in enumerate(work.tasks) if task.key and index not in out]
    if not keyed:
        return []
    await many(connection, _ADD_KEY, [(work.user, task.key, task.id, work.group) for _, task in keyed])
    query = select(task_keys).where(task_keys.c.user_id == work.user, task_keys.c.key.in_({task.key for _, task in keyed}))
    holders = {row.key: (bytes(row.task), row.group_id) for row in await connection.execute(query)}
    return [
        api.Verdict(index=index, verdict="same", id=holders[task.key][0].hex(), group=holders[task.key][1])
        for index, task in keyed
        if holders[task.key][0] != task.id
    ]


async def _known(connection: AsyncConnection, bundle: Bundle, now: int) -> TakenIn:
    row = (await connection.execute(select(bundles.c.seq, bundles.c.verdicts, bundles.c.state).where(bundles.c.id == bundle.id))).one()
    sending = await send_again(connection, row.seq, now) if row.state == State.ACCEPTED else None
    return TakenIn(_unpack(row.verdicts), again=True, sending=sending)


async def find(connection: AsyncConnection, identifier: str, user: str) -> list[api.Verdict] | None:
    """The verdicts on a bundle that this user sent before; None if there was none."""
    query = select(bundles.c.verdicts).where(bundles.c.id == identifier, bundles.c.user_id == user)
    row = (await connection.execute(query)).first()
    return None if row is None else _unpack(row.verdicts)


async def send_again(connection: AsyncConnection, seq: int, now: int, states: tuple[State, ...] = (State.ACCEPTED,)) -> Sending | None:
    """Count one more sending of those tasks of a bundle that are in these states; None when there is none."""
    waiting = select(tasks.c.idx).where(tasks.c.bundle == seq, tasks.c.state.in_([int(state) for state in states])).order_by(tasks.c.idx)
    only = [row.idx for row in await connection.execute(waiting)]
    counted = update(bundles).where(bundles.c.seq == seq).values(dispatches=bundles.c.dispatches + 1, tried=now)
    row = (await connection.execute(counted.returning(bundles.c.dispatches, bundles.c.endpoint_id))).one()
    data = (await connection.execute(select(bundle_bytes.c.data).where(bundle_bytes.c.seq == seq))).scalar()
    if not only or data is None:
        await connection.execute(update(bundles).where(bundles.c.seq == seq).values(state=int(State.LOST_HERE)))
        return None
    sending = Sending(seq, row.endpoint_id, row.dispatches, only, data)
    return replace(sending, only=None) if len(only) == len(read_work(data).tasks) else sending


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A bundle that was given to the broker last at `tried`, without a confirm."""

    seq: int
    tried: int


async def unconfirmed(connection: AsyncConnection, before: int, limit: int) -> list[Unconfirmed]:
    """Bundles that were last given to the broker before this time, and not confirmed.  Of those that their queue has given up before, one
    for each endpoint, and only while no other such is on its way there: who of them brings the daemon down is found out alone.
    """
    query = select(bundles.c.seq, bundles.c.tried, bundles.c.deaths, bundles.c.endpoint_id)
    query = query.where(PENDING, bundles.c.state == int(State.ACCEPTED), bundles.c.tried < before)
    rows = (await connection.execute(query.order_by(bundles.c.seq).limit(limit))).all()
    away = await _suspects_away(connection, before) if any(row.deaths for row in rows) else set()
    found = []
    for row in rows:
        if not row.deaths or row.endpoint_id not in away:
            found.append(Unconfirmed(row.seq, row.tried))
        if row.deaths:
            away.add(row.endpoint_id)
    return found


async def _suspects_away(connection: AsyncConnection, before: int) -> set[str]:
    """Endpoints on whose way there is a bundle that died before."""
    away = or_(and_(bundles.c.state == int(State.PUBLISHED), bundles.c.resent < LEFT_ALONE), bundles.c.tried >= before)
    rows = await connection.execute(select(bundles.c.endpoint_id).where(PENDING, bundles.c.deaths > 0, away).distinct())
    return {row.endpoint_id for row in rows}


async def send_unconfirmed(connection: AsyncConnection, found: Unconfirmed, now: int) -> Sending | None:
    """Count one more sending of it; None also when somebody else was first, or it was confirmed meanwhile."""
    mine = and_(bundles.c.seq == found.seq, bundles.c.state == int(State.ACCEPTED), bundles.c.tried == found.tried)
    taken = (await connection.execute(update(bundles).where(mine).values(tried=now).returning(bundles.c.seq))).first()
    return None if taken is None else await send_again(connection, found.seq, now)


async def receive(connection: AsyncConnection, endpoint: str, journal: str, identifiers: list[str], at: int) -> None:
    """The endpoint's journal has these bundles; those of other endpoints, and those received before, stay as they are."""
    state = int(State.RECEIVED)
    await many(connection, _RECEIVED, [(state, journal, at, identifier, endpoint) for identifier in identifiers])


def read_work(data: bytes) -> Work:
    """The body of a bundle from the store."""
    return codec.decode(Work, codec.decode(Signed, data).body)


def _only(number: int, verdicts: list[api.Verdict]) -> list[int] | None:
    out = {verdict.index for verdict in verdicts}
    return [index for index in range(number) if index not in out] if out else None


def _sorted(verdicts: list[api.Verdict]) -> list[api.Verdict]:
    return sorted(verdicts, key=lambda verdict: verdict.index)


def _pack(verdicts: list[api.Verdict]) -> bytes | None:
    return msgspec.msgpack.encode(verdicts) if verdicts else None


def _unpack(data: bytes | None) -> list[api.Verdict]:
    return msgspec.msgpack.decode(data, type=list[api.Verdict]) if data else []
