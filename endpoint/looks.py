"""How `funcmq endpoint` shows an endpoint: as JSON with every field, or for people, without raw times and ids of keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from funcmq.broker.human import ago, moment

if TYPE_CHECKING:
    from funcmq.broker import api

OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", help="How to print.")
PROFILE = click.option("--profile", default=None, metavar="NAME", help="The profile of config.toml to use.")


def row_of(view: api.EndpointView) -> dict[str, Any]:
    """What JSON output carries: every field by its name, those of pools too."""
    import msgspec  # noqa: PLC0415 (--help does without)

    return {**msgspec.structs.asdict(view), "pools": [msgspec.structs.asdict(pool) for pool in view.pools]}


def fingerprint(key: str) -> str:
    """Of a key's id: 16 hex digits in groups of four."""
    return ":".join(key[at : at + 4] for at in range(0, 16, 4))


def people(row: dict[str, Any]) -> dict[str, str]:
    """A row as people read it, without what is empty."""
    said = {key: str(value) for key, value in row.items() if isinstance(value, str) or (isinstance(value, int) and value)}
    said["online"] = "yes" if row["online"] else "no"
    said |= {key: moment(row[key]) for key in ("seen", "since") if row.get(key)}
    said |= {key: ", ".join(row[key]) for key in ("allowed",) if row.get(key)}
    said["trusted"] = ", ".join(fingerprint(key) for key in row.get("trusted", []))
    said["pools"] = "; ".join(_pool(pool) for pool in row.get("pools", []))
    said.pop("key", None)
    return {key: value for key, value in said.items() if value}


def _pool(pool: dict[str, Any]) -> str:
    why = f" ({pool['reason']})" if pool["reason"] else ""
    version = f", Python {pool['versions']['python']}" if pool["versions"].get("python") else ""
    return f"{pool['name']}: {pool['workers']} of {pool['capacity']} workers, {pool['busy']} busy, {pool['blocks']} blocks{version}{why}"


def print_rows(views: Sequence[api.EndpointView], output: str) -> None:
    """Many endpoints."""
    rows = [row_of(view) for view in views]
    if output == "json":
        click.echo(json.dumps(rows))
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
    else:
        click.echo(f"{'NAME':20} {'ID':8} {'STATE':8} {'SEEN':>11} {'HOST':16} {'WORKERS':>7} {'RUNNING':>7} {'QUEUED':>7}")
        for row in rows:
            workers = sum(pool["workers"] for pool in row["pools"])
            state, seen = "online" if row["online"] else "offline", ago(row["seen"]) or "never"
            print_ = f"{row['name']:20} {row['id'][-8:]:8} {state:8} {seen:>11} {row['host']:16}"
            click.echo(f"{print_} {workers:7} {row['running']:7} {row['queued']:7}")
