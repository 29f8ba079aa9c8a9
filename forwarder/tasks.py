"""Tasks as people see them: what the rows say, and what stands in the bundles and result bundles around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, and_, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.messages import Outcome, Results, Signed, Work
from funcmq.forwarder import states
from funcmq.forwarder.bundles import read_work
from funcmq.forwarder.live import Live
from funcmq.forwarder.prepared import Prepared, insert, many, select_in, values
from funcmq.forwarder.states import ENDED_HERE, State
from funcmq.forwarder.tables import bundle_bytes, bundles, cancels, endpoints, failures, groups, results, tasks
from funcmq.forwarder.waiting import waiting_for

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of result bundles in one answer."""

_ROW = (
    tasks.c.id,
    tasks.c.bundle,
    tasks.c.idx,
    tasks.c.state,
    tasks.c.result,
    tasks.c.result_idx,
    bundles.c.state.label("bundle_state"),
    bundles.c.endpoint_id,
    bundles.c.user_id,
    bundles.c.group_id,
    bundles.c.accepted,
    bundles.c.published,
    bundles.c.received,
    endpoints.c.name.label("endpoint_name"),
)


_END_HERE = Prepared(
    "state id was",
    lambda _: update(tasks).where(tasks.c.id == bindparam("id_"), tasks.c.state == bindparam("was_")).values(values("state")),
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks to list; '' where it does not matter."""

    state: api.State | str = ""
    group: str = ""
    endpoint: str = ""
    limit: int = 100


def _rows() -> Select[Any]:
    joined = tasks.join(bundles, bundles.c.seq == tasks.c.bundle).join(endpoints, endpoints.c.id == bundles.c.endpoint_id)
    return select(*_ROW).select_from(joined)


async def show(connection: AsyncConnection, live: Live, user: str, task: bytes, now: int) -> api.TaskView | None:
    """A task of this user."""
    row = (await connection.execute(_rows().where(tasks.c.id == task, bundles.c.user_id == user))).first()
    return None if row is None else (await _views(connection, live, [row], now))[0]


async def find_all(connection: AsyncConnection, live: Live, user: str, wanted: Filter, now: int) -> list[api.TaskView]:
    """Tasks of this user, newest first."""
    query = _rows().where(bundles.c.user_id == user, *_conditions(wanted, live))
    rows = (await connection.execute(query.order_by(tasks.c.bundle.desc(), tasks.c.idx.desc()).limit(wanted.limit))).all()
    return await _views(connection, live, rows, now)


def _conditions(wanted: Filter, live: Live) -> list[Any]:
    found: list[Any] = []
    if wanted.group:
        found.append(bundles.c.group_id == wanted.group)
    if wanted.endpoint:
        found.append(bundles.c.endpoint_id == wanted.endpoint)
    if not wanted.state:
        return found
    numbers = [int(state) for state in states.named(wanted.state)]
    if wanted.state in api.ENDS:
        return [*found, tasks.c.state.in_(numbers)]
    running = tasks.c.id.in_(live.running())
    if wanted.state == "running":
        return [*found, tasks.c.state == int(State.ACCEPTED), running]
    return [*found, tasks.c.state == int(State.ACCEPTED), bundles.c.state.in_(numbers), ~running]


async def _views(connection: AsyncConnection, live: Live, rows: Sequence[Row[Any]], now: int) -> list[api.TaskView]:
    works = await _bodies(connection, bundle_bytes, {row.bundle for row in rows}, read_work)
    ends = await _bodies(connection, results, {row.result for row in rows if row.result is not None}, read_results)
    why = await _failures(connection, [row.id for row in rows if row.state in ENDED_HERE])
    return [_view(row, works[row.bundle], _outcome(row, ends), why.get(row.id), live, now) for row in rows]


async def _bodies(connection: AsyncConnection, table: Any, seqs: set[int], read: Any) -> dict[int, Any]:
    rows = await connection.execute(select(table.c.seq, table.c.data).where(table.c.seq.in_(seqs))) if seqs else ()
    return {row.seq: read(row.data) for row in rows}


def read_results(data: bytes) -> Results:
    """The body of a result bundle from the store."""
    return codec.decode(Results, codec.decode(Signed, data).body)


def _outcome(row: Row[Any], ends: dict[int, Results]) -> Outcome | None:
    return ends[row.result].results[row.result_idx] if row.result is not None else None


async def _failures(connection: AsyncConnection, ids: list[bytes]) -> dict[bytes, Row[Any]]:
    rows = await connection.execute(select(failures).where(failures.c.task.in_(ids))) if ids else ()
    return {bytes(row.task): row for row in rows}


def _view(row: Row[Any], work: Work, outcome: Outcome | None, here: Row[Any] | None, live: Live, now: int) -> api.TaskView:
    function = work.functions[work.tasks[row.idx].function]
    since = live.running_since(row.id)
    state = states.name(State(row.state), State(row.bundle_state), running=bool(since))
    why = outcome.failure if outcome is not None else here
    return api.TaskView(
        id=row.id.hex(),
        state=state,
        group=row.group_id,
        endpoint=row.endpoint_id,
        endpoint_name=row.endpoint_name,
        user=row.user_id,
        function=function.id,
        function_name=function.name,
        accepted=row.accepted,
        published=row.published,
        received=(outcome.received if outcome else 0) or row.received,
        started=outcome.started if outcome else since,
        ended=outcome.ended if outcome else here.ended if here else 0,
        host=outcome.host if outcome else "",
        attempt=outcome.attempt if outcome else 0,
        failure=None if why is None else (why.code, why.message),
        waiting_for="" if state in api.ENDS else waiting_for(state, live.sign(row.endpoint_id), since, now),
        stdout=outcome.stdout if outcome else "",
        stderr=outcome.stderr if outcome else "",
    )


async def query(connection: AsyncConnection, live: Live, user: str, ids: list[bytes]) -> api.QueryAnswer:
    """States of those of these tasks that are this user's, and the result bundles that say how they ended."""
    head = (
        "SELECT tasks.id, tasks.state, tasks.result, bundles.state, bundles.user_id FROM tasks "
        "JOIN bundles ON bundles.seq = tasks.bundle WHERE tasks.id"
    )
    rows = [row for row in await select_in(connection, head, ids) if row[4] == user]
    sent, held = await _fetch_results(connection, [row[2] for row in rows if row[2] is not None])
    why = await _failures(connection, [row[0] for row in rows if row[1] in ENDED_HERE])
    said = [
        api.TaskState(
            id=task.hex(),
            state=states.name(State(state), State(bundle_state), running=live.running_since(task) > 0),
            failure=(why[task].code, why[task].message) if task in why else None,
        )
        for task, state, result, bundle_state, _ in rows
        if result not in held
    ]
    return api.QueryAnswer(tasks=said, bundles=sent, more=[row[0].hex() for row in rows if row[2] in held])


async def _fetch_results(connection: AsyncConnection, seqs: list[int]) -> tuple[list[bytes], set[int]]:
    """Result bundles up to the size of an answer (one at least), and the numbers of those left out."""
    taken: list[bytes] = []
    left, size = set(seqs), 0
    for seq in dict.fromkeys(seqs):
        data = (await connection.execute(select(results.c.data).where(results.c.seq == seq))).scalar_one()
        size += len(data)
        if taken and size > MAX_ANSWER:
            break
        taken.append(data)
        left.discard(seq)
    return taken, left


async def show_group(connection: AsyncConnection, live: Live, group: str) -> api.GroupAnswer:
    """A group that exists: its tasks in order of submission."""
    name = (await connection.execute(select(groups.c.name).where(groups.c.id == group))).scalar_one()
    mine = select(tasks.c.id, tasks.c.state, bundles.c.state.label("bundle_state")).join(bundles, bundles.c.seq == tasks.c.bundle)
    rows = (await connection.execute(mine.where(bundles.c.group_id == group).order_by(bundles.c.seq, tasks.c.idx))).all()
    counts: dict[str, int] = {}
    for row in rows:
        word = states.name(State(row.state), State(row.bundle_state), running=live.running_since(row.id) > 0)
        counts[word] = counts.get(word, 0) + 1
    return api.GroupAnswer(id=group, name=name, counts=counts, tasks=[row.id.hex() for row in rows])


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
