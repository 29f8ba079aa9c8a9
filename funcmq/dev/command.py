"""`funcmq dev`: a whole private fabric for as long as it runs."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import click

PROGRAM = """\
import platform
from funcmq import Executor
with Executor() as fabric:
    print(fabric.submit(platform.platform).result())
    print(list(fabric.map(abs, range(-3, 4))))
"""


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep everything in this folder between runs; otherwise nothing is kept.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of the front door; otherwise a free one.")
@click.option("--workers", type=click.IntRange(0), default=0, help="Workers of the endpoint; otherwise one for each core, at least two.")
@click.option(
    "--database",
    default="",
    metavar="URL",
    help="Database of the front door (FUNCMQ_DATABASE_URL with its password); otherwise a SQLite file in the folder.",
)
@click.option(
    "--broker", default="", metavar="URL", help="A broker prepared as deploy/rabbitmq says; its credentials in FUNCMQ_BROKER_URL."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def dev(data: Path | None, port: int, workers: int, database: str, broker: str, command: tuple[str, ...]) -> int:
    """Start RabbitMQ, a front door and one endpoint, all private to this machine.

    Without COMMAND it runs until Ctrl-C, and is the profile `dev` of your other commands and programs meanwhile.  With COMMAND, that runs
    inside it (FUNCMQ_URL, FUNCMQ_TOKEN, FUNCMQ_KEY and FUNCMQ_ENDPOINT are set), everything is taken down after it, and its exit status is
    passed on.
    """
    environment = os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))}
    if command and not shutil.which(command[0], path=environment["PATH"]):
        raise click.UsageError(f"There is no program {command[0]!r}.")
    from funcmq.dev import databases  # noqa: PLC0415  --help imports nothing of all this
    from funcmq.dev.brokers import with_credentials  # noqa: PLC0415
    from funcmq.dev.session import Session  # noqa: PLC0415
    from funcmq.dev.stack import Options  # noqa: PLC0415

    broker = with_credentials(broker, os.environ.get("FUNCMQ_BROKER_URL", ""))
    database = databases.with_credentials(database, os.environ.get("FUNCMQ_DATABASE_URL", ""))
    options = Options(data, port, workers, broker, database)
    return asyncio.run(Session(command, environment).run(options))
