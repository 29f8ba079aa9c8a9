"""`funcmq task` and `funcmq function`: what was sent, and what became of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args
from urllib.parse import urlencode

import click
import msgspec

from funcmq.broker import api, codec
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotFound
from funcmq.broker.ids import is_hash, is_id, short
from funcmq.broker.messages import FunctionRecord
from funcmq.client.account_commands import ask
from funcmq.client.output import age, ago, common, field, profile_option, say, show_one, show_rows

if TYPE_CHECKING:
    from funcmq.broker.http import Api
    from funcmq.client.client import Client
    from funcmq.client.futures import TaskFuture

T = TypeVar("T")
LATEST = 1000
"""Tasks among which a short id is looked for."""
TIMED_OUT = 5
LOOK_S = 2.0


async def full_id(front: Api, given: str) -> str:
    """The task that is meant by an id or by the end of one, among your latest 1,000.

    :raises NotFound: none, or more than one.
    """
    if is_id(given):
        return given
    if not given.strip():
        raise InvalidRequest("No task is named: the id is empty.", hint="Give an id, or the end of one: see `funcmq task list`.")
    views = await front.list(f"/tasks?limit={LATEST}", api.TaskView)
    found = [view.id for view in views if view.id.endswith(given.lower())]
    if len(found) != 1:
        many = "There is no" if not found else "There is more than one"
        raise NotFound(f"{many} task that ends in {given!r} among your latest {LATEST:,}.", hint="See `funcmq task list -o json`.")
    return found[0]


@click.group()
def task() -> None:
    """List, show, await and cancel tasks."""


@task.command("list")
@click.option("--state", default=None, type=click.Choice(get_args(api.State)), help="Only these.")
@click.option("--group", default=None, metavar="ID", help="Only this group's.")
@click.option("--endpoint", default=None, metavar="NAME", help="Only this endpoint's.")
@click.option("--limit", type=click.IntRange(1, 1000), default=30, show_default=True, help="At most so many.")
@common
def list_tasks(state: str | None, group: str | None, endpoint: str | None, limit: int, output: str, profile: str | None) -> None:
    """List your tasks, newest first."""
    query = {"state": state, "group": group, "endpoint": endpoint, "limit": limit}
    path = "/tasks?" + urlencode({name: value for name, value in query.items() if value is not None})
    rows = ask(profile, lambda front: front.list(path, api.TaskView))
    columns: dict[str, Callable[[Any], str]] = {
        "ID": lambda row: short(row["id"]),
        "FUNCTION": field("function_name"),
        "STATE": field("state"),
        "ENDPOINT": field("endpoint_name"),
        "ACCEPTED": age("accepted"),
        "": _remark,
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


def _remark(row: Any) -> str:
    """Why it failed, or what it waits for, in one line."""
    failure = row.get("failure")
    text = f"{failure[0]}: {failure[1]}" if failure else row.get("waiting_for") or ""
    first = str(text).partition("\n")[0]
    return first if len(first) <= 80 else first[:79] + "…"


@task.command("show")
@click.argument("identifier", metavar="ID")
@common
def show_task(identifier: str, output: str, profile: str | None) -> None:
    """Show a task with its timeline; ID may be the last digits."""

    async def show(front: Api) -> api.TaskView:
        return await front.call("GET", f"/tasks/{await full_id(front, identifier)}", None, api.TaskView)

    row = msgspec.to_builtins(ask(profile, show))
    if output == "table":
        row |= {name: f"{ago(row[name])}" for name in ("accepted", "published", "received", "started", "ended") if row[name]}
        row["failure"] = ": ".join(row["failure"]) if row["failure"] else None
    show_one(row, output)


@task.command("wait")
@click.argument("identifier", metavar="ID")
@click.option("--timeout", type=float, default=None, metavar="SECONDS", help="Give up waiting; the task goes on.")
@profile_option
def wait(identifier: str, timeout: float | None, profile: str | None) -> int:
    """Wait until a task has ended, saying what it waits for.  Exit status: 0 it succeeded, 1 it did not, 5 timed out."""
    return _with_task(profile, identifier, lambda future: _wait(future, timeout, print_value=False), "table")


@task.command("result")
@click.argument("identifier", metavar="ID")
@click.option("--timeout", type=float, default=None, metavar="SECONDS", help="Give up waiting; the task goes on.")
@common
def result(identifier: str, timeout: float | None, output: str, profile: str | None) -> int:
    """Print the result of a task, waiting for it if need be."""
    return _with_task(profile, identifier, lambda future: _wait(future, timeout, print_value=True), output)


def _with_task(profile: str | None, identifier: str, use: Callable[[TaskFuture[Any]], Awaitable[tuple[int, Any]]], output: str) -> int:
    from funcmq.client.client import Client  # noqa: PLC0415  --help imports no aiohttp

    async def run() -> tuple[int, Any]:
        async with Client(profile=profile) as fx:
            return await use(fx.task(await _id(fx, identifier)))

    status, value = asyncio.run(run())
    if value is not NOTHING:
        print_value(value, output)
    return status


async def _id(fx: Client, identifier: str) -> str:
    if is_id(identifier):
        return identifier
    found = [view.id for view in await fx.tasks(limit=LATEST) if view.id.endswith(identifier.lower())]
    if len(found) != 1:
        raise NotFound(f"There is no task that ends in {identifier!r}.", hint="See `funcmq task list -o json`.")
    return found[0]


NOTHING = object()


async def _wait(future: TaskFuture[Any], timeout: float | None, *, print_value: bool) -> tuple[int, Any]:
    """Exit status and value; what it waits for is said on stderr whenever that changes."""
    try:
        async with asyncio.timeout(timeout):
            value = await said_aloud(future)
    except TimeoutError:
        if future.done():
            raise  # the task's own
        say(f"Task {future.id} is still {future.state} after {timeout:g} s ({future.waiting_for}); it goes on.")
        return TIMED_OUT, NOTHING
    return 0, value if print_value else NOTHING


async def said_aloud(future: TaskFuture[T]) -> T:
    """Await a task, saying on stderr what it waits for, whenever that changes."""
    last = ""
    while True:
        try:
            async with asyncio.timeout(LOOK_S):
                return await future
        except (FuncmqError, TimeoutError) as error:
            if future.done():  # otherwise it is the time-out of this look
                if trace := getattr(error, "details", {}).get("traceback"):
                    say(str(trace).rstrip())
                raise
        if (reason := future.waiting_for) != last:
            last = reason
            say(f"{future.name or 'task'} {short(future.id)}: {reason}")


def print_value(value: Any, output: str) -> None:
    """A result on stdout: text as it is, other things as Python shows them, with -o json as JSON."""
    if output == "table":
        click.echo(value if isinstance(value, str) else repr(value))
        return
    try:
        click.echo(json.dumps(value, ensure_ascii=False, indent=2 if output == "json" else None))
    except (TypeError, ValueError):
        raise InvalidRequest(f"The result, a {type(value).__name__}, has no form in JSON.", hint="Leave -o out.") from None


@task.command("cancel")
@click.argument("identifiers", metavar="ID…", nargs=-1)
@click.option("--group", default=None, metavar="ID", help="All tasks of a group.")
@profile_option
def cancel(identifiers: tuple[str, ...], group: str | None, profile: str | None) -> None:
    """Cancel tasks that have not ended."""
    if not identifiers and not group:
        raise click.UsageError("Name tasks, or a group.")

    async def run(front: Api) -> int:
        asked = 0
        if identifiers:
            ids = [await full_id(front, identifier) for identifier in identifiers]
            asked += (await front.call("POST", "/tasks/cancel", api.TasksRequest(tasks=ids), api.CancelAnswer)).asked
        if group:
            asked += (await front.call("POST", f"/groups/{group}/cancel", None, api.CancelAnswer)).asked
        return asked

    asked = ask(profile, run)
    say(f"{asked} of them had not ended; their endpoints have been asked." if asked else "All of them have ended already.")


@click.group()
def function() -> None:
    """List and show registered functions."""


@function.command("list")
@common
def list_functions(output: str, profile: str | None) -> None:
    """List the functions that you registered."""
    rows = ask(profile, lambda front: front.list("/functions", api.FunctionView))
    columns: dict[str, Callable[[Any], str]] = {
        "ID": lambda row: row["id"][:16],
        "NAME": field("name"),
        "PYTHON": field("python"),
        "CREATED": age("created"),
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


@function.command("show")
@click.argument("identifier", metavar="ID")
@common
def show_function(identifier: str, output: str, profile: str | None) -> None:
    """Show a function, with its source where that travelled along; ID may be the first digits."""

    async def show(front: Api) -> tuple[str, bytes]:
        full = identifier
        if not is_hash(full):
            found = [row.id for row in await front.list("/functions", api.FunctionView) if row.id.startswith(identifier)]
            if len(found) != 1:
                raise NotFound(f"There is no function of yours whose id begins with {identifier!r}.", hint="See `funcmq function list`.")
            full = found[0]
        return full, await front.fetch_raw(f"/functions/{full}")

    full, data = ask(profile, show)
    record = codec.decode(FunctionRecord, data)  # its code stays bytes: nothing is loaded to be shown
    row = {"id": full, "name": record.name, "python": record.python, "bytes": len(data)}
    if output != "table":
        show_one({**row, "source": record.source}, output)
        return
    show_one(row, output)
    if record.source:
        click.echo()
        click.echo(record.source.rstrip())
