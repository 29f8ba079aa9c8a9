"""Tasks and groups: submitted, shown, asked for, cancelled."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import group_id, is_id
from funcmq.forwarder import answers, bundles, endpoints, functions, plain, tasks, views
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Door
from funcmq.forwarder.submit import submit
from funcmq.forwarder.views import Filter
from funcmq.forwarder.web import Call, Routes

routes = Routes()

MOST_IDS = 20_000
MOST_LISTED = 1_000


@routes("POST /tasks", request=bytes, plain=api.PlainTasks, answer=api.SubmitAnswer, status=202)
async def post(door: Door, call: Call[bytes | api.PlainTasks]) -> api.SubmitAnswer:
    """Exact bytes of a signed bundle; or plain tasks, for an endpoint that trusts the front door's own key."""
    if isinstance(call.body, api.PlainTasks):
        return await plain.take(door, call.caller, call.body)
    return await submit(door, call.caller, call.body)


@routes("GET /tasks", answer=list[api.TaskView], query=api.TasksQuery)
async def list_tasks(door: Door, call: Call[None]) -> list[api.TaskView]:
    """The caller's tasks, newest first."""
    wanted, user = call.query, call.caller.user
    async with door.database.read() as connection:
        chosen = Filter(
            wanted.state or "",
            await _group(connection, wanted.group, user) if wanted.group else "",
            (await endpoints.find(connection, user, wanted.endpoint)).id if wanted.endpoint else "",
            await functions.find(connection, user, wanted.function) if wanted.function else None,
            wanted.since,
            _ids([wanted.before])[0].hex() if wanted.before else "",
            max(1, min(wanted.limit, MOST_LISTED)),
        )
        return await views.find_all(connection, door.live, user, chosen, now_ms())


@routes("GET /tasks/{id}", answer=api.TaskView)
async def show(door: Door, call: Call[None]) -> api.TaskView:
    """One task of the caller; its id may be written with dashes, or be the last 8 hex digits."""
    user = call.caller.user
    async with door.database.read() as connection:
        task = await views.find_id(connection, user, call.path["id"])
        return await views.show(connection, door.live, user, task, now_ms())


@routes("GET /tasks/{id}/bundle", answer=bytes)
async def fetch_bundle(door: Door, call: Call[None]) -> bytes:
    """Exact bytes of the signed bundle in which a task of the caller came: what is needed to submit the same call again."""
    user = call.caller.user
    async with door.database.read() as connection:
        return await answers.fetch_bundle(connection, user, await views.find_id(connection, user, call.path["id"]))


@routes("GET /tasks/{id}/result", answer=api.ResultAnswer)
async def fetch_result(door: Door, call: Call[None]) -> api.ResultAnswer:
    """The plain value of a task, as far as it has ended; nobody checks its signature."""
    user = call.caller.user
    async with door.database.read() as connection:
        task = await views.find_id(connection, user, call.path["id"])
        return await answers.fetch_result(connection, door.live, user, task, now_ms())


@routes("POST /tasks/query", request=api.TasksRequest, answer=api.QueryAnswer)
async def query(door: Door, call: Call[api.TasksRequest]) -> api.QueryAnswer:
    """Many at once, with the signed result bundles."""
    ids = _ids(call.body.tasks)
    async with door.database.read() as connection:
        return await answers.query(connection, door.live, call.caller.user, ids)


@routes("POST /tasks/cancel", request=api.TasksRequest, answer=api.CancelAnswer)
async def cancel(door: Door, call: Call[api.TasksRequest]) -> api.CancelAnswer:
    """Ask endpoints to end tasks of the caller."""
    ids = _ids(call.body.tasks)
    return await _cancel(door, call, ids)


@routes("GET /groups/{id}", answer=api.GroupAnswer, query=api.GroupQuery)
async def show_group(door: Door, call: Call[None]) -> api.GroupAnswer:
    """A group of the caller, by its id or by the name that the caller gave it."""
    async with door.database.read() as connection:
        group = await _group(connection, call.path["id"], call.caller.user)
        return await answers.show_group(connection, door.live, group, whole=call.query.tasks)


@routes("GET /groups/{id}/tasks", answer=list[api.TaskBrief], query=api.PageQuery)
async def list_group(door: Door, call: Call[None]) -> list[api.TaskBrief]:
    """The tasks of a group in the order of their submission, a page at a time."""
    after = _ids([call.query.after])[0].hex() if call.query.after else ""
    async with door.database.read() as connection:
        limit = max(1, min(call.query.limit, MOST_LISTED))
        return await answers.group_page(connection, door.live, await _group(connection, call.path["id"], call.caller.user), after, limit)


@routes("POST /groups/{id}/cancel", answer=api.CancelAnswer)
async def cancel_group(door: Door, call: Call[None]) -> api.CancelAnswer:
    """Ask endpoints to end what is open in a group of the caller."""
    async with door.database.read() as connection:
        ids = await tasks.group_tasks(connection, await _group(connection, call.path["id"], call.caller.user))
    return await _cancel(door, call, ids)


async def _group(connection: AsyncConnection, given: str, user: str) -> str:
    """The id of a group of this user: 32 hex digits are an id, or the name of an unnamed group; anything else is a name.

    :raises NotFound: the user has no such group.
    """
    candidates: list[str] = [given] if is_id(given) else []
    for group in [*candidates, group_id(user, given)]:
        with contextlib.suppress(NotFound):
            await bundles.check_group(connection, group, user)
            return group
    raise NotFound(f"You have no group {given!r}.", hint="`funcmq task list` shows tasks with their groups.")


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
