"""Results, receipts and refusals in the store: the first result of a task wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.messages import Outcome, Receipt, Refused
from funcmq.forwarder.bundles import receive
from funcmq.forwarder.prepared import Prepared, insert, many, one, select_in, values
from funcmq.forwarder.reports import Home, ResultBundle, differs, misplaced
from funcmq.forwarder.states import ENDS_BY_RESULT, State
from funcmq.forwarder.tables import bundles, endpoints, failures, results, tasks
from funcmq.forwarder.tasks import end_here
from funcmq.forwarder.views import read_results

_RESULT = "id endpoint_id group_id stored data"
_ADD_RESULT = Prepared(
    _RESULT, lambda d: insert(d, results).values(values(_RESULT)).on_conflict_do_nothing(index_elements=["id"]).returning(results.c.seq)
)
_END = "state result result_idx"
_END_TASK = Prepared(
    f"{_END} id", lambda _: update(tasks).where(tasks.c.id == bindparam("id_"), tasks.c.result.is_(None)).values(values(_END))
)
_RECEIVED_BY_RESULT = Prepared(
    "state journal received seq",
    lambda _: update(bundles).where(bundles.c.seq == bindparam("seq_")).values(values("state journal received")),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of one result bundle.  `reason` is '' when it is in the store; `conflicts` counts tasks with another result before,
    `replaced` those that the front door itself had ended.
    """

    reason: str
    conflicts: int
    replaced: int = 0


@dataclass(frozen=True, slots=True)
class _Bundle:
    state: State
    journal: str


@dataclass(slots=True)
class _Known:
    """The tasks of a batch as the store has them: their bundles, states and results; and as the batch changes them."""

    bundle: dict[bytes, int] = field(default_factory=dict)
    state: dict[bytes, int] = field(default_factory=dict)
    result: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    homes: dict[int, Home] = field(default_factory=dict)
    bundles: dict[int, _Bundle] = field(default_factory=dict)
    ends: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    given_up: list[bytes] = field(default_factory=list)


async def store(connection: AsyncConnection, found: Sequence[ResultBundle], now: int) -> list[Kept]:
    """Write result bundles and the ends of their tasks, in this order; a bundle that is there already changes nothing."""
    known = await _read(connection, found)
    kept = []
    for bundle in found:
        reason = misplaced(bundle.body, known.bundle, known.homes)
        seq = None if reason else await _add(connection, bundle, now)
        before = len(known.given_up)
        again = [] if seq is None else _end(bundle, seq, known)
        kept.append(Kept(reason, await _conflicts(connection, again, known), len(known.given_up) - before))
    await many(connection, _END_TASK, known.ends)
    await _forget_failures(connection, known.given_up)
    await _mark_received(connection, found, known, now)
    return kept


def _end(bundle: ResultBundle, seq: int, known: _Known) -> list[Outcome]:
    """Note how this bundle ends its tasks; the results that come after another one."""
    again = []
    state, ends = known.state, known.ends
    for index, outcome in enumerate(bundle.body.results):
        task = outcome.id
        end = ENDS_BY_RESULT.get((state[task], outcome.state))
        if end is None:
            again.append(outcome)
            continue
        if state[task] != State.ACCEPTED:
            known.given_up.append(task)
        state[task] = end
        known.result[task] = (seq, index)
        ends.append((end, seq, index, task))
    return again


async def _conflicts(connection: AsyncConnection, again: list[Outcome], known: _Known) -> int:
    """How many of these say something else than the results that were first."""
    seqs = {known.result[outcome.id][0] for outcome in again}
    rows = await connection.execute(select(results.c.seq, results.c.data).where(results.c.seq.in_(seqs))) if seqs else ()
    first = {row.seq: read_results(row.data).results for row in rows}
    before = ((outcome, *known.result[outcome.id]) for outcome in again)
    return sum(differs(outcome, first[seq][index]) for outcome, seq, index in before)


async def _read(connection: AsyncConnection, found: Sequence[ResultBundle]) -> _Known:
    ids, known = [outcome.id for bundle in found for outcome in bundle.body.results], _Known()
    for task, bundle, state, result, index in await select_in(
        connection, "SELECT id, bundle, state, result, result_idx FROM tasks WHERE id", ids
    ):
        known.bundle[task], known.state[task] = bundle, state
        if result is not None:
            known.result[task] = (result, index)
    head = (
        "SELECT bundles.seq, bundles.endpoint_id, bundles.user_id, bundles.group_id, bundles.state, endpoints.journal "
        "FROM bundles JOIN endpoints ON endpoints.id = bundles.endpoint_id WHERE bundles.seq"
    )
    for seq, endpoint, user, group, state, journal in await select_in(connection, head, list(set(known.bundle.values()))):
        known.homes[seq] = Home(endpoint, user, group)
        known.bundles[seq] = _Bundle(State(state), journal)
    return known


async def _add(connection: AsyncConnection, bundle: ResultBundle, now: int) -> int | None:
    """Number of the new row; None for a bundle that was stored before."""
    made = await one(connection, _ADD_RESULT, (bundle.id, bundle.body.endpoint, bundle.body.group, now, bundle.data))
    return int(made[0][0]) if made else None


async def _forget_failures(connection: AsyncConnection, ids: list[bytes]) -> None:
    if ids:
        await connection.execute(delete(failures).where(failures.c.task.in_(ids)))


async def _mark_received(connection: AsyncConnection, found: Sequence[ResultBundle], known: _Known, now: int) -> None:
    """A result says that its bundle was received; endpoints leave out receipts that results overtake."""
    rows = {}
    for bundle in found:
        for seq in {known.bundle[outcome.id] for outcome in bundle.body.results if outcome.id in known.bundle}:
            before = known.bundles[seq]
            own = known.homes[seq].endpoint == bundle.body.endpoint and before.journal == bundle.body.journal
            if own and before.state < State.RECEIVED:
                rows[seq] = (int(State.RECEIVED), before.journal, now, seq)
    await many(connection, _RECEIVED_BY_RESULT, list(rows.values()))


async def note_receipts(connection: AsyncConnection, receipts: Sequence[Receipt], now: int) -> None:
    """Bundles that endpoints received; what a journal that holds the endpoint no longer says counts no more."""
    for receipt in receipts:
        journal = (await connection.execute(select(endpoints.c.journal).where(endpoints.c.id == receipt.endpoint))).scalar()
        if journal == receipt.journal:
            await receive(connection, receipt.endpoint, receipt.journal, receipt.bundles, now)


async def refuse(connection: AsyncConnection, refusal: Refused, now: int) -> str | None:
    """The endpoint did not take a bundle: its open tasks have failed.  The group, or None where no such bundle went to this endpoint, or
    it has received it: then a copy was refused, and what was received ends by its journal alone.
    """
    mine = (bundles.c.id == refusal.bundle, bundles.c.endpoint_id == refusal.endpoint, bundles.c.state != int(State.RECEIVED))
    row = (await connection.execute(select(bundles.c.seq, bundles.c.group_id).where(*mine))).first()
    if row is None:
        return None
    open_ = select(tasks.c.id).where(tasks.c.bundle == row.seq, tasks.c.state == int(State.ACCEPTED))
    ids = [task.id for task in await connection.execute(open_)]
    await end_here(connection, ids, State.REFUSED, refusal.code or "NotAllowed", refusal.message[:4096], now)
    await connection.execute(update(bundles).where(bundles.c.seq == row.seq).values(state=int(State.REFUSED)))
    return str(row.group_id)
