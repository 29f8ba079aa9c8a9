"""`funcmq serve` and `funcmq db upgrade`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from funcmq.broker.errors import ConfigurationError

if TYPE_CHECKING:
    from funcmq.forwarder.settings import ServeSettings

log = logging.getLogger("funcmq.serve")


@click.command()
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", help="Port to listen on (8600); 0 takes a free one.")
@click.option("--broker-auth-host", help="Address where RabbitMQ's questions are answered (127.0.0.1); keep it private.")
@click.option("--broker-auth-port", help="Its port (8601).")
@click.option("--database", "database_url", help="Database URL without a password; with one, use FUNCMQ_DATABASE_URL.")
@click.option("--only", help="Parts to run here, separated by commas: http,results,triggers (all).")
@click.option("--code-file", help="Also write the first administrator's one-time code to this file (0600).")
def serve(config: Path | None, **given: str | None) -> None:
    """Run the front door, the result forwarder and what belongs to them.

    The broker is set by FUNCMQ_BROKER_URL (with user and password), its management API by FUNCMQ_MANAGEMENT_URL.
    """
    from funcmq.broker import loop  # noqa: PLC0415  --help imports neither aiohttp nor sqlalchemy
    from funcmq.forwarder.settings import load  # noqa: PLC0415

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load(given, file=config)
    loop.run(_serve(settings))


@click.group()
def db() -> None:
    """The front door's database."""


@db.command("upgrade")
@click.option("--database", "database_url", help="Database URL without a password; with one, use FUNCMQ_DATABASE_URL.")
def upgrade_command(database_url: str | None) -> None:
    """Bring the tables to this release's; `funcmq serve` does it by itself on SQLite."""
    from funcmq.forwarder.database import parse_url, upgrade  # noqa: PLC0415

    url = database_url or os.environ.get("FUNCMQ_DATABASE_URL")
    if not url:
        raise ConfigurationError("No database is configured.", hint="Set FUNCMQ_DATABASE_URL, or pass --database.")
    asyncio.run(upgrade(parse_url(url)))
    click.echo("The database is up to date.", err=True)


async def _serve(settings: ServeSettings) -> None:
    from funcmq.broker.lifeline import parent_gone  # noqa: PLC0415
    from funcmq.forwarder.service import serving  # noqa: PLC0415

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(settings) as running:
        if running.url:
            log.info("listening on %s; RabbitMQ may ask on port %d", running.url, running.auth_port, extra={"action": "listening"})
        else:
            log.info("working without a front door: %s", ", ".join(sorted(settings.only)), extra={"action": "working"})
        if running.code is not None:
            _show_code(running.code, running.url, settings.code_file)
        await _first(stop.wait, parent_gone)
        log.info("shutting down", extra={"action": "stopping"})


async def _first(*waits: Callable[[], Any]) -> None:
    """Return when one of them does."""
    tasks = [asyncio.ensure_future(wait()) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _show_code(code: str, url: str, file: Path | None) -> None:
    if file is not None:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:  # noqa: PTH123  # a mode is given
            opened.write(code + "\n")
    click.echo(
        f"This database is new.  Log in as its administrator `admin` within 10 minutes:\n  funcmq login {url}\n  code: {code}", err=True
    )
