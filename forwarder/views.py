"""Tasks as people see them: what the rows say, and what stands in the bundles and result bundles around them.  Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import Row, Select, and_, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import is_id
from funcmq.broker.messages import Options, Outcome, Results, Signed, Work
from funcmq.broker.waiting import sentence
from funcmq.forwarder import states
from funcmq.forwarder.bundles import read_work
from funcmq.forwarder.evidence import left_alone
from funcmq.forwarder.live import Live
from funcmq.forwarder.states import ENDED_HERE, State
from funcmq.forwarder.tables import bundle_bytes, bundles, endpoints, failures, results, tasks
from funcmq.forwarder.waiting import Home, Open, why

SHORT = 8
"""Hex digits that a short id has at least."""
NEAR = 1_000
"""Bundles before its own in which the tasks ahead of one are counted; the endpoint's word is taken beyond."""

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
    bundles.c.resent,
    endpoints.c.name.label("endpoint_name"),
    endpoints.c.held,
    endpoints.c.since,
    endpoints.c.seen,
    endpoints.c.host,
)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks to list; '' and 0 where it does not matter.

    :param functions: ids of functions, one of which it is; None: any.
    :param since: accepted at this time (ms) or later.
    :param before: id of a task: only those that come after it in the list, which is newest first.
    """

    state: str = ""
    group: str = ""
    endpoint: str = ""
    functions: frozenset[str] | None = None
    since: int = 0
    before: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Around:
    """What is known of a task from around its row: its bundle's body (None when that is no longer kept), its outcome, why the front door
    ended it, and how many are before it where that was counted.
    """

    work: Work | None
    outcome: Outcome | None
    here: Row[Any] | None
    before: int | None = None


def task_rows() -> Select[Any]:
    """What `make_view` wants of each task."""
    joined = tasks.join(bundles, bundles.c.seq == tasks.c.bundle).join(endpoints, endpoints.c.id == bundles.c.endpoint_id)
    return select(*_ROW).select_from(joined)


async def find_id(connection: AsyncConnection, user: str, given: str) -> bytes:
    """The task of this user that is meant by its id, with or without dashes, or by the last digits of it.

    :raises NotFound: there is none.
    :raises InvalidRequest: there are several, or this is no id.
    """
    text = given.replace("-", "").lower()
    if is_id(text):
        return bytes.fromhex(text)
    if len(text) < SHORT or len(text) > 32 or len(text) % 2 or not set(text) <= set("0123456789abcdef"):
        raise NotFound(f"There is no task {given!r}.", hint=f"Give its id, or the last {SHORT} hex digits of it; see `funcmq task list`.")
    end = bytes.fromhex(text)
    mine = select(tasks.c.id).join(bundles, bundles.c.seq == tasks.c.bundle).where(bundles.c.user_id == user)
    mine = mine.where(func.substr(tasks.c.id, 17 - len(end), len(end)) == end).order_by(tasks.c.bundle.desc()).limit(4)
    found = [row.id.hex() for row in await connection.execute(mine)]
    if not found:
        raise NotFound(f"There is no task {given!r}.", hint="See `funcmq task list`.")
    if len(found) > 1:
        raise InvalidRequest(f"Several tasks end in {given!r}.", hint=f"Give more of the id: {', '.join(found[:3])}.")
    return bytes.fromhex(found[0])


async def show(connection: AsyncConnection, live: Live, user: str, task: bytes, now: int) -> api.TaskView:
    """A task of this user, with its traceback and its place in the queue.

    :raises NotFound: the user has none of this id.
    """
    row = (await connection.execute(task_rows().where(tasks.c.id == task, bundles.c.user_id == user))).first()
    if row is None:
        raise NotFound(f"There is no task {task.hex()!r}.", hint="See `funcmq task list`.")
    around = (await look_around(connection, [row]))[0]
    if State(row.state) is State.ACCEPTED and State(row.bundle_state) is State.RECEIVED:
        around = Around(around.work, None, None, await _before(connection, row))
    return make_view(row, around, live, now, whole=True)


async def _before(connection: AsyncConnection, row: Row[Any]) -> int | None:
    """Open tasks of the same endpoint that were accepted before; None where there are too many bundles to count them in."""
    near = select(bundles.c.seq).where(bundles.c.endpoint_id == row.endpoint_id, bundles.c.seq < row.bundle)
    near = near.order_by(bundles.c.seq.desc()).limit(NEAR)
    if len((await connection.execute(near)).all()) == NEAR:
        return None
    earlier = or_(tasks.c.bundle.in_(near), and_(tasks.c.bundle == row.bundle, tasks.c.idx < row.idx))
    count = select(func.count()).select_from(tasks).where(earlier, tasks.c.state == int(State.ACCEPTED))
    return int((await connection.execute(count)).scalar_one())


async def find_all(connection: AsyncConnection, live: Live, user: str, wanted: Filter, now: int) -> list[api.TaskView]:
    """Tasks of this user, newest first."""
    query = task_rows().where(bundles.c.user_id == user, *_conditions(wanted, live))
    if wanted.before:
        start = select(tasks.c.bundle, tasks.c.idx).where(tasks.c.id == bytes.fromhex(wanted.before))
        at = (await connection.execute(start)).first()
        if at is None:
            raise NotFound(f"There is no task {wanted.before!r} to go on after.", hint="Begin again without `before`.")
        query = query.where(tuple_(tasks.c.bundle, tasks.c.idx) < tuple_(at.bundle, at.idx))
    if wanted.functions is not None:
        return await _of_functions(connection, live, query, wanted, now)
    rows = (await connection.execute(_newest_first(query, wanted.limit))).all()
    return await _views(connection, live, rows, now)


def _newest_first(query: Select[Any], limit: int) -> Select[Any]:
    return query.order_by(tasks.c.bundle.desc(), tasks.c.idx.desc()).limit(limit)


async def _of_functions(connection: AsyncConnection, live: Live, query: Select[Any], wanted: Filter, now: int) -> list[api.TaskView]:
    """Functions have no column: the database looks for their ids in the bundles' bytes, and what it finds is looked at here."""
    found: list[api.TaskView] = []
    names = [_holds(connection.dialect.name, function) for function in sorted(wanted.functions or ())]
    if not names:
        return found
    query = query.join(bundle_bytes, bundle_bytes.c.seq == tasks.c.bundle).where(or_(*names))
    last: Row[Any] | None = None
    while len(found) < wanted.limit:
        page = query if last is None else query.where(tuple_(tasks.c.bundle, tasks.c.idx) < tuple_(last.bundle, last.idx))
        rows = (await connection.execute(_newest_first(page, wanted.limit))).all()
        views = await _views(connection, live, rows, now)
        found += [view for view in views if view.function in (wanted.functions or ())]
        if len(rows) < wanted.limit:
            break
        last = rows[-1]
    return found[: wanted.limit]


