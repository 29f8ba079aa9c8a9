"""Tasks as plain JSON or msgpack, from users without keys: signed here, for endpoints that trust this front door's own key (design §6).

Arguments are plain data and stay so: nothing is pickled or unpickled.  Whoever may send it twice gives each task a `key`.
"""

from __future__ import annotations

from sqlalchemy import select

from funcmq.broker import api, codec
from funcmq.broker.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from funcmq.broker.ids import group_id, is_id, new_hex, new_id
from funcmq.broker.messages import MAX_WAIT_S, FunctionRef, Inline, Options, Task, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.forwarder import functions, submit
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Access, Door
from funcmq.forwarder.people import Caller
from funcmq.forwarder.tables import functions as records


async def take(door: Door, caller: Caller, body: api.PlainTasks) -> api.SubmitAnswer:
    """Sign these tasks and take them in; the answer has the id of each, '' where it was refused.

    :raises NotAllowed: this front door has no key, or the endpoint does not trust it.
    :raises Busy, InvalidRequest, NotFound, PayloadTooLarge: as for a signed bundle.
    """
    access = await submit.access_of(door, caller, body.endpoint)
    key = _trusted_key(door, access)
    function = await _find_function(door, caller, body.function)
    work = make_work(body, caller.user, key.public.id, access.id, function, now_ms())
    answer = await submit.submit(door, caller, key.sign(BUNDLE, codec.encode(work)))
    return _with_ids(answer, work)


def _trusted_key(door: Door, access: Access) -> PrivateKey:
    if door.key is None:
        raise NotAllowed(
            "This front door signs nothing.", hint="Its administrator may set key_file; from Python and the command line you sign yourself."
        )
    if access.trusted is not None and door.key.public.id not in access.trusted:
        raise NotAllowed(
            f"The endpoint {access.name} does not run what this front door signs for others.",
            hint=f"On its host: `funcmq endpoint trust {access.name} --front-door`; or sign yourself, from Python or the command line.",
        )
    return door.key


async def _find_function(door: Door, caller: Caller, wanted: str) -> FunctionRef:
    """The function of this id; of this name `owner/name` or `owner/name@version`, the newest; or the only one of this plain name."""
    async with door.database.read() as connection:
        if "/" in wanted:
            named = await functions.list_named(connection, caller.user, functions.Name.parse(wanted))
            ids = [view.id for view in named[:1]]
        else:
            ids = sorted(await functions.find(connection, caller.user, wanted))
        name = (await connection.execute(select(records.c.name).where(records.c.id == ids[0]))).scalar() if ids else None
    if not ids:
        raise NotFound(f"There is no function {wanted[:255]!r} that you may use.", hint="See `funcmq function list`.")
    if len(ids) > 1:
        raise Conflict(f"Several of your functions are called {wanted!r}.", hint=f"Use an id: {', '.join(ids[:4])}.")
    return FunctionRef(ids[0], name or wanted[:255])


def make_work(body: api.PlainTasks, user: str, key: str, endpoint: str, function: FunctionRef, now: int) -> Work:
    """The work that these tasks are.

    :raises InvalidRequest: an option or argument is not what it may be; the message names it.
    """
    group = body.group if is_id(body.group) else group_id(user, body.group) if body.group else new_hex()
    try:
        return Work(
            v=Work.VERSION,
            user=user,
            key=key,
            run_as="",
            endpoint=endpoint,
            group=group,
            signed_at=now,
            functions=[function],
            options=[_options(body, now)],
            tasks=[_task(index, task) for index, task in enumerate(body.tasks)],
        )
    except ValueError as wrong:
        raise InvalidRequest(f"This cannot be submitted: {wrong}.") from None


def _options(body: api.PlainTasks, now: int) -> Options:
    if not 0 < body.expires <= MAX_WAIT_S:
        raise ValueError(f"expires is more than 0 and at most {MAX_WAIT_S} seconds")
    return Options(
        pool=body.pool,
        walltime_s=body.walltime,
        retry=body.retry,
        priority=body.priority,
        not_after=now + int(body.expires * 1000),
        resources=body.resources,
    )


def _task(index: int, task: api.PlainTask) -> Task:
    try:
        data = codec.pack_plain((tuple(task.args), task.kwargs))
    except (TypeError, ValueError, OverflowError) as wrong:
        raise ValueError(f"the arguments of task {index} are not plain data: {wrong}") from None
    return Task(id=new_id(), function=0, options=0, args=Inline("msgpack", data), key=task.key)


def _with_ids(answer: api.SubmitAnswer, work: Work) -> api.SubmitAnswer:
    ids = [task.id.hex() for task in work.tasks]
    for verdict in answer.verdicts:
        ids[verdict.index] = verdict.id if verdict.verdict == "same" else ""
    return api.SubmitAnswer(bundle=answer.bundle, accepted=answer.accepted, verdicts=answer.verdicts, tasks=ids, group=work.group)
