"""`funcmq endpoint …`: starting, stopping and looking at endpoints, on their own host or from any other one.

On the daemon's own host nothing needs the fabric; from elsewhere the front door passes on what the owner says, and the daemon answers.
Nothing heavy is imported before it is needed: `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import click

from funcmq.broker.errors import AlreadyRunning, EndpointOffline, FuncmqError
from funcmq.endpoint import doctor_commands, setup_commands, trust_commands
from funcmq.endpoint.config import EndpointConfig, load
from funcmq.endpoint.fabric import ask, find, local
from funcmq.endpoint.looks import OUTPUT, PROFILE, people, print_rows, row_of
from funcmq.endpoint.process import LOOK_S, START_S, detach, running, serve, state

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.http import Api

AFAR_S = 90.0
"""How long `stop` waits for a daemon on another host."""
ASK_AGAIN_S = 0.5
TIMED_OUT = 5
LINE = 200
"""Bytes of a line of a log, roughly."""


@click.group()
def endpoint() -> None:
    """Make, start, stop and look at endpoints."""


# -- start and stop ---------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.option("--foreground", is_flag=True, help="Stay; log to stderr too.")
@click.option("--takeover", is_flag=True, help="Take the endpoint from a journal that is gone.")
def start(name: str, foreground: bool, takeover: bool) -> None:
    """Start an endpoint on this host; it goes on when you log out."""
    config = load(name)
    if foreground:
        sys.exit(serve(config, takeover=takeover))
    if (pid := running(config)) is not None:
        raise AlreadyRunning(f"The endpoint {name} already runs here, as pid {pid}.", hint=f"`funcmq endpoint stop {name}` ends it.")
    pid = detach(config, takeover=takeover)
    click.echo(f"The endpoint {name} is connected, pid {pid}; log: {config.run_dir / 'daemon.log'}", err=True)


@endpoint.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="Do not wait for running tasks.")
@PROFILE
def stop(name: str, now: bool, profile: str | None) -> None:
    """Stop an endpoint, wherever it runs: it takes no more work, and waits for what runs (stop_grace)."""
    config = local(name)
    if config is not None and (pid := running(config)):
        _stop_here(config, pid, now=now)
    else:
        host = _stop_afar(config, name, profile, now=now)
        click.echo(f"The endpoint {name} has ended on {host}.", err=True)
        return
    click.echo(f"The endpoint {name} has ended.", err=True)


def _stop_here(config: EndpointConfig, pid: int, *, now: bool) -> None:
    for _ in range(2 if now else 1):
        os.kill(pid, signal.SIGTERM)
        time.sleep(LOOK_S)
    deadline = time.monotonic() + config.stop_grace + START_S
    while running(config) == pid:
        if time.monotonic() > deadline:
            raise _late(f"The endpoint {config.name} (pid {pid}) has not ended.", f"See {config.run_dir / 'daemon.log'}.")
        time.sleep(LOOK_S)


def _stop_afar(config: EndpointConfig | None, name: str, profile: str | None, *, now: bool) -> str:
    """Say it, again if it is to be at once, and wait; the host."""

    async def stop(front: Api) -> str:
        import asyncio

        view = await find(front, config.id if config else name)
        told = await _order(front, view, "stop")
        if now:
            with contextlib.suppress(EndpointOffline):  # it may have ended already
                await _order(front, view, "stop")
        click.echo(f"The daemon on {told.host} (pid {told.pid}) is stopping.", err=True)
        deadline = time.monotonic() + AFAR_S
        while (seen := await find(front, view.id)).online and seen.since == view.since:
            if time.monotonic() > deadline:
                raise _late(f"The endpoint {name} on {told.host} has not ended after {AFAR_S:g} s.", f"See {told.log} there.")
            await asyncio.sleep(ASK_AGAIN_S)
        return told.host

    return ask(config, profile, stop)


async def _order(front: Api, view: api.EndpointView, verb: Literal["drain", "stop", "logs"], size: int = 0) -> api.OrderAnswer:
    from funcmq.broker import api

    return await front.call("POST", f"/endpoints/{view.id}/orders", api.OrderRequest(verb=verb, size=size), api.OrderAnswer)


def _late(message: str, hint: str) -> FuncmqError:
    error = FuncmqError(message, hint=hint)
    error.exit = TIMED_OUT  # type: ignore[misc]
    return error


@endpoint.command()
@click.argument("name")
@PROFILE
def drain(name: str, profile: str | None) -> None:
    """Have an endpoint take no more work, wherever it runs; what it has, it runs."""
    config = local(name)
    host = socket.gethostname()
    if config is not None and (pid := running(config)):
        os.kill(pid, signal.SIGUSR1)
    else:
        host = _ask_order(config, name, profile, "drain").host
    click.echo(f"The endpoint {name} on {host} takes no more work; `funcmq endpoint stop {name}` ends it.", err=True)


def _ask_order(
    config: EndpointConfig | None, name: str, profile: str | None, verb: Literal["drain", "logs"], size: int = 0
) -> api.OrderAnswer:
    async def order(front: Api) -> api.OrderAnswer:
        return await _order(front, await find(front, config.id if config else name), verb, size)

    return ask(config, profile, order)


# -- looking ----------------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.option("-n", "--lines", type=click.IntRange(1), default=100, show_default=True, help="At most so many, and at most 256 KiB.")
@OUTPUT
@PROFILE
def logs(name: str, lines: int, output: str, profile: str | None) -> None:
    """Show the end of an endpoint's log, wherever it runs."""
    from funcmq.endpoint.logfile import MOST_LOG, log_file, tail

    config = local(name)
    size = min(MOST_LOG, lines * LINE * 5)
    here = log_file(config.run_dir) if config else None
    if config is not None and here is not None and (pid := running(config)) is not None:
        said = {"host": socket.gethostname(), "pid": pid, "log": str(here), "text": tail(here, size)}
    else:
        try:
            told = _ask_order(config, name, profile, "logs", size)
            said = {"host": told.host, "pid": told.pid, "log": told.log, "text": told.text}
        except FuncmqError as away:
            if config is None or here is None or not here.exists():
                raise
            click.echo(f"{away.message}  What its last run on this host has left:", err=True)
            said = {"host": state(config).get("host", socket.gethostname()), "pid": 0, "log": str(here), "text": tail(here, size)}
    said["text"] = "".join(str(said["text"]).splitlines(keepends=True)[-lines:])
    if output != "table":
        click.echo(json.dumps(said))
        return
    click.echo(f"{said['log']} on {said['host']}:", err=True)
    click.echo(said["text"], nl=False)


