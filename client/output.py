"""How the users' commands print: data on stdout as a table, as JSON or as JSON lines; everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import click

from funcmq.broker.human import ago, moment

__all__ = ["age", "ago", "common", "field", "moment", "output_option", "profile_option", "say", "show_one", "show_rows"]

Format = Literal["table", "json", "jsonl"]
F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]

output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", show_default=True, help="How to print."
)
profile_option = click.option("--profile", default=None, metavar="NAME", help="A profile of config.toml.")


def common(command: F) -> F:
    """The options that every command has."""
    return output_option(profile_option(command))


def show_rows(rows: Sequence[Row], output: str, columns: Mapping[str, Callable[[Row], str]]) -> None:
    """Many things: everything that is known of each as JSON, the columns as a table."""
    if output == "json":
        click.echo(_json(list(rows)))
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row, default=str, ensure_ascii=False))
    else:
        _table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def show_one(row: Row, output: str, times: Sequence[str] = ()) -> None:
    """One thing: as JSON, or its fields one below the other, without those that are empty; those in `times` as times of day."""
    if output == "table":
        present = {name: value for name, value in row.items() if value not in (None, "", 0, [], {})}
        known = {name: moment(value) if name in times else _plain(value) for name, value in present.items()}
        width = max((len(name) for name in known), default=0)
        for name, value in known.items():
            click.echo(f"{name:{width}}  {value}")
    else:
        click.echo(_json(row) if output == "json" else json.dumps(row, default=str, ensure_ascii=False))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _table(heads: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  takes longer to import than everything else here
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # in a pipe nobody wants lines cut at 80 characters
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000).print(table)


def say(text: str) -> None:
    """A line for the person, not for the pipe."""
    click.echo(text, err=True)


def field(name: str) -> Callable[[Row], str]:
    """A column that shows a field as it is."""
    return lambda row: str(row[name])


def age(name: str) -> Callable[[Row], str]:
    """A column that shows a time as its distance from now."""
    return lambda row: ago(row[name])
