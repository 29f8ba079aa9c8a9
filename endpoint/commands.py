"""`funcmq endpoint …`: making, starting, stopping and looking at endpoints of this user on this host.

Nothing heavy is imported before it is needed: `--help` is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from funcmq.broker import api
from funcmq.broker.errors import AlreadyRunning, ConfigurationError, Conflict, FuncmqError, NotFound
from funcmq.broker.settings import resolve
from funcmq.endpoint.config import EndpointConfig, endpoint_folder, load, template
from funcmq.endpoint.process import LOOK_S, START_S, detach, running, serve, state

OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", help="How to print.")
PROFILE = click.option("--profile", default=None, help="The profile of config.toml to use.")


if TYPE_CHECKING:
    from funcmq.broker.signing import PrivateKey


@click.group()
def endpoint() -> None:
    """Make, start, stop and look at endpoints."""


# -- init -------------------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.option("--url", default=None, help="The front door; default: as configured.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Worker processes on this host; default: one for every CPU.")
@click.option("--journal-dir", type=click.Path(path_type=Path), default=None, help="A folder on a disk of this host.")
@click.option("--run-dir", type=click.Path(path_type=Path), default=None, help="A folder that all workers see.")
@click.option("--enrolment-code", is_flag=True, help="Register with a one-time code: from FUNCMQ_ENROLMENT, or asked for.")
@click.option("--yes", is_flag=True, help="Trust the owner's keys without asking.")
@PROFILE
def init(
    name: str,
    url: str | None,
    workers: int | None,
    journal_dir: Path | None,
    run_dir: Path | None,
    enrolment_code: bool,
    yes: bool,
    profile: str | None,
) -> None:
    """Make an endpoint: its keys, its registration, and a commented endpoint.toml."""
    folder = endpoint_folder(name)
    if (folder / "endpoint.toml").exists():
        raise Conflict(f"There is an endpoint {name!r} here already.", hint=f"`funcmq endpoint delete {name}` removes it.")
    code = os.environ.get("FUNCMQ_ENROLMENT", "")
    if enrolment_code and not code:
        code = click.prompt("Enrolment code", hide_input=True)
    settings = resolve(url=url, profile=profile)
    answer = asyncio.run(_register(name, settings.url, "" if code else settings.token, code, folder))
    trusted = _show_keys(answer, ask=not yes)
    text = template(name, answer.id, settings.url, workers or os.cpu_count() or 1, str(run_dir or ""), str(journal_dir or ""))
    for path, content in (("token", answer.token + "\n"), ("trusted_keys", trusted), ("endpoint.toml", text)):
        _write(folder / path, content)
    click.echo(f"The endpoint {name} ({answer.id}) is made: {folder}", err=True)
    click.echo(f"Start it with: funcmq endpoint start {name}", err=True)


def _own_key(folder: Path) -> PrivateKey:
    """The endpoint's key, made if it is not there (an `init` that failed may have left one)."""
    from funcmq.broker.signing import PrivateKey

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "key"
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)


async def _register(name: str, url: str, token: str, code: str, folder: Path) -> api.EndpointAnswer:
    key = await asyncio.to_thread(_own_key, folder)
    request = api.EndpointRequest(name=name, key=key.public.text, host=socket.gethostname(), enrolment=code or None)
    from funcmq.broker.http import Api

    async with Api(url, token) as front:
        return await front.call("POST", "/endpoints", request, api.EndpointAnswer)


def _show_keys(answer: api.EndpointAnswer, *, ask: bool) -> str:
    """The text of `trusted_keys`, after showing what it says."""
    from funcmq.broker.signing import PublicKey

    lines = [f"# Who may send work to {answer.name}: ed25519 BASE64 USER-ID comment, one in a line."]
    if not answer.owner_keys:
        click.echo(f"{answer.owner_name} has no signing key yet.  After `funcmq login`: funcmq endpoint trust {answer.name} KEY", err=True)
        return lines[0] + "\n"
    click.echo(f"Work signed by these keys of {answer.owner_name} will run here:", err=True)
    for view in answer.owner_keys:
        key = PublicKey.parse(view.key)
        click.echo(f"  {key.fingerprint}  {view.comment}", err=True)
        lines.append(f"ed25519 {key.text} {answer.owner} {view.comment or answer.owner_name}")
    if ask and sys.stdin.isatty() and not click.confirm("Are these the fingerprints that `funcmq login` has shown?", err=True):
        click.echo("None of them is trusted; add them with `funcmq endpoint trust`.", err=True)
        return lines[0] + "\n"
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


