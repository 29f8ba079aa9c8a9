"""Where things of this user are, and which fabric is meant: argument, then environment, then profile.

A profile is a table of `config.toml`: `url`, `token`, `key` (path), `endpoint`.  While a `funcmq dev` of the same user runs, it is the
profile `dev`, used where nothing else is configured.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from funcmq.broker.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Settings:
    """What a caller needs to reach a fabric; '' and None where nothing is known."""

    url: str
    token: str = field(repr=False)
    key: Path | None
    endpoint: str


def config_dir() -> Path:
    """`FUNCMQ_HOME`, or the folder that the system means for configuration."""
    if home := os.environ.get("FUNCMQ_HOME"):
        return Path(home)
    if os.name == "nt":
        return Path(os.environ.get("APPDATA", Path.home())) / "funcmq"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "funcmq"


def dev_file() -> Path:
    """What a running `funcmq dev` says of itself: its pid and the settings of its fabric."""
    return config_dir() / "dev.json"


def resolve(
    url: str | None = None, token: str | None = None, key: str | None = None, endpoint: str | None = None, profile: str | None = None
) -> Settings:
    """The settings in force.

    :raises ConfigurationError: no fabric is configured, the URL is none, the profile named does not exist, or the file cannot be read.
    """
    given = {"url": url, "token": token, "key": key, "endpoint": endpoint}
    environment = {name: os.environ.get(f"FUNCMQ_{name.upper()}") for name in given}
    # a token belongs to its URL: a profile completes what it names itself, and never lends its token to another fabric
    stored = _profile(profile)
    named = {name: value or environment[name] for name, value in given.items()}
    if named["url"] and stored.get("url") not in (None, named["url"]):
        stored = {}
    found = {name: value or stored.get(name) or "" for name, value in named.items()}
    if not found["url"]:
        raise ConfigurationError("No fabric is configured.", hint="Try `funcmq dev`, or `funcmq login URL`.")
    if not found["url"].startswith(("http://", "https://")):
        raise ConfigurationError(f"{found['url']!r} is not the URL of a front door.", hint="It begins with https:// or http://.")
    return Settings(found["url"].rstrip("/"), found["token"], Path(found["key"]).expanduser() if found["key"] else None, found["endpoint"])


def read_config() -> dict[str, Any]:
    """`config.toml` as it stands, {} where there is none.

    :raises ConfigurationError: it is not TOML, or cannot be read.
    """
    path = config_dir() / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as broken:
        raise ConfigurationError(
            f"{path} cannot be read: {broken}.", hint="Correct it, or move it away and run `funcmq login URL`."
        ) from None


def _profile(name: str | None) -> dict[str, str]:
    config = read_config()
    profiles = config.get("profiles", {})
    name = name or os.environ.get("FUNCMQ_PROFILE") or config.get("default")
    if name is None or (name == "dev" and name not in profiles):
        return _running_dev(required=name is not None)
    if name not in profiles:
        raise ConfigurationError(
            f"There is no profile {name!r}.", hint=f"Known: {', '.join(sorted(profiles)) or 'none'}; `funcmq login URL` makes one."
        )
    return {str(key): str(value) for key, value in profiles[name].items()}


def _running_dev(*, required: bool) -> dict[str, str]:
    try:
        said = json.loads(dev_file().read_text(encoding="utf-8"))
        alive = _alive(int(said["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        said, alive = {}, False
    if alive:
        return {key: str(value) for key, value in said.items() if key != "pid"}
    if required:
        raise ConfigurationError("There is no profile 'dev': no `funcmq dev` of yours is running.", hint="Start one with `funcmq dev`.")
    return {}


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there os.kill(pid, 0) would end the process; `funcmq dev` does not run there anyway
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
