"""`funcmq endpoint …`: making, starting, stopping and looking at endpoints of this user on this host.

Nothing heavy is imported before it is needed: `--help` is quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from funcmq.broker import api
from funcmq.broker.errors import AlreadyRunning, Conflict, ConfigurationError, FuncmqError, NotFound
from funcmq.broker.http import Api
from funcmq.broker.settings import resolve
from funcmq.endpoint.config import EndpointConfig, endpoint_folder, load, template

T = TypeVar("T")

START_S = 60.0
LOOK_S = 0.05
OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json", "jsonl"]), default="table", help="How to print.")
PROFILE = click.option("--profile", default=None, help="The profile of config.toml to use.")


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
    enrolment_code: bool,  # noqa: FBT001 (click passes it by name)
    yes: bool,  # noqa: FBT001
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


async def _register(name: str, url: str, token: str, code: str, folder: Path) -> api.EndpointAnswer:
    from funcmq.broker.signing import PrivateKey

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "key"
    if not path.exists():
        PrivateKey.generate().save(path)
    key = PrivateKey.load(path)
    request = api.EndpointRequest(name=name, key=key.public.text, host=socket.gethostname(), enrolment=code or None)
    async with Api(url, token) as front:
        return await front.call("POST", "/endpoints", request, api.EndpointAnswer)


def _show_keys(answer: api.EndpointAnswer, *, ask: bool) -> str:
    """The text of `trusted_keys`, after showing what it says."""
    from funcmq.broker.signing import PublicKey

    lines = [f"# Who may send work to {answer.name}: ed25519 BASE64 USER-ID comment, one in a line."]
    if not answer.owner_keys:
        click.echo(f"{answer.owner_name} has no signing key yet; after `funcmq login` there: funcmq endpoint trust {answer.name} KEY", err=True)
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
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


# -- start and stop ---------------------------------------------------------------------------------------------------------


@endpoint.command()
@click.argument("name")
@click.option("--foreground", is_flag=True, help="Stay; log to stderr.")
@click.option("--takeover", is_flag=True, help="Take the endpoint from a journal that is gone.")
def start(name: str, foreground: bool, takeover: bool) -> None:  # noqa: FBT001
    """Start an endpoint."""
    config = load(name)
    if foreground:
        sys.exit(serve(config, takeover=takeover))
    if (pid := _running(config)) is not None:
        raise AlreadyRunning(f"The endpoint {name} already runs here, as pid {pid}.", hint=f"`funcmq endpoint stop {name}` ends it.")
    pid = _detach(config, takeover=takeover)
    click.echo(f"The endpoint {name} is connected, pid {pid}; log: {config.run_dir / 'daemon.log'}", err=True)


def serve(config: EndpointConfig, *, takeover: bool) -> int:
    """Run the daemon here, to its end; its exit status."""
    from funcmq.endpoint.daemon import Daemon

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=os.environ.get("FUNCMQ_LOG", "INFO"))
    for noisy in ("parsl", "aiormq", "aio_pika"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return run(Daemon(config, takeover=takeover).run())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on the fastest loop there is; an error out of a task group comes as itself."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(work)
    except BaseExceptionGroup as group:
        if found := group.subgroup(FuncmqError):
            raise _first(found) from None
        raise


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _loop_factory() -> Any:
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return None


def _detach(config: EndpointConfig, *, takeover: bool) -> int:
    """Start the daemon in a session of its own, and wait until it is connected.

    :raises FuncmqError: it has ended; its last words are the message.
    """
    config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    state = config.journal_dir / "state.json"
    state.unlink(missing_ok=True)
    command = [sys.executable, "-m", "funcmq.endpoint", config.name, *(["--takeover"] if takeover else [])]
    with open(os.open(config.run_dir / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
    deadline = time.monotonic() + START_S
    said: dict[str, Any] = {}
    while time.monotonic() < deadline:
        said = _state(config)
        if said.get("pid") == process.pid and said.get("state") == "connected":
            process.returncode = 0  # it goes on without us
            return process.pid
        if process.poll() is not None:
            raise _ended(config, process.returncode, begin)
        time.sleep(LOOK_S)
    process.returncode = 0
    raise FuncmqError(
        f"The endpoint {config.name} (pid {process.pid}) is not connected after {START_S:g} s: {said.get('reason') or said.get('state', 'starting')}.",
        hint=f"It goes on trying; see {config.run_dir / 'daemon.log'}.",
    )


def _ended(config: EndpointConfig, status: int, begin: int) -> FuncmqError:
    log = config.run_dir / "daemon.log"
    with log.open("rb") as file:
        file.seek(begin)
        tail = file.read()[-2000:].decode(errors="replace").strip()
    error = FuncmqError(f"The endpoint {config.name} did not start (status {status}):\n{tail}", hint=f"Its log: {log}")
    error.exit = status if status > 0 else 6  # type: ignore[misc]
    return error


def _state(config: EndpointConfig) -> dict[str, Any]:
    """What a daemon on this host last said of itself."""
    try:
        said: dict[str, Any] = json.loads((config.journal_dir / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said


def _running(config: EndpointConfig) -> int | None:
    """Pid of the daemon that holds the journal on this host; the lock tells, not a file that a killed one left."""
    import fcntl

    try:
        lock = os.open(config.journal_dir / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        words = os.pread(lock, 100, 0).decode(errors="replace").split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    finally:
        os.close(lock)
    return None


@endpoint.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="Do not wait for running tasks.")
def stop(name: str, now: bool) -> None:  # noqa: FBT001
    """Stop an endpoint: it takes no more work, and waits for what runs (stop_grace)."""
    config = load(name)
    pid = _running(config)
    if not pid:
        raise NotFound(f"The endpoint {name} does not run on this host.", hint=f"`funcmq endpoint status {name}` says where it runs.")
    for _ in range(2 if now else 1):
        os.kill(pid, signal.SIGTERM)
        time.sleep(LOOK_S)
    deadline = time.monotonic() + config.stop_grace + START_S
    while _running(config) == pid:
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
        if value not in ("", None, [], {}):
            click.echo(f"{key:10} {value if not isinstance(value, list) else ', '.join(map(str, value))}")


def _status(name: str, profile: str | None) -> dict[str, Any]:
    config = load(name) if (endpoint_folder(name) / "endpoint.toml").exists() else None
    view, why = None, ""
    try:
        views = asyncio.run(_views(config, profile))
        view = next((view for view in views if view.name == name or view.id == name), None)
    except FuncmqError as error:
        if config is None:
            raise
        why = error.message
    if view is None and config is None:
        raise NotFound(f"There is no endpoint {name!r}.")
    pid = _running(config) if config else None
    row: dict[str, Any] = {"name": name, "id": config.id if config else "", "online": bool(pid)}
    if view is not None:
        import msgspec

        row |= msgspec.to_builtins(view)
    if pid:
        row |= {"pid": pid, "host": socket.gethostname(), "state": _state(config).get("state", "") if config else ""}
    return row | ({"unreachable": why} if why else {})


async def _views(config: EndpointConfig | None, profile: str | None) -> list[api.EndpointView]:
    settings = resolve(url=config.url if config else None, profile=profile)
    async with Api(settings.url, settings.token, timeout=10.0) as front:
        return await front.list("/endpoints", api.EndpointView)


@endpoint.command("list")
@OUTPUT
@PROFILE
def list_(output: str, profile: str | None) -> None:
    """List the endpoints that you can see."""
    import msgspec

    rows = [msgspec.to_builtins(view) for view in asyncio.run(_views(None, profile))]
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
def trust(name: str, key: str, user: str | None, comment: str, yes: bool, profile: str | None) -> None:  # noqa: FBT001
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
    async with Api(settings.url, settings.token) as front:
        return await front.call("GET", "/me", None, api.Me)


@endpoint.command()
@click.argument("name")
def drain(name: str) -> None:
    """Have an endpoint take no more work; what it has, it runs."""
    config = load(name)
    pid = _running(config)
    if not pid:
        raise NotFound(f"The endpoint {name} does not run on this host.")
    os.kill(pid, signal.SIGUSR1)
    click.echo(f"The endpoint {name} takes no more work; `funcmq endpoint stop {name}` ends it.", err=True)


@endpoint.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROFILE
def delete(name: str, yes: bool, profile: str | None) -> None:  # noqa: FBT001
    """Remove an endpoint: its registration, its files and its journal."""
    config = load(name)
    if (pid := _running(config)) is not None:
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
    async with Api(settings.url, settings.token) as front:
        await front.tell("DELETE", f"/endpoints/{config.id}")
