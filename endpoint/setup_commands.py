"""`funcmq endpoint init`, `enrol`, `install-service`, `delete`: an endpoint comes and goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from funcmq.broker.errors import AlreadyRunning, Conflict, NotFound
from funcmq.endpoint.config import EndpointConfig, default_journal_dir, endpoint_folder, pools_of, template
from funcmq.endpoint.fabric import ask, find, local
from funcmq.endpoint.looks import OUTPUT, PROFILE
from funcmq.endpoint.process import running
from funcmq.endpoint.schedulers import detect

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.http import Api
    from funcmq.broker.signing import PrivateKey

CODE_VARIABLE = "FUNCMQ_ENROLMENT"


@click.command()
@click.argument("name")
@click.option("--url", default=None, help="The front door; default: as configured.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Worker processes on this host; default: one for every CPU.")
@click.option("--from", "source", type=click.Path(path_type=Path), default=None, help="Take the pools of this endpoint.toml.")
@click.option("--journal-dir", type=click.Path(path_type=Path), default=None, help="A folder on a disk of this host.")
@click.option("--run-dir", type=click.Path(path_type=Path), default=None, help="A folder that all workers see.")
@click.option("--enrolment-code", is_flag=True, help=f"Register with a one-time code: from {CODE_VARIABLE}, or asked for.")
@click.option("--yes", is_flag=True, help="Trust the owner's keys without asking.")
@PROFILE
def init(
    name: str,
    url: str | None,
    workers: int | None,
    source: Path | None,
    journal_dir: Path | None,
    run_dir: Path | None,
    enrolment_code: bool,
    yes: bool,
    profile: str | None,
) -> None:
    """Make an endpoint: its keys, its registration, and a commented endpoint.toml."""
    from funcmq.broker.settings import resolve

    folder = endpoint_folder(name)
    if (folder / "endpoint.toml").exists():
        raise Conflict(f"There is an endpoint {name!r} here already.", hint=f"`funcmq endpoint delete {name}` removes it.")
    if source is not None and workers is not None:
        raise click.UsageError("--from and --workers exclude each other: the file says how many workers a pool has.")
    pools = pools_of(source) if source else ""
    code = _code() if enrolment_code or os.environ.get(CODE_VARIABLE) else ""
    settings = resolve(url=url, profile=profile)
    answer = _register(name, settings.url, "" if code else settings.token, code, folder)
    write(folder / "token", answer.token + "\n")
    trusted = _show_keys(answer, ask_=not yes)
    run, journal = (str(path.absolute()) if path else "" for path in (run_dir, journal_dir))
    write(folder / "trusted_keys", trusted)
    write(folder / "endpoint.toml", template(name, answer.id, settings.url, workers or os.cpu_count() or 1, run, journal, pools))
    click.echo(f"The endpoint {name} ({answer.id}) of {answer.owner_name} is made: {folder / 'endpoint.toml'}", err=True)
    _say_scheduler()
    click.echo(f"Look whether it can work: funcmq endpoint doctor {name}\nStart it:                 funcmq endpoint start {name}", err=True)


def _code() -> str:
    """The enrolment code, which is never an argument: those are seen by everybody on this host."""
    code = os.environ.get(CODE_VARIABLE, "").strip()
    if code:
        return code
    if not sys.stdin.isatty():
        raise click.UsageError(f"There is no terminal to ask for the enrolment code: set {CODE_VARIABLE}.")
    return str(click.prompt("Enrolment code", hide_input=True, err=True)).strip()


def _say_scheduler() -> None:
    found = detect()
    if found is None:
        click.echo("No batch system is on this host: its workers run here.", err=True)
    else:
        click.echo(f"{found.name} is on this host ({found.program}); this release runs workers on this host all the same.", err=True)


def _own_key(folder: Path) -> PrivateKey:
    """The endpoint's key, made if it is not there (an `init` that failed may have left one)."""
    from funcmq.broker.signing import PrivateKey

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    path = folder / "key"
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)


def _register(name: str, url: str, token: str, code: str, folder: Path) -> api.EndpointAnswer:
    import asyncio

    from funcmq.broker import api
    from funcmq.broker.http import Api

    key = _own_key(folder)
    request = api.EndpointRequest(name=name, key=key.public.text, host=socket.gethostname(), enrolment=code or None)

    async def register() -> api.EndpointAnswer:
        async with Api(url, token) as front:
            return await front.call("POST", "/endpoints", request, api.EndpointAnswer)

    return asyncio.run(register())


