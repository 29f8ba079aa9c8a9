"""`funcmq dead`: what could not be delivered, and why."""

from __future__ import annotations

from urllib.parse import quote

import click
import msgspec

from funcmq.broker import api
from funcmq.broker.ids import short
from funcmq.client.account_commands import ask
from funcmq.client.output import age, common, field, say, show_one, show_rows

WIDE = 80
"""Characters of a remark in a table."""


@click.group()
def dead() -> None:
    """List and show what could not be delivered, and send it once more."""


@dead.command("list")
@click.option("--limit", type=click.IntRange(1, 1_000), default=30, show_default=True, help="At most so many.")
@common
def list_letters(limit: int, output: str, profile: str | None) -> None:
    """List dead letters, the newest first: those of your own tasks, or all for administrators."""
    rows = ask(profile, lambda front: front.list(f"/dead?limit={limit}", api.DeadLetter))
    columns = {
        "ID": lambda row: short(row["id"]),
        "LAST": age("last"),
        "TIMES": field("times"),
        "USER": field("user_name"),
        "ENDPOINT": lambda row: row["endpoint_name"] or short(row["endpoint"]),
        "REASON": field("reason"),
        "STATE": field("state"),
        "": lambda row: row["message"][:WIDE],
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


@dead.command("show")
@click.argument("identifier", metavar="ID")
@common
def show_letter(identifier: str, output: str, profile: str | None) -> None:
    """Show one dead letter."""
    letter = ask(profile, lambda front: front.call("GET", f"/dead/{quote(identifier, safe='')}", None, api.DeadLetter))
    show_one(msgspec.to_builtins(letter), output)


@dead.command("reinject")
@click.argument("identifier", metavar="ID")
@common
def reinject(identifier: str, output: str, profile: str | None) -> None:
    """Send it to its endpoint once more.  Tasks that failed over it stay failed until their result comes."""
    path = f"/dead/{quote(identifier, safe='')}/reinject"
    letter = ask(profile, lambda front: front.call("POST", path, None, api.DeadLetter))
    if output == "table":
        say(f"Sent once more to {letter.endpoint_name or letter.endpoint or 'its endpoint'}.")
    else:
        show_one(msgspec.to_builtins(letter), output)
