"""What programs ask of the store: states and results of many tasks, the tasks of a group, the call and the value of one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.messages import Inline, Outcome, Work
from funcmq.forwarder import states
from funcmq.forwarder.bundles import read_work
from funcmq.forwarder.live import Live
from funcmq.forwarder.prepared import select_in
from funcmq.forwarder.states import ENDED_HERE, State
from funcmq.forwarder.tables import bundle_bytes, bundles, groups, results, tasks
from funcmq.forwarder.views import look_around, make_view, read_bodies, read_failures, task_rows

MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of result bundles in one answer."""


_BRIEF = (tasks.c.id, tasks.c.bundle, tasks.c.idx, tasks.c.state, bundles.c.state.label("bundle_state"), bundles.c.endpoint_id)


async def fetch_bundle(connection: AsyncConnection, user: str, task: bytes) -> bytes:
    """The exact signed bytes of the bundle in which this task of the user came.

    :raises NotFound: there is no such task, or its bundle is no longer kept.
    """
    query = select(bundle_bytes.c.data).join(bundles, bundles.c.seq == bundle_bytes.c.seq).join(tasks, tasks.c.bundle == bundles.c.seq)
    data = (await connection.execute(query.where(tasks.c.id == task, bundles.c.user_id == user))).scalar()
    if data is None:
        raise NotFound(f"The call of task {task.hex()!r} is not here.", hint="Arguments are kept until a task has succeeded, or is old.")
    return bytes(data)


async def fetch_result(connection: AsyncConnection, live: Live, user: str, task: bytes, now: int) -> api.ResultAnswer:
    """How a task ended, with its value where that is plain data.

    :raises NotFound: the user has no such task.
    :raises InvalidRequest: the value is pickled: only Python can read it.
    """
    row = (await connection.execute(task_rows().where(tasks.c.id == task, bundles.c.user_id == user))).first()
    if row is None:
        raise NotFound(f"There is no task {task.hex()!r}.", hint="See `funcmq task list`.")
    around = (await look_around(connection, [row]))[0]
    view, outcome = make_view(row, around, live, now), around.outcome
    return api.ResultAnswer(
        id=view.id,
        state=view.state,
        value=None if outcome is None or outcome.value is None else _plain(outcome),
        failure=view.failure,
        type_name=view.type_name,
        waiting_for=view.waiting_for,
    )


def _plain(outcome: Outcome) -> Any:
    if not isinstance(outcome.value, Inline) or outcome.value.encoding != "msgpack":
        raise InvalidRequest("The value of this task is pickled.", hint="Read it in Python: `funcmq task result ID`.")
    return codec.unpack_plain(outcome.value.data)


async def query(connection: AsyncConnection, live: Live, user: str, ids: list[bytes]) -> api.QueryAnswer:
    """States of those of these tasks that are this user's, and the result bundles that say how they ended."""
    head = (
        "SELECT tasks.id, tasks.state, tasks.result, bundles.state, bundles.user_id FROM tasks "
        "JOIN bundles ON bundles.seq = tasks.bundle WHERE tasks.id"
    )
    rows = [row for row in await select_in(connection, head, ids) if row[4] == user]
    sent, held = await _fetch_results(connection, [row[2] for row in rows if row[2] is not None])
    said = await read_failures(connection, [row[0] for row in rows if row[1] in ENDED_HERE])
    return api.QueryAnswer(
        tasks=[
            api.TaskState(
                id=task.hex(),
                state=states.name(State(state), State(bundle_state), running=live.running_since(task) > 0),
                failure=(said[task].code, said[task].message) if task in said else None,
            )
            for task, state, result, bundle_state, _ in rows
            if result not in held
        ],
        bundles=sent,
        more=[row[0].hex() for row in rows if row[2] in held],
    )


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


async def show_group(connection: AsyncConnection, live: Live, group: str, *, whole: bool) -> api.GroupAnswer:
    """A group that exists; with `whole`, its tasks in order of submission."""
    name = (await connection.execute(select(groups.c.name).where(groups.c.id == group))).scalar_one()
    if not whole:
        return api.GroupAnswer(id=group, name=name, counts={}, tasks=[])
    mine = select(tasks.c.id, tasks.c.state, bundles.c.state.label("bundle_state")).join(bundles, bundles.c.seq == tasks.c.bundle)
    rows = (await connection.execute(mine.where(bundles.c.group_id == group).order_by(bundles.c.seq, tasks.c.idx))).all()
    counts: dict[str, int] = {}
    for row in rows:
        word = states.name(State(row.state), State(row.bundle_state), running=live.running_since(row.id) > 0)
        counts[word] = counts.get(word, 0) + 1
    return api.GroupAnswer(id=group, name=name, counts=counts, tasks=[row.id.hex() for row in rows])


async def group_page(connection: AsyncConnection, live: Live, group: str, after: str, limit: int) -> list[api.TaskBrief]:
    """Tasks of a group in order of submission, those that follow the task `after` ('': from the first)."""
    query: Select[Any] = select(*_BRIEF)
    query = query.join(bundles, bundles.c.seq == tasks.c.bundle).where(bundles.c.group_id == group)
    if after:
        start = select(tasks.c.bundle, tasks.c.idx).where(tasks.c.id == bytes.fromhex(after))
        at = (await connection.execute(start)).first()
        if at is None:
            raise NotFound(f"There is no task {after!r} to go on after.", hint="Begin again without `after`.")
        query = query.where(tuple_(tasks.c.bundle, tasks.c.idx) > tuple_(at.bundle, at.idx))
    rows = (await connection.execute(query.order_by(tasks.c.bundle, tasks.c.idx).limit(limit))).all()
    works = await read_bodies(connection, bundle_bytes, {row.bundle for row in rows}, read_work)
    return [_brief(row, works.get(row.bundle), live) for row in rows]


def _brief(row: Row[Any], work: Work | None, live: Live) -> api.TaskBrief:
    state = states.name(State(row.state), State(row.bundle_state), running=live.running_since(row.id) > 0)
    name = work.functions[work.tasks[row.idx].function].name if work else ""
    return api.TaskBrief(id=row.id.hex(), state=state, endpoint=row.endpoint_id, function_name=name)