def _holds(dialect: str, function: str) -> Any:
    """Whether a bundle's bytes hold this function's id, which stands in them as text.  (Hex digits mean nothing else to LIKE.)"""
    if dialect == "sqlite":
        return func.instr(bundle_bytes.c.data, function.encode()) > 0
    return bundle_bytes.c.data.op("LIKE")(b"%" + function.encode() + b"%")


def _conditions(wanted: Filter, live: Live) -> list[Any]:
    found: list[Any] = []
    if wanted.group:
        found.append(bundles.c.group_id == wanted.group)
    if wanted.endpoint:
        found.append(bundles.c.endpoint_id == wanted.endpoint)
    if wanted.since:
        found.append(bundles.c.accepted >= wanted.since)
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
    return [make_view(row, around, live, now) for row, around in zip(rows, await look_around(connection, rows), strict=True)]


async def look_around(connection: AsyncConnection, rows: Sequence[Row[Any]]) -> list[Around]:
    """What is known around each of these rows."""
    works = await read_bodies(connection, bundle_bytes, {row.bundle for row in rows}, read_work)
    ends = await read_bodies(connection, results, {row.result for row in rows if row.result is not None}, read_results)
    here = await read_failures(connection, [row.id for row in rows if row.state in ENDED_HERE])
    return [Around(works.get(row.bundle), _outcome(row, ends), here.get(row.id)) for row in rows]


async def read_bodies(connection: AsyncConnection, table: Any, seqs: set[int], read: Any) -> dict[int, Any]:
    """What `read` makes of the `data` of these rows of a table, by `seq`; rows that are no longer kept are left out."""
    rows = await connection.execute(select(table.c.seq, table.c.data).where(table.c.seq.in_(seqs))) if seqs else ()
    return {row.seq: read(row.data) for row in rows}


def read_results(data: bytes) -> Results:
    """The body of a result bundle from the store."""
    return codec.decode(Results, codec.decode(Signed, data).body)


def _outcome(row: Row[Any], ends: dict[int, Results]) -> Outcome | None:
    return ends[row.result].results[row.result_idx] if row.result in ends else None


async def read_failures(connection: AsyncConnection, ids: list[bytes]) -> dict[bytes, Row[Any]]:
    """Why the front door itself ended these tasks."""
    rows = await connection.execute(select(failures).where(failures.c.task.in_(ids))) if ids else ()
    return {bytes(row.task): row for row in rows}


def make_view(row: Row[Any], around: Around, live: Live, now: int, *, whole: bool = False) -> api.TaskView:
    """A task as people see it; with `whole` its traceback too."""
    since, host = live.running_on(row.id)
    state = states.name(State(row.state), State(row.bundle_state), running=bool(since))
    work, outcome, here = around.work, around.outcome, around.here
    function = work.functions[work.tasks[row.idx].function] if work else None
    options = work.options[work.tasks[row.idx].options] if work else None
    failure = outcome.failure if outcome is not None else here
    waiting = None if state in api.ENDS else _why(row, state, options, around.before, live, now)
    return api.TaskView(
        id=row.id.hex(),
        state=state,
        group=row.group_id,
        endpoint=row.endpoint_id,
        endpoint_name=row.endpoint_name,
        user=row.user_id,
        function=function.id if function else "",
        function_name=function.name if function else "",
        accepted=row.accepted,
        published=row.published,
        received=(outcome.received if outcome else 0) or row.received,
        started=outcome.started if outcome else since,
        ended=outcome.ended if outcome else here.ended if here else 0,
        host=outcome.host if outcome else host,
        attempt=outcome.attempt if outcome else 0,
        failure=None if failure is None else (failure.code, failure.message),
        type_name=outcome.failure.type_name if outcome and outcome.failure else "",
        traceback=outcome.failure.traceback if whole and outcome and outcome.failure else "",
        waiting_for=sentence(waiting, now, UTC) if waiting else "",
        why=waiting,
        pool=options.pool if options else "",
        stdout=outcome.stdout if outcome else "",
        stderr=outcome.stderr if outcome else "",
    )


def _why(row: Row[Any], state: api.State, options: Options | None, before: int | None, live: Live, now: int) -> api.Waiting:
    if state == "published" and (missing := left_alone(row.resent)):
        return api.Waiting(kind="reason", reason=missing)
    pool, walltime_s = (options.pool, options.walltime_s) if options else ("", 0.0)
    home = Home(row.endpoint_name, row.held, row.since, row.seen, row.host)
    return why(Open(state, pool, walltime_s, *live.running_on(row.id), before), home, live.sign(row.endpoint_id), now)
