"""Results, receipts and refusals in the store: the first result of a task wins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.messages import Receipt, Refused
from funcmq.forwarder import states
from funcmq.forwarder.bundles import receive
from funcmq.forwarder.prepared import Prepared, insert, many, one, select_in, values
from funcmq.forwarder.reports import Home, ResultBundle, fingerprint, misplaced
from funcmq.forwarder.states import ENDED_HERE, State
from funcmq.forwarder.tables import bundles, endpoints, failures, results, tasks
from funcmq.forwarder.tasks import end_here

_RESULT = "id endpoint_id group_id stored data"
_ADD_RESULT = Prepared(
    _RESULT, lambda d: insert(d, results).values(values(_RESULT)).on_conflict_do_nothing(index_elements=["id"]).returning(results.c.seq)
)
_END = "state result result_idx hash ended"
_END_TASK = Prepared(
    f"{_END} id", lambda _: update(tasks).where(tasks.c.id == bindparam("id_"), tasks.c.result.is_(None)).values(values(_END))
)
_RECEIVED_BY_RESULT = Prepared(
    "state journal received seq",
    lambda _: update(bundles).where(bundles.c.seq == bindparam("seq_")).values(values("state journal received")),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one result bundle.  `reason` is '' when it is in the store; `conflicts` counts tasks with another result before."""

    reason: str
    conflicts: int


@dataclass(slots=True)
class _Known:
    """A task as the store has it, and as this batch changes it."""

    bundle: int
    state: State
    hash: bytes | None


@dataclass(frozen=True, slots=True)
class _Bundle:
    home: Home
    state: State
    journal: str


async def store(connection: AsyncConnection, found: Sequence[ResultBundle], now: int) -> list[Kept]:
    """Write result bundles and the ends of their tasks, in this order; a bundle that is there already changes nothing."""
    known, before = await _read(connection, found)
    ends: list[tuple[Any, ...]] = []
    given_up: list[bytes] = []
    kept = []
    for bundle in found:
        reason = misplaced(bundle.body, {task: before[row.bundle].home for task, row in _of(bundle, known)})
        if reason:
            kept.append(Kept(reason, 0))
            continue
        seq = await _add(connection, bundle, now)
        kept.append(Kept("", 0 if seq is None else _end(bundle, seq, now, known, ends, given_up)))
    await many(connection, _END_TASK, ends)
    await _forget_failures(connection, given_up)
    await _mark_received(connection, found, known, before, now)
    return kept


def _of(bundle: ResultBundle, known: dict[bytes, _Known]) -> Iterable[tuple[bytes, _Known]]:
    return ((outcome.id, known[outcome.id]) for outcome in bundle.body.results if outcome.id in known)


def _end(bundle: ResultBundle, seq: int, now: int, known: dict[bytes, _Known], ends: list[tuple[Any, ...]], given_up: list[bytes]) -> int:
    """Add the rows that end this bundle's tasks; how many of them had ended otherwise."""
    conflicts = 0
    for index, outcome in enumerate(bundle.body.results):
        row, digest = known[outcome.id], fingerprint(outcome)
        end = states.after(row.state, states.BY_RESULT[outcome.state])
        if end is None:
            conflicts += row.hash != digest
            continue
        if row.state in ENDED_HERE:
            given_up.append(outcome.id)
        row.state, row.hash = end, digest
        ends.append((int(end), seq, index, digest, now, outcome.id))
    return conflicts


async def _read(connection: AsyncConnection, found: Sequence[ResultBundle]) -> tuple[dict[bytes, _Known], dict[int, _Bundle]]:
    ids = [outcome.id for bundle in found for outcome in bundle.body.results]
    rows = await select_in(connection, "SELECT id, bundle, state, hash FROM tasks WHERE id", ids)
    known = {task: _Known(bundle, State(state), digest) for task, bundle, state, digest in rows}
    head = (
        "SELECT bundles.seq, bundles.endpoint_id, bundles.user_id, bundles.group_id, bundles.state, endpoints.journal "
        "FROM bundles JOIN endpoints ON endpoints.id = bundles.endpoint_id WHERE bundles.seq"
    )
    homes = await select_in(connection, head, list({row.bundle for row in known.values()}))
    return known, {seq: _Bundle(Home(endpoint, user, group), State(state), journal) for seq, endpoint, user, group, state, journal in homes}


async def _add(connection: AsyncConnection, bundle: ResultBundle, now: int) -> int | None:
    """Number of the new row; None for a bundle that was stored before."""
    made = (await one(connection, _ADD_RESULT, (bundle.id, bundle.body.endpoint, bundle.body.group, now, bundle.data))).first()
    return None if made is None else int(made[0])


async def _forget_failures(connection: AsyncConnection, ids: list[bytes]) -> None:
    if ids:
        await connection.execute(delete(failures).where(failures.c.task.in_(ids)))


async def _mark_received(
    connection: AsyncConnection, found: Sequence[ResultBundle], known: dict[bytes, _Known], before: dict[int, _Bundle], now: int
) -> None:
    """A result says that its bundle was received; endpoints leave out receipts that results overtake."""
    rows = {}
    for bundle in found:
        for seq in {row.bundle for _, row in _of(bundle, known)}:
            home = before[seq]
            if home.state < State.RECEIVED and home.journal == bundle.body.journal and home.home.endpoint == bundle.body.endpoint:
                rows[seq] = (int(State.RECEIVED), home.journal, now, seq)
    await many(connection, _RECEIVED_BY_RESULT, list(rows.values()))


async def note_receipts(connection: AsyncConnection, receipts: Sequence[Receipt], now: int) -> None:
    """Bundles that endpoints received; what a journal that holds the endpoint no longer says counts no more."""
    for receipt in receipts:
        journal = (await connection.execute(select(endpoints.c.journal).where(endpoints.c.id == receipt.endpoint))).scalar()
        if journal == receipt.journal:
            await receive(connection, receipt.endpoint, receipt.journal, receipt.bundles, now)


async def refuse(connection: AsyncConnection, refusal: Refused, now: int) -> str | None:
    """The endpoint did not take a bundle: its open tasks have failed.  The group, or None where no such bundle went to this endpoint."""
    mine = (bundles.c.id == refusal.bundle, bundles.c.endpoint_id == refusal.endpoint)
    row = (await connection.execute(select(bundles.c.seq, bundles.c.group_id).where(*mine))).first()
    if row is None:
        return None
    open_ = select(tasks.c.id).where(tasks.c.bundle == row.seq, tasks.c.state == int(State.ACCEPTED))
    ids = [task.id for task in await connection.execute(open_)]
    await end_here(connection, ids, State.REFUSED, refusal.code or "NotAllowed", refusal.message[:4096], now)
    await connection.execute(update(bundles).where(bundles.c.seq == row.seq).values(state=int(State.REFUSED)))
    return str(row.group_id)
