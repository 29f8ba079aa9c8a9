"""`funcmq function`: what is registered, under which names, and who may use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import msgspec

from funcmq.broker import api, codec
from funcmq.broker.errors import NotFound
from funcmq.broker.ids import is_hash
from funcmq.broker.messages import FunctionRecord
from funcmq.client.account_commands import ask
from funcmq.client.output import age, common, field, profile_option, say, show_one, show_rows

if TYPE_CHECKING:
    from funcmq.broker.http import Api


@click.group()
def function() -> None:
    """List, show, share and delete registered functions."""


@function.command("list")
@common
def list_functions(output: str, profile: str | None) -> None:
    """List the functions that you registered, and those that others share with you."""
    rows = ask(profile, lambda front: front.list("/functions", api.FunctionView))
    columns: dict[str, Callable[[Any], str]] = {
        "ID": lambda row: row["id"][:16],
        "FUNCTION": field("name"),
        "NAMES": lambda row: " ".join(row["names"]),
        "PYTHON": field("python"),
        "OWNER": field("owner"),
        "SHARED WITH": lambda row: " ".join(row["allowed"]),
        "CREATED": age("created"),
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


async def find(front: Api, given: str) -> api.FunctionView:
    """The function that is meant by a name, by an id, or by the first digits of one.

    :raises NotFound: none, or more than one.
    """
    if "/" in given:
        return (await front.list(f"/functions?name={quote(given, safe='')}", api.FunctionView))[0]
    rows = await front.list("/functions", api.FunctionView)
    found = {row.id: row for row in rows if row.id.startswith(given.lower())}
    if len(found) != 1:
        many = "There is no function" if not found else "There is more than one function"
        raise NotFound(f"{many} whose id begins with {given!r}.", hint="See `funcmq function list`.")
    return next(iter(found.values()))


@function.command("show")
@click.argument("identifier", metavar="NAME|ID")
@common
def show_function(identifier: str, output: str, profile: str | None) -> None:
    """Show a function, with its source where that travelled along; ID may be the first digits."""

    async def show(front: Api) -> tuple[api.FunctionView, bytes]:
        view = await find(front, identifier)
        return view, await front.fetch_raw(f"/functions/{view.id}")

    view, data = ask(profile, show)
    record = codec.decode(FunctionRecord, data)  # its code stays bytes: nothing is loaded to be shown
    row = {"id": view.id, "name": record.name, "names": " ".join(view.names), "owner": view.owner}
    row |= {"shared with": " ".join(view.allowed), "python": record.python, "bytes": str(len(data))}
    if output != "table":
        show_one({**msgspec.to_builtins(view), "bytes": len(data), "source": record.source}, output)
        return
    show_one(row, output)
    if record.source:
        click.echo()
        click.echo(record.source.rstrip())


@function.command("share")
@click.argument("name", metavar="NAME")
@click.argument("users", metavar="USER…", nargs=-1, required=True)
@click.option("--revoke", is_flag=True, help="They may not use it any more.")
@profile_option
def share(name: str, users: tuple[str, ...], revoke: bool, profile: str | None) -> None:
    """Let other users run a named function of yours, all versions of it, and read it."""
    patch = api.FunctionPatch(deny=list(users)) if revoke else api.FunctionPatch(allow=list(users))

    async def run(front: Api) -> None:
        await front.tell("PATCH", f"/functions/{quote(name, safe='')}", patch)

    ask(profile, run)
    say(f"{', '.join(users)} may {'no longer ' if revoke else ''}use {name}.")


@function.command("delete")
@click.argument("identifier", metavar="NAME|ID")
@profile_option
def delete(identifier: str, profile: str | None) -> None:
    """Take away a name, one version of it (ada/recon@2), or a function by its id.  Tasks that were accepted run all the same."""

    async def run(front: Api) -> str:
        meant = identifier if "/" in identifier or is_hash(identifier) else (await find(front, identifier)).id
        await front.tell("DELETE", f"/functions/{quote(meant, safe='')}")
        return meant

    say(f"{ask(profile, run)} is deleted.")
