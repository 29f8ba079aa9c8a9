"""Reading what the front door knows of tasks, page by page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

import msgspec

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest
from funcmq.broker.waiting import sentence
from funcmq.client.options import seconds

if TYPE_CHECKING:
    from funcmq.broker.http import Api

PAGE = 1000
Since = datetime | timedelta | float | str
"""A moment, or a span of time before now: seconds since the epoch are a number, `"10m"` and timedelta are spans."""


def query(limit: int, **wanted: str | int | None) -> api.TasksQuery:
    """What to list: at most `limit` tasks, of all that is not None.

    :raises ValueError: the limit is no positive number, or there is no such state.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit is a whole number from 1 on, not {limit!r}.")
    given = {name: value for name, value in wanted.items() if value is not None}
    try:
        return msgspec.convert({**given, "limit": limit}, api.TasksQuery)
    except msgspec.ValidationError as wrong:
        raise ValueError(f"tasks(): {wrong}.") from None


def milliseconds(since: Since | None) -> int:
    """The moment that is meant, since the epoch; 0 for None.

    :raises TypeError, ValueError: it is no moment and no span of time.
    """
    if since is None:
        return 0
    if isinstance(since, datetime):
        return int(since.timestamp() * 1000)
    if isinstance(since, timedelta):
        return int((time.time() - since.total_seconds()) * 1000)
    if isinstance(since, str):
        return int((time.time() - seconds(since, "since")) * 1000)
    return int(seconds(since, "since") * 1000)


async def list_tasks(front: Api, wanted: api.TasksQuery) -> list[api.TaskView]:
    """As many as are wanted, newest first, in requests of a thousand."""
    found: list[api.TaskView] = []
    while len(found) < wanted.limit:
        page = msgspec.structs.replace(wanted, limit=min(PAGE, wanted.limit - len(found)), before=found[-1].id if found else "")
        named = {name: value for name, value in msgspec.to_builtins(page).items() if value}
        views = await front.list(f"/tasks?{urlencode(named)}", api.TaskView)
        found += [here(view) for view in views]
        if len(views) < page.limit:
            break
    return found


async def show_task(front: Api, identifier: str) -> api.TaskView:
    """One task, by its id, with or without dashes, or by the end of it.

    :raises NotFound, InvalidRequest: there is none, or more than one.
    """
    if not identifier.strip():
        raise InvalidRequest("No task is named: the id is empty.", hint="Give an id, or the end of one: see `funcmq task list`.")
    return here(await front.call("GET", f"/tasks/{quote(identifier, safe='')}", None, api.TaskView))


def here(view: api.TaskView) -> api.TaskView:
    """The same task, with the times of its sentence on this machine's clock."""
    if view.why is None:
        return view
    said = sentence(view.why, int(time.time() * 1000))
    return msgspec.structs.replace(view, waiting_for=said or view.waiting_for)


async def group_pages(front: Api, group: str) -> AsyncIterator[list[api.TaskBrief]]:
    """The tasks of a group in the order of their submission."""
    after = ""
    while True:
        page = await front.list(f"/groups/{group}/tasks?{urlencode({'after': after, 'limit': PAGE})}", api.TaskBrief)
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1].id