# -- start and stop ---------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.option("--foreground", is_flag=True, help="Stay; log to stderr.")
@click.option("--takeover", is_flag=True, help="Take the endpoint from a journal that is gone.")
def start(name: str, foreground: bool, takeover: bool) -> None:
    """Start an endpoint."""
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
def stop(name: str, now: bool) -> None:
    """Stop an endpoint: it takes no more work, and waits for what runs (stop_grace)."""
    config = load(name)
    pid = running(config)
    if not pid:
        raise NotFound(f"The endpoint {name} does not run on this host.", hint=f"`funcmq endpoint status {name}` says where it runs.")
    for _ in range(2 if now else 1):
        os.kill(pid, signal.SIGTERM)
        time.sleep(LOOK_S)
    deadline = time.monotonic() + config.stop_grace + START_S
    while running(config) == pid:
        if time.monotonic() > deadline:
            raise FuncmqError(f"The endpoint {name} (pid {pid}) has not ended.", hint=f"See {config.run_dir / 'daemon.log'}.")
        time.sleep(LOOK_S)
    click.echo(f"The endpoint {name} has ended.", err=True)


# -- looking ----------------------------------------------------------------------------------------------------------------


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
    for key, value in row.items():
        if value not in ("", None, [], {}, 0):
            click.echo(f"{key:12} {_say(value)}")


def _say(value: Any) -> str:
    """A value of a row as people read it."""
    if not isinstance(value, list):
        return str(value)
    return "; ".join(_say_pool(item) if isinstance(item, dict) else str(item) for item in value)


def _say_pool(pool: dict[str, Any]) -> str:
    why = f" ({pool['reason']})" if pool["reason"] else ""
    return f"{pool['name']}: {pool['workers']} of {pool['capacity']} workers, {pool['busy']} busy, {pool['blocks']} blocks{why}"


def _row(view: api.EndpointView) -> dict[str, Any]:
    """What JSON output carries: every field by its name, those of pools too."""
    import msgspec

    return {**msgspec.structs.asdict(view), "pools": [msgspec.structs.asdict(pool) for pool in view.pools]}


def _status(name: str, profile: str | None) -> dict[str, Any]:
    config = load(name) if (endpoint_folder(name) / "endpoint.toml").exists() else None
    view, why = None, ""
    try:
        views = asyncio.run(_views(config, profile))
        view = next((view for view in views if name in {view.name, view.id}), None)
    except FuncmqError as error:
        if config is None:
            raise
        why = error.message
    if view is None and config is None:
        raise NotFound(
            f"There is no endpoint {name!r}.", hint="`funcmq endpoint list` shows those that you can see; `endpoint init` makes one."
        )
    pid = running(config) if config else None
    row: dict[str, Any] = {"name": name, "id": config.id if config else "", "online": bool(pid)}
    if view is not None:
        row |= _row(view)
    if pid:
        row |= {"pid": pid, "host": socket.gethostname(), "state": state(config).get("state", "") if config else ""}
    return row | ({"unreachable": why} if why else {})


async def _views(config: EndpointConfig | None, profile: str | None) -> list[api.EndpointView]:
    settings = resolve(url=config.url if config else None, profile=profile)
    from funcmq.broker.http import Api

    async with Api(settings.url, settings.token, timeout=10.0) as front:
        return await front.list("/endpoints", api.EndpointView)


