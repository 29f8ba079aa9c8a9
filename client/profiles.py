"""Profiles: what `funcmq login` leaves for every later command, and which of them is used."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from funcmq.broker.errors import ConfigurationError, NotFound
from funcmq.broker.settings import config_dir, config_file, current, read_config, running_dev
from funcmq.client.output import field, output_option, say, show_rows

if TYPE_CHECKING:
    from funcmq.broker.signing import PrivateKey

DEV = "dev"


def save_profile(name: str, profile: Mapping[str, str]) -> Path:
    """Add a profile, or update it, and make it the default; the path of the file, which only its owner can read.

    :raises ConfigurationError: it cannot be written, or what is there is not understood.
    """
    config = read_config()
    profiles = config.setdefault("profiles", {})
    profiles[name] = {**profiles.get(name, {}), **profile}
    config["default"] = name
    return _save(config)


def _save(config: Mapping[str, Any]) -> Path:
    """Write the file whole, or not at all."""
    path = config_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".config.toml.{os.getpid()}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(_lines(config)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as broken:
        raise ConfigurationError(f"Cannot write {path}: {broken.strerror}.", hint="Set FUNCMQ_HOME to a folder of yours.") from None
    return path


def _lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """TOML of nested tables of plain values.  A JSON string of printable text is a TOML string."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{json.dumps(key)}"
            if any(not isinstance(inner, Mapping) for inner in value.values()):
                yield f"\n[{name}]"
            yield from _lines(value, f"{name}.")


def machine_key() -> tuple[PrivateKey, Path]:
    """This machine's signing key, made at first use.  Home folders are shared between hosts, so it is named after this one."""
    from funcmq.broker.signing import PrivateKey  # noqa: PLC0415  --help does without cryptography

    host = socket.gethostname().partition(".")[0] or "key"
    path = config_dir() / "keys" / f"{host}.pem"
    if not path.exists():
        for folder in (config_dir(), path.parent):  # `parents` would leave those above open to others
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        PrivateKey.generate().save(path)
    return PrivateKey.load(path), path


@click.group("profile")
def profile() -> None:
    """List and choose profiles: the fabrics that you are logged in to."""


@profile.command("list")
@output_option
def list_profiles(output: str) -> None:
    """List the profiles of config.toml, and `dev` while a `funcmq dev` of yours runs."""
    known = {name: dict(stored) for name, stored in read_config().get("profiles", {}).items()}
    if DEV not in known and (running := running_dev(required=False)):
        known[DEV] = running
    chosen = current() or (DEV if DEV in known else None)
    rows = [
        {
            "name": name,
            "url": stored.get("url", ""),
            "endpoint": stored.get("endpoint", ""),
            "key": stored.get("key", ""),
            "logged_in": bool(stored.get("token")),
            "current": name == chosen,
        }
        for name, stored in known.items()
    ]
    columns = {"": lambda row: "*" if row["current"] else "", "NAME": field("name"), "URL": field("url"), "ENDPOINT": field("endpoint")}
    show_rows(rows, output, columns)


@profile.command("use")
@click.argument("name")
def use_profile(name: str) -> None:
    """Make a profile the one that is used where no other is named."""
    config = read_config()
    known = config.get("profiles", {})
    if name not in known and name != DEV:
        raise NotFound(f"There is no profile {name!r}.", hint=f"Known: {', '.join(sorted({*known, DEV}))}; `funcmq login URL` makes one.")
    if name == DEV and DEV not in known:  # what is used where nothing else is configured
        config.pop("default", None)
    else:
        config["default"] = name
    say(f"The profile {name!r} is used from now on ({_save(config)}).")