def _show_keys(answer: api.EndpointAnswer, *, ask_: bool) -> str:
    """The text of `trusted_keys`, after showing what it says."""
    from funcmq.broker.signing import PublicKey

    lines = [f"# Who may send work to {answer.name}: ed25519 BASE64 USER-ID comment, one in a line."]
    if not answer.owner_keys:
        how = f"funcmq endpoint trust {answer.name} FINGERPRINT"
        click.echo(f"{answer.owner_name} has no signing key yet.  After `funcmq login` there: {how}", err=True)
        return lines[0] + "\n"
    click.echo(f"Work signed by these keys of {answer.owner_name} will run here:", err=True)
    for view in answer.owner_keys:
        key = PublicKey.parse(view.key)
        click.echo(f"  {key.fingerprint}  {view.comment}", err=True)
        lines.append(f"ed25519 {key.text} {answer.owner} {view.comment or answer.owner_name}")
    if ask_ and sys.stdin.isatty() and not click.confirm("Are these the fingerprints that `funcmq login` has shown?", err=True):
        click.echo(f"None of them is trusted; add them with `funcmq endpoint trust {answer.name} FINGERPRINT`.", err=True)
        return lines[0] + "\n"
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write a private file whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@click.command()
@OUTPUT
@PROFILE
def enrol(output: str, profile: str | None) -> None:
    """Print a one-time code with which another machine makes an endpoint of yours; it is valid for 10 minutes."""
    import json

    from funcmq.broker import api

    async def enrol(front: Api) -> tuple[str, api.EnrolmentAnswer]:
        return front.url, await front.call("POST", "/enrolments", None, api.EnrolmentAnswer)

    url, answer = ask(None, profile, enrol)
    if output != "table":
        click.echo(json.dumps({"url": url, "code": answer.code, "expires": answer.expires}))
        return
    click.echo(f"On the other machine, within 10 minutes: funcmq endpoint init NAME --url {url} --enrolment-code", err=True)
    click.echo(answer.code)


@click.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROFILE
def delete(name: str, yes: bool, profile: str | None) -> None:
    """Remove an endpoint: its registration, and, on its own host, its files and its journal."""
    config = local(name)
    if config is not None and (pid := running(config)) is not None:
        raise AlreadyRunning(f"The endpoint {name} runs, as pid {pid}.", hint=f"`funcmq endpoint stop {name}` first.")
    what = "its key, and every task and result that its journal still holds" if config else "and every task that it has not ended"
    if not yes:
        click.confirm(f"Remove the endpoint {name}, {what}?", abort=True, err=True)

    async def unregister(front: Api) -> None:
        view = await find(front, config.id if config else name)
        if view.online:
            raise AlreadyRunning(f"The endpoint {name} runs on {view.host}.", hint=f"`funcmq endpoint stop {name}` first.")
        await front.tell("DELETE", f"/endpoints/{view.id}")

    try:
        ask(config, profile, unregister)
    except NotFound:
        if config is None:
            raise
    if config is not None:
        _remove_files(config)
    click.echo(f"The endpoint {name} is removed.", err=True)


def _remove_files(config: EndpointConfig) -> None:
    for folder in (config.journal_dir, config.run_dir, config.folder):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # the folder of all journals of this user, when this was the last
        if config.journal_dir == default_journal_dir(config.name):
            config.journal_dir.parent.rmdir()
    with contextlib.suppress(OSError):
        unit_file(config.name).unlink()


# -- systemd ----------------------------------------------------------------------------------------------------------------

UNIT = """\
[Unit]
Description=funcmq endpoint {name}
After=network-online.target

[Service]
Type=exec
ExecStart={python} -P -m funcmq endpoint start {name} --foreground
{environment}Restart=on-failure
RestartSec=5
# fenced by a later lease, and mistakes in the configuration: starting again changes nothing
RestartPreventExitStatus=76 78
KillMode=mixed
TimeoutStopSec={stop_s}

[Install]
WantedBy=default.target
"""


def unit_file(name: str) -> Path:
    """The systemd unit of an endpoint, of this user."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return home / "systemd" / "user" / f"funcmq-endpoint-{name}.service"


def unit(config: EndpointConfig) -> str:
    """Its text."""
    home = os.environ.get("FUNCMQ_HOME")
    environment = f'Environment="FUNCMQ_HOME={home}"\n' if home else ""
    return UNIT.format(name=config.name, python=sys.executable, environment=environment, stop_s=int(config.stop_grace) + 60)


@click.command("install-service")
@click.argument("name")
def install_service(name: str) -> None:
    """Have systemd start an endpoint with this host, and again when it dies: a unit of your user."""
    import subprocess

    from funcmq.endpoint.config import load

    config, path = load(name), unit_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit(config), encoding="utf-8")
    click.echo(f"Wrote {path}.", err=True)
    service = path.name
    for words in (["daemon-reload"], ["enable", service]):
        command = ["systemctl", "--user", *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)  # noqa: S603 (fixed words)
            failed = (done.stderr.strip() or f"status {done.returncode}") if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as broken:
            failed = str(broken)
        if failed:
            click.echo(f"`{' '.join(command)}` failed: {failed.splitlines()[-1]}", err=True)
            click.echo(f"Where systemd runs for your user: systemctl --user enable --now {service}", err=True)
            break
        click.echo(f"Ran `{' '.join(command)}`.", err=True)
    else:
        stop = f"funcmq endpoint stop {name} && " if running(config) is not None else ""
        click.echo(f"Start it now: {stop}systemctl --user start {service}", err=True)
    click.echo(f"So that it runs while you are logged out: loginctl enable-linger {os.environ.get('USER') or os.getuid()}", err=True)


COMMANDS = (init, enrol, install_service, delete)
