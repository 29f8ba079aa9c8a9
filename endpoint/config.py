"""An endpoint's own files: `endpoint.toml`, and where the rest lies.

The file is read strictly: an unknown key or a wrong value is a mistake to be told, with the key and what is allowed, not something to guess
about (`ConfigurationError`, exit status 78).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from funcmq.broker import tomlfile
from funcmq.broker.errors import ConfigurationError
from funcmq.broker.ids import is_id
from funcmq.broker.settings import config_dir

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?\Z")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A `[pools.NAME]` table.  Durations are seconds."""

    name: str
    provider: str = "local"
    workers_per_node: int = 0
    nodes_per_block: int = 1
    min_blocks: int = 0
    max_blocks: int = 1
    idle: float = 120.0
    worker_init: str = ""
    python: str = ""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """All of `endpoint.toml`, with the folders it lives in."""

    name: str
    id: str
    url: str
    folder: Path
    run_dir: Path
    journal_dir: Path
    address: str = "127.0.0.1"
    stop_grace: float = 30.0
    max_blocks: int = 0
    pools: tuple[PoolConfig, ...] = field(default=())

    @property
    def trusted_keys(self) -> Path:
        """Who may send work, in the form of `authorized_keys`."""
        return self.folder / "trusted_keys"

    @property
    def key(self) -> Path:
        """The endpoint's signing key."""
        return self.folder / "key"

    @property
    def token(self) -> Path:
        """The endpoint's own token for the front door."""
        return self.folder / "token"

    def read_token(self) -> str:
        """What is in it.

        :raises ConfigurationError: it is missing, empty, or readable by others.
        """
        hint = f"Bring it back from a copy, or make the endpoint anew: `funcmq endpoint delete {self.name}`, then `init`."
        try:
            text, mode = self.token.read_text(encoding="utf-8").strip(), self.token.stat().st_mode & 0o077
        except (OSError, UnicodeDecodeError) as broken:
            raise ConfigurationError(f"The endpoint's token {self.token} cannot be read: {broken}.", hint=hint) from None
        if not text:
            raise ConfigurationError(f"The endpoint's token {self.token} is empty.", hint=hint)
        if mode:
            raise ConfigurationError(f"The endpoint's token {self.token} can be read by others.", hint=f"Run `chmod 600 {self.token}`.")
        return text


def endpoint_folder(name: str) -> Path:
    """Where the files of this endpoint are.

    :raises ConfigurationError: this cannot be a name.
    """
    if not NAME.match(name):
        raise ConfigurationError(f"{name!r} cannot be the name of an endpoint.", hint="Use up to 63 letters, digits, - and _.")
    return config_dir() / "endpoints" / name


def default_journal_dir(name: str) -> Path:
    """Node-local: a journal on a network file system would not survive."""
    # made with mode 0700; unlike /tmp, what is in /var/tmp survives a restart of the machine
    return Path(f"/var/tmp/funcmq-{os.getuid()}") / name  # noqa: S108


