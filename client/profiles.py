"""Writing `config.toml`: what `funcmq login` leaves for every later command."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.settings import config_dir, read_config
from funcmq.broker.signing import PrivateKey


def save_profile(name: str, profile: Mapping[str, str]) -> Path:
    """Add a profile, or update it, and make it the default; the path of the file, which only its owner can read.

    :raises ConfigurationError: it cannot be written, or what is there is not understood.
    """
    config = read_config()
    profiles = config.setdefault("profiles", {})
    profiles[name] = {**profiles.get(name, {}), **profile}
    config["default"] = name
    path = config_dir() / "config.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".config.toml.{os.getpid()}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write("\n".join(_lines(config)) + "\n")
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
    host = socket.gethostname().partition(".")[0] or "key"
    path = config_dir() / "keys" / f"{host}.pem"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        PrivateKey.generate().save(path)
    return PrivateKey.load(path), path