@endpoint.command()
@click.argument("name")
@OUTPUT
@PROFILE
def status(name: str, output: str, profile: str | None) -> None:
    """Show one endpoint: as the fabric sees it, and its daemon if that is on this host."""
    row = _status(name, profile)
    if output != "table":
        click.echo(json.dumps(row))
        return
    for key, value in people(row).items():
        click.echo(f"{key:12} {value}")


def _status(name: str, profile: str | None) -> dict[str, Any]:
    config = local(name)
    view, why = None, ""
    try:
        view = ask(config, profile, lambda front: find(front, config.id if config else name))
    except FuncmqError as error:
        if config is None:
            raise
        why = error.message
    pid = running(config) if config else None
    row: dict[str, Any] = {"name": name, "id": config.id if config else "", "online": bool(pid)}
    if view is not None:
        row |= row_of(view)
        row["state"] = "connected" if view.online else "offline"
    if pid and config:
        row |= {"pid": pid, "host": socket.gethostname(), "state": state(config).get("state", "")}
    return row | ({"unreachable": why} if why else {})


@endpoint.command("list")
@OUTPUT
@PROFILE
def list_(output: str, profile: str | None) -> None:
    """List the endpoints that you can see."""
    from funcmq.broker import api

    print_rows(ask(None, profile, lambda front: front.list("/endpoints", api.EndpointView)), output)


for _command in (*setup_commands.COMMANDS, *trust_commands.COMMANDS, *doctor_commands.COMMANDS):
    endpoint.add_command(_command)