@endpoint.command("list")
@OUTPUT
@PROFILE
def list_(output: str, profile: str | None) -> None:
    """List the endpoints that you can see."""
    rows = [_row(view) for view in asyncio.run(_views(None, profile))]
    if output == "json":
        click.echo(json.dumps(rows))
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
    else:
        click.echo(f"{'NAME':20} {'ID':8} {'STATE':8} {'HOST':16} {'WORKERS':>7} {'RUNNING':>7} {'QUEUED':>7}")
        for row in rows:
            workers = sum(pool["workers"] for pool in row["pools"])
            state = "online" if row["online"] else "offline"
            click.echo(f"{row['name']:20} {row['id'][-8:]:8} {state:8} {row['host']:16} {workers:7} {row['running']:7} {row['queued']:7}")


# -- the rest ---------------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.argument("key")
@click.option("--user", default=None, help="Id of the user whose key it is; default: you. `*`: a front door that signs for others.")
@click.option("--comment", default="", help="A word on whose it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROFILE
def trust(name: str, key: str, user: str | None, comment: str, yes: bool, profile: str | None) -> None:
    """Trust a signing KEY (base64) to send work to this endpoint."""
    from funcmq.broker.ids import is_id
    from funcmq.broker.signing import PublicKey
    from funcmq.endpoint.trust import ANYBODY, Trusted, parse

    config = load(name)
    public = PublicKey.parse(key)
    if user is None:
        user = asyncio.run(_me(config, profile)).user
    if user != ANYBODY and not is_id(user):
        raise ConfigurationError(f"{user!r} is no user id.", hint="A user id has 32 hex digits; `funcmq whoami` shows yours.")
    line = Trusted(public, user, comment)
    known = config.trusted_keys.read_text(encoding="utf-8") if config.trusted_keys.exists() else ""
    if any(old.key == public and old.user == user for old in parse(known)):
        click.echo(f"{public.fingerprint} is trusted already.", err=True)
        return
    click.echo(f"Work signed by {public.fingerprint} for the user {user} will run on {name}.", err=True)
    if not yes and sys.stdin.isatty():
        click.confirm("Is that what you want?", abort=True, err=True)
    _write(config.trusted_keys, known + ("" if known.endswith("\n") or not known else "\n") + line.line + "\n")


async def _me(config: EndpointConfig, profile: str | None) -> api.Me:
    settings = resolve(url=config.url, profile=profile)
    from funcmq.broker.http import Api

    async with Api(settings.url, settings.token) as front:
        return await front.call("GET", "/me", None, api.Me)


@endpoint.command()
@click.argument("name")
def drain(name: str) -> None:
    """Have an endpoint take no more work; what it has, it runs."""
    config = load(name)
    pid = running(config)
    if not pid:
        raise NotFound(f"The endpoint {name} does not run on this host.", hint=f"`funcmq endpoint status {name}` says where it runs.")
    os.kill(pid, signal.SIGUSR1)
    click.echo(f"The endpoint {name} takes no more work; `funcmq endpoint stop {name}` ends it.", err=True)


@endpoint.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROFILE
def delete(name: str, yes: bool, profile: str | None) -> None:
    """Remove an endpoint: its registration, its files and its journal."""
    config = load(name)
    if (pid := running(config)) is not None:
        raise AlreadyRunning(f"The endpoint {name} runs, as pid {pid}.", hint=f"`funcmq endpoint stop {name}` first.")
    if not yes:
        click.confirm(f"Remove the endpoint {name}, its key, and every task and result that its journal still holds?", abort=True, err=True)
    with contextlib.suppress(NotFound):
        asyncio.run(_unregister(config, profile))
    for folder in (config.journal_dir, config.run_dir, config.folder):
        shutil.rmtree(folder, ignore_errors=True)
    click.echo(f"The endpoint {name} is removed.", err=True)


async def _unregister(config: EndpointConfig, profile: str | None) -> None:
    settings = resolve(url=config.url, profile=profile)
    from funcmq.broker.http import Api

    async with Api(settings.url, settings.token) as front:
        await front.tell("DELETE", f"/endpoints/{config.id}")
