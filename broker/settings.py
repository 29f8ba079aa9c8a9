"""Where things of this user are, and which fabric is meant: argument, then environment, then profile.

A profile is a table of `config.toml`: `url`, `token`, `key` (path), `endpoint`.  While a `funcmq dev` of the same user runs, it is the
profile `dev`, used where nothing else is configured.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from funcmq.broker import tomlfile
from funcmq.broker.errors import ConfigurationError

KEYS = ("url", "token", "key", "endpoint")
"""Of a profile."""
HINT = "Correct it, or move it away and run `funcmq login URL`."


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


def config_file() -> Path:
    """Where profiles are kept."""
    return config_dir() / "config.toml"


def read_config() -> dict[str, Any]:
    """`config.toml` as it stands, {} where there is none.

    :raises ConfigurationError: it is not TOML, or cannot be read, or does not hold profiles; the message says where.
    """
    path = config_file()
    try:
        config, text = tomlfile.read(path, HINT)
    except FileNotFoundError:
        return {}
    if not isinstance(config.get("default", ""), str):
        raise ConfigurationError(f"{tomlfile.place(path, text, 'default')}: default must be the name of a profile.", hint=HINT)
    profiles = config.get("profiles", {})
    if not isinstance(profiles, dict):
        raise ConfigurationError(f"{tomlfile.place(path, text, 'profiles')}: profiles must be tables [profiles.NAME].", hint=HINT)
    for name, profile in profiles.items():
        _check(path, text, f"profiles.{name}", profile)
    return config


def _check(path: Path, text: str, where: str, profile: object) -> None:
    if not isinstance(profile, dict):
        raise ConfigurationError(f"{tomlfile.place(path, text, where)}: {where} must be a table [{where}].", hint=HINT)
    for key, value in profile.items():
        if key not in KEYS:
            tomlfile.unknown(path, text, f"{where}.{key}", KEYS)
        if not isinstance(value, str):
            raise ConfigurationError(f"{tomlfile.place(path, text, f'{where}.{key}')}: {where}.{key} must be text.", hint=HINT)


def current(profile: str | None = None) -> str | None:
    """The profile that is meant, by argument, environment, or `default` of config.toml; None: none is named.

    :raises ConfigurationError: as `read_config`.
    """
    return profile or os.environ.get("FUNCMQ_PROFILE") or read_config().get("default")


def _profile(name: str | None) -> dict[str, str]:
    profiles, name = read_config().get("profiles", {}), current(name)
    if name is None or (name == "dev" and name not in profiles):
        return running_dev(required=name is not None)
    if name not in profiles:
        raise ConfigurationError(
            f"There is no profile {name!r}.", hint=f"Known: {', '.join(sorted(profiles)) or 'none'}; `funcmq login URL` makes one."
        )
    return dict(profiles[name])


def running_dev(*, required: bool) -> dict[str, str]:
    """The profile that a running `funcmq dev` is; {} where none runs.  What a killed one has left is ignored.

    :raises ConfigurationError: none runs, and it is required.
    """
    try:
        said = json.loads(dev_file().read_text(encoding="utf-8"))
        alive = _alive(int(said["pid"]), str(said.get("born", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        said, alive = {}, False
    if alive:
        return {key: str(said[key]) for key in KEYS if key in said}
    if required:
        raise ConfigurationError("There is no profile 'dev': no `funcmq dev` of yours is running.", hint="Start one with `funcmq dev`.")
    return {}


def born(pid: int) -> str:
    """When a process began, in the system's own words: a pid is given out again, the two together are not.  '' where it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int, since: str) -> bool:
    if os.name == "nt" or pid <= 0:  # there os.kill(pid, 0) would end the process; `funcmq dev` does not run there anyway
        return False
    try:
        os.kill(pid, 0)  # noqa: TID251  # not on Windows: see above
    except PermissionError:
        return not since or born(pid) == since
    except OSError:
        return False
    return not since or born(pid) == since
