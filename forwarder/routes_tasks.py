"""Functions and tasks: registered, submitted, shown, asked for, cancelled."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import is_id, sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.forwarder import bundles, endpoints, functions, tasks
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Door
from funcmq.forwarder.routes_endpoints import whole_number
from funcmq.forwarder.states import named
from funcmq.forwarder.submit import submit
from funcmq.forwarder.web import Call, Routes, Who

routes = Routes()

MOST_IDS = 20_000
MOST_LISTED = 1_000


@routes("POST /functions", request=bytes, answer=api.FunctionAnswer)
async def register(door: Door, call: Call[bytes]) -> api.FunctionAnswer:
    """Exact bytes of a function record; its id is their hash."""
    data, user = call.body, call.caller.user
    record = codec.decode(FunctionRecord, data, "function record")
    if len(record.name) > 255 or len(record.python) > 16:
        raise InvalidRequest("A function's name has at most 255 characters, its Python version 16.")
    identifier = sha256(data)
    await door.database.write(lambda c: functions.add(c, user, identifier, record, data, now_ms()))
    door.known.functions.put((user, identifier), True)
    return api.FunctionAnswer(id=identifier)


@routes("GET /functions", answer=list[api.FunctionView])
async def list_functions(door: Door, call: Call[None]) -> list[api.FunctionView]:
    """What the caller registered."""
    async with door.database.read() as connection:
        return await functions.list_own(connection, call.caller.user)


@routes("GET /functions/{id}", who=Who.USER | Who.ENDPOINT, answer=bytes)
async def fetch(door: Door, call: Call[None]) -> bytes:
    """Exact bytes of a record: for who registered it, and for endpoints that were sent it."""
    identifier, caller = call.path["id"], call.caller
    async with door.database.read() as connection:
        if caller.endpoint:
            found = await functions.fetch_sent(connection, caller.endpoint, identifier)
        else:
            found = await functions.fetch_own(connection, caller.user, identifier)
    if found is None:
        raise NotFound(f"There is no function {identifier[:16]!r}.")
    return found


@routes("POST /tasks", request=bytes, answer=api.SubmitAnswer, status=202)
async def post(door: Door, call: Call[bytes]) -> api.SubmitAnswer:
    """Exact bytes of a signed bundle."""
    return await submit(door, call.caller, call.body)


@routes("GET /tasks", answer=list[api.TaskView])
async def list_tasks(door: Door, call: Call[None]) -> list[api.TaskView]:
    """The caller's tasks, newest first: `?state=&group=&endpoint=&limit=`."""
    wanted, user = call.query, call.caller.user
    state, limit = wanted.get("state", ""), whole_number("limit", wanted.get("limit") or "100")
    if state and not named(state):
        raise InvalidRequest(f"There is no state {state!r}.")
    async with door.database.read() as connection:
        name = wanted.get("endpoint", "")
        endpoint = (await endpoints.find(connection, user, name)).id if name else ""
        chosen = tasks.Filter(state, wanted.get("group", ""), endpoint, max(1, min(limit, MOST_LISTED)))
        return await tasks.find_all(connection, door.live, user, chosen, now_ms())


@routes("GET /tasks/{id}", answer=api.TaskView)
async def show(door: Door, call: Call[None]) -> api.TaskView:
    """One task of the caller."""
    name = call.path["id"]
    async with door.database.read() as connection:
        view = await tasks.show(connection, door.live, call.caller.user, _ids([name])[0], now_ms()) if is_id(name) else None
    if view is None:
        raise NotFound(f"There is no task {name!r}.", hint="See `funcmq task list`.")
    return view


@routes("POST /tasks/query", request=api.TasksRequest, answer=api.QueryAnswer)
async def query(door: Door, call: Call[api.TasksRequest]) -> api.QueryAnswer:
    """Many at once, with the signed result bundles."""
    ids = _ids(call.body.tasks)
    async with door.database.read() as connection:
        return await tasks.query(connection, door.live, call.caller.user, ids)


@routes("POST /tasks/cancel", request=api.TasksRequest, answer=api.CancelAnswer)
async def cancel(door: Door, call: Call[api.TasksRequest]) -> api.CancelAnswer:
    """Ask endpoints to end tasks of the caller."""
    ids = _ids(call.body.tasks)
    return await _cancel(door, call, ids)


@routes("GET /groups/{id}", answer=api.GroupAnswer)
async def show_group(door: Door, call: Call[None]) -> api.GroupAnswer:
    """A group of the caller."""
    async with door.database.read() as connection:
        await bundles.check_group(connection, call.path["id"], call.caller.user)
        return await tasks.show_group(connection, door.live, call.path["id"])


@routes("POST /groups/{id}/cancel", answer=api.CancelAnswer)
async def cancel_group(door: Door, call: Call[None]) -> api.CancelAnswer:
    """Ask endpoints to end what is open in a group of the caller."""
    async with door.database.read() as connection:
        await bundles.check_group(connection, call.path["id"], call.caller.user)
        ids = await tasks.group_tasks(connection, call.path["id"])
    return await _cancel(door, call, ids)


async def _cancel(door: Door, call: Call[Any], ids: list[bytes]) -> api.CancelAnswer:
    user = call.caller.user

    async def write(connection: AsyncConnection) -> dict[str, list[bytes]]:
        return await tasks.cancel(connection, user, ids, now_ms())

    asked = await door.database.write(write)
    for endpoint, several in asked.items():
        await door.sender.cancel(endpoint, several)
    return api.CancelAnswer(asked=sum(len(several) for several in asked.values()))


def _ids(texts: list[str]) -> list[bytes]:
    if len(texts) > MOST_IDS:
        raise InvalidRequest(f"At most {MOST_IDS:,} tasks at a time.", hint="Ask in several requests.")
    if not all(is_id(text) for text in texts):
        raise InvalidRequest("A task id is 32 hex digits.")
    return [bytes.fromhex(text) for text in dict.fromkeys(texts)]