def parse_duration(text: object) -> float:
    """Seconds in `30`, `"30s"`, `"2m"`, `"1h"`.

    :raises ValueError: it is no duration.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool) and text >= 0:
        return float(text)
    match = _DURATION.match(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError('a duration, as 30, "30s", "2m" or "1h"')
    return float(match[1]) * _UNITS[match[2] or "s"]


def load(name: str) -> EndpointConfig:
    """The configuration of the endpoint of this name.

    :raises ConfigurationError: there is none, or something in it is wrong.
    """
    folder = endpoint_folder(name)
    path = folder / "endpoint.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as broken:
        raise ConfigurationError(f"{path} is not TOML: {broken}.", hint="Bring it back from a copy.") from None
    except OSError as missing:
        raise ConfigurationError(
            f"There is no endpoint {name!r} here ({path}: {missing.strerror}).", hint=f"`funcmq endpoint init {name}` makes one."
        ) from None
    return parse(text, folder, name)


def parse(text: str, folder: Path, name: str = "") -> EndpointConfig:
    """The configuration in the text of `endpoint.toml`.

    :raises ConfigurationError: it is not TOML, or a key or value is not allowed; the message names it and the line.
    """
    path = folder / "endpoint.toml"
    table = tomlfile.parse(text, path)
    reader = _Reader(path, text)
    reader.only(table, ("endpoint", "pools"), "")
    top = reader.table(table, "endpoint")
    values = reader.values(top, _ENDPOINT, "endpoint")
    name = values.pop("name", name)
    if not is_id(values.get("id")):
        reader.fail("endpoint.id", "32 hex digits, as `funcmq endpoint init` writes them")
    pools = tuple(reader.pool(key, value) for key, value in reader.table(table, "pools").items())
    if not pools:
        reader.fail("pools", "at least one table [pools.NAME]")
    run_dir = Path(values.pop("run_dir", "") or folder / "run").expanduser()
    journal_dir = Path(values.pop("journal_dir", "") or default_journal_dir(name)).expanduser()
    if not (run_dir.is_absolute() and journal_dir.is_absolute()):
        reader.fail("endpoint.run_dir" if not run_dir.is_absolute() else "endpoint.journal_dir", "an absolute path")
    return EndpointConfig(name=name, folder=folder, run_dir=run_dir, journal_dir=journal_dir, pools=pools, **values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _count(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"a whole number, at least {least}")
        return value

    return check


def _url(value: object) -> str:
    if not isinstance(value, str) or not value.startswith(("http://", "https://")):
        raise ValueError("the URL of a front door, http://… or https://…")
    return value.rstrip("/")


def _provider(value: object) -> str:
    if value != "local":
        raise ValueError('"local"; this release starts workers on the daemon\'s own host only')
    return "local"


_ENDPOINT: dict[str, Callable[[object], Any]] = {
    "name": _text,
    "id": _text,
    "url": _url,
    "run_dir": _text,
    "journal_dir": _text,
    "address": _text,
    "stop_grace": parse_duration,
    "max_blocks": _count(1),
}
_POOL: dict[str, Callable[[object], Any]] = {
    "provider": _provider,
    "workers_per_node": _count(1),
    "nodes_per_block": _count(1),
    "min_blocks": _count(0),
    "max_blocks": _count(1),
    "idle": parse_duration,
    "worker_init": _text,
    "python": _text,
}


@dataclass(frozen=True, slots=True)
class _Reader:
    path: Path
    text: str

    def fail(self, key: str, allowed: str) -> NoReturn:
        """:raises ConfigurationError: always."""
        where = tomlfile.place(self.path, self.text, key)
        raise ConfigurationError(f"{where}: {key} must be {allowed}.", hint="Correct it; nothing was started.")

    def only(self, table: dict[str, Any], known: Iterable[str], where: str) -> None:
        for key in table:
            if key not in known:
                tomlfile.unknown(self.path, self.text, f"{where}.{key}" if where else key, known)

    def table(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        found = table.get(key)
        if not isinstance(found, dict):
            self.fail(key, f"a table [{key}]")
        return found

    def values(self, table: dict[str, Any], checks: dict[str, Callable[[object], Any]], where: str) -> dict[str, Any]:
        self.only(table, checks, where)
        values = {}
        for key, value in table.items():
            try:
                values[key] = checks[key](value)
            except ValueError as wrong:
                self.fail(f"{where}.{key}", f"{wrong}, not {value!r}")
        for key in ("id", "url") if where == "endpoint" else ():
            if key not in values:
                self.fail(f"{where}.{key}", "there")
        return values

    def pool(self, name: str, table: object) -> PoolConfig:
        where = f"pools.{name}"
        if not NAME.match(name) or not isinstance(table, dict):
            self.fail(where, "a table whose name is letters, digits, - and _")
        pool = PoolConfig(name=name, **self.values(table, _POOL, where))
        if pool.min_blocks > pool.max_blocks:
            self.fail(f"{where}.min_blocks", "at most max_blocks")
        return pool


def pools_of(path: Path) -> str:
    """The text of the `[pools.…]` tables of an existing endpoint.toml, comments included.

    :raises ConfigurationError: it cannot be read, or its pools are not right.
    """
    try:
        _, text = tomlfile.read(path)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no {path}.", hint="Name the endpoint.toml whose pools are to be taken.") from None
    kept, inside = [], False
    for line in text.splitlines():
        if table := re.match(r"\s*\[+\s*([^\s.\]]+)", line):
            inside = table[1].strip("\"'") == "pools"
        if inside:
            kept.append(line)
    reader = _Reader(path, text)
    found = reader.table(tomlfile.parse("\n".join(kept), path), "pools")
    for name, table_ in found.items():
        reader.pool(name, table_)
    return "\n".join(kept).rstrip() + "\n"


HEAD = """\
# An endpoint of funcmq.  `funcmq endpoint start {name}` reads this once; stop and start it after a change.
# `funcmq endpoint doctor {name}` says what is wrong with it.

[endpoint]
name = "{name}"
id = "{id}"
url = "{url}"
{run_dir}
{journal_dir}
# address = "127.0.0.1"             # where workers reach this daemon
# stop_grace = "30s"                # how long `stop` waits for running tasks

"""
POOL = """\
[pools.local]                       # a task names a pool, or the first that fits its resources takes it
provider = "local"                  # workers on this host
workers_per_node = {workers}
min_blocks = 1                      # 0: start workers with the first task
# max_blocks = 1
# idle = "2m"                       # give a block above min_blocks back after this long without work
# worker_init = "module load python"
# python = "/proj/env/bin/python"   # the workers' interpreter; default: the daemon's
"""


def template(name: str, identifier: str, url: str, workers: int, run_dir: str = "", journal_dir: str = "", pools: str = "") -> str:
    """The text of a new `endpoint.toml`, commented; `pools` is the text of its tables, '' for one pool of so many workers on this host."""
    run = f"run_dir = {_quoted(run_dir)}" if run_dir else '# run_dir = "/shared/…"            # logs, blocks, results kept; workers see it'
    journal = f"journal_dir = {_quoted(journal_dir)}"
    if not journal_dir:
        journal = f"# journal_dir = {_quoted(str(default_journal_dir(name)))}   # a disk of this host"
    head = HEAD.format(name=name, id=identifier, url=url, run_dir=run, journal_dir=journal)
    return head + (pools or POOL.format(workers=workers))


def _quoted(text: str) -> str:
    """A TOML string: a JSON string of printable text is one."""
    return json.dumps(text, ensure_ascii=False)
