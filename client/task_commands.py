"""`funcmq task`: what was sent, and what became of it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args
from urllib.parse import quote

import click
import msgspec

from funcmq.broker import api
from funcmq.broker.errors import FuncmqError, InvalidRequest
from funcmq.broker.ids import short
from funcmq.client import lists
from funcmq.client.account_commands import ask
from funcmq.client.output import age, common, field, profile_option, say, show_one, show_rows

if TYPE_CHECKING:
    from funcmq.broker.http import Api
    from funcmq.client.client import Client
    from funcmq.client.futures import TaskFuture

T = TypeVar("T")
TIMED_OUT = 5
LOOK_S = 2.0
AGAIN_S = 30.0
"""After so long the reason for waiting is said again though only its numbers have changed."""
WIDE = 80
"""Characters of a remark in a table."""
TIMES = ("accepted", "published", "received", "started", "ended")


@click.group()
def task() -> None:
    """List, show, await, cancel and retry tasks."""


@task.command("list")
@click.option("--state", default=None, type=click.Choice(get_args(api.State)), help="Only these.")
@click.option("--group", default=None, metavar="GROUP", help="Only this group's, by id or name.")
@click.option("--endpoint", default=None, metavar="NAME", help="Only this endpoint's.")
@click.option("--function", default=None, metavar="NAME", help="Only this function's, by name or id.")
@click.option("--since", default=None, metavar="TIME", help="Accepted within this time, such as 10m or 2d.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=30, show_default=True, help="At most so many.")
@common
def list_tasks(limit: int, output: str, profile: str | None, since: str | None, **wanted: str | None) -> None:
    """List your tasks, newest first."""
    try:
        asked = lists.query(limit, since=lists.milliseconds(since), **wanted)
    except ValueError as wrong:
        raise click.UsageError(str(wrong)) from None
    rows = ask(profile, lambda front: lists.list_tasks(front, asked))
    columns: dict[str, Callable[[Any], str]] = {
        "ID": lambda row: short(row["id"]),
        "FUNCTION": field("function_name"),
        "STATE": field("state"),
        "ENDPOINT": field("endpoint_name"),
        "ACCEPTED": age("accepted"),
        "TOOK": _took,
        "": _remark,
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


def _took(row: Any) -> str:
    """How long it ran, where it has."""
    if not (row["started"] and row["ended"]):
        return ""
    seconds = max(0, row["ended"] - row["started"]) / 1000
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _remark(row: Any) -> str:
    """Why it failed, with the exception's type, or what it waits for, in one line."""
    first = (failure_text(row) or row.get("waiting_for") or "").partition("\n")[0]
    return first if len(first) <= WIDE else first[: WIDE - 1] + "…"


def failure_text(row: Any) -> str:
    """`ZeroDivisionError: division by zero`; '' where nothing failed."""
    if not row.get("failure"):
        return ""
    code, message = row["failure"]
    kind = (row.get("type_name") or code).removeprefix("builtins.")
    return f"{kind}: {message}" if message else kind


@task.command("show")
@click.argument("identifier", metavar="ID")
@common
def show_task(identifier: str, output: str, profile: str | None) -> None:
    """Show a task with its timeline; ID may be its last 8 digits."""
    row = msgspec.to_builtins(ask(profile, lambda front: lists.show_task(front, identifier)))
    if output != "table":
        show_one(row, output)
        return
    trace, row["failure"] = row.pop("traceback"), failure_text(row)
    hidden = ("why", "type_name", "user")
    show_one({name: value for name, value in row.items() if name not in hidden}, output, TIMES)
    if trace:
        click.echo()
        click.echo(trace.rstrip())


@task.command("logs")
@click.argument("identifier", metavar="ID")
@common
def logs(identifier: str, output: str, profile: str | None) -> None:
    """Print the tails of what a task wrote: its stdout on stdout, its stderr on stderr."""
    view = ask(profile, lambda front: lists.show_task(front, identifier))
    if output != "table":
        show_one({"id": view.id, "state": view.state, "stdout": view.stdout, "stderr": view.stderr}, output)
        return
    click.echo(view.stdout, nl=False)
    click.echo(view.stderr, nl=False, err=True)
    if view.state not in api.ENDS:
        say(f"The task has not ended, and its output comes with its end: {view.waiting_for}.")
    elif not view.stdout and not view.stderr:
        say("It wrote nothing.")


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


def _with_client(profile: str | None, use: Callable[[Client], Awaitable[T]]) -> T:
    from funcmq.client.client import Client  # noqa: PLC0415  --help imports no aiohttp

    async def run() -> T:
        async with Client(profile=profile) as fx:
            return await use(fx)

    return asyncio.run(run())


def _with_task(profile: str | None, identifier: str, use: Callable[[TaskFuture[Any]], Awaitable[tuple[int, Any]]], output: str) -> int:
    status, value = _with_client(profile, lambda fx: use(fx.task(identifier)))
    if value is not NOTHING:
        print_value(value, output)
    return status


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
    last, at = "", 0.0
    while True:
        try:
            async with asyncio.timeout(LOOK_S):
                return await future
        except (FuncmqError, TimeoutError) as error:
            if future.done():  # otherwise it is the time-out of this look
                if trace := getattr(error, "details", {}).get("traceback"):
                    say(str(trace).rstrip())
                raise
        reason = future.waiting_for
        kind = re.sub(r"[\d,.]+", "#", reason)
        if kind != last or time.monotonic() > at + AGAIN_S:
            last, at = kind, time.monotonic()
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


@task.command("retry")
@click.argument("identifiers", metavar="ID…", nargs=-1, required=True)
@common
def retry(identifiers: tuple[str, ...], output: str, profile: str | None) -> None:
    """Submit the calls of tasks once more, as new tasks, and print the new ids."""

    async def run(fx: Client) -> list[dict[str, str]]:
        futures = [await fx.retry(identifier) for identifier in identifiers]
        await fx.flush()
        for future in futures:
            if future.done():
                await future  # what could not be accepted says so
        return [{"of": given, "id": future.id, "group": future.group} for given, future in zip(identifiers, futures, strict=True)]

    rows = _with_client(profile, run)
    if output == "table":
        for row in rows:
            click.echo(row["id"])
        say("Wait for it: funcmq task wait ID")
    else:
        show_rows(rows, output, {})


@task.command("cancel")
@click.argument("identifiers", metavar="ID…", nargs=-1)
@click.option("--group", default=None, metavar="GROUP", help="All tasks of a group, by id or name.")
@profile_option
def cancel(identifiers: tuple[str, ...], group: str | None, profile: str | None) -> None:
    """Cancel tasks that have not ended."""
    if not identifiers and not group:
        raise click.UsageError("Name tasks, or a group.")
    asked = ask(profile, lambda front: _cancel(front, identifiers, group))
    say(f"{asked} of them had not ended; their endpoints have been asked." if asked else "All of them have ended already.")


async def _cancel(front: Api, identifiers: Sequence[str], group: str | None) -> int:
    asked = 0
    if identifiers:
        ids = [(await lists.show_task(front, identifier)).id for identifier in identifiers]
        asked += (await front.call("POST", "/tasks/cancel", api.TasksRequest(tasks=ids), api.CancelAnswer)).asked
    if group:
        asked += (await front.call("POST", f"/groups/{quote(group, safe='')}/cancel", None, api.CancelAnswer)).asked
    return asked
