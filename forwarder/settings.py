"""The settings of `funcmq serve`: argument, then environment, then TOML file, then default.

host = "127.0.0.1"              FUNCMQ_HOST
port = 8600                     FUNCMQ_PORT
broker_auth_host = "127.0.0.1"  FUNCMQ_BROKER_AUTH_HOST     where RabbitMQ's questions are answered: private
broker_auth_port = 8601         FUNCMQ_BROKER_AUTH_PORT
metrics_host = "127.0.0.1"      FUNCMQ_METRICS_HOST         where /metrics is answered without a token: private
metrics_port = 0                FUNCMQ_METRICS_PORT         0: on the front door's own port
broker_url = "amqp://…"         FUNCMQ_BROKER_URL           several nodes of one cluster: separated by commas
public_broker_urls = "amqp://…" FUNCMQ_PUBLIC_BROKER_URLS   what endpoints and clients connect to; without credentials
management_url = "http://…"     FUNCMQ_MANAGEMENT_URL
key_file = "/path"              FUNCMQ_KEY_FILE             signs for users without keys; with SQLite it lies beside the database
database_url = "sqlite:////…"   FUNCMQ_DATABASE_URL
only = "http,results,triggers"  FUNCMQ_SERVE_ONLY           the parts that this process does; all by default
results_days = 14               FUNCMQ_RESULTS_DAYS         how long what has ended is kept
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from sqlalchemy.engine import URL

from funcmq.broker import tomlfile
from funcmq.broker.connection import Broker
from funcmq.broker.errors import ConfigurationError
from funcmq.forwarder.database import parse_url

NAMES = (
    "host",
    "port",
    "broker_auth_host",
    "broker_auth_port",
    "metrics_host",
    "metrics_port",
    "key_file",
    "broker_url",
    "public_broker_urls",
    "management_url",
    "database_url",
    "only",
    "results_days",
)
_METRICS = {"metrics_host": "127.0.0.1", "metrics_port": "0"}
_DEFAULTS = {"host": "127.0.0.1", "port": "8600", "broker_auth_host": "127.0.0.1", "broker_auth_port": "8601", **_METRICS}
PARTS = ("http", "results", "triggers")
_DEFAULTS |= {"only": ",".join(PARTS), "results_days": "14"}
_VARIABLES = {"only": "FUNCMQ_SERVE_ONLY"}
_MANAGEMENT_PORT = 15672


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """All that a front door needs to know.  `vhost` is the one vhost that our users may enter; `port` 0 takes any free one."""

    host: str
    port: int
    broker_auth_host: str
    broker_auth_port: int
    broker: Broker
    vhost: str
    public_brokers: tuple[str, ...]
    management_url: str
    management_user: str
    management_password: str = field(repr=False)
    database: URL
    code_file: Path | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    key_file: Path | None = None
    only: frozenset[str] = frozenset(PARTS)
    results_days: float = 14
    release: str = field(default_factory=lambda: version("funcmq"))


def load(given: Mapping[str, str | None], environ: Mapping[str, str] = os.environ, file: Path | None = None) -> ServeSettings:
    """The settings in force; `given` are arguments by the names above (and `code_file`), None where one is missing.

    :raises ConfigurationError: one is missing or wrong; the message names it.
    """
    stored = _read(file)
    found = {
        name: given.get(name) or environ.get(_VARIABLES.get(name, f"FUNCMQ_{name.upper()}")) or stored.get(name) or _DEFAULTS.get(name, "")
        for name in NAMES
    }
    urls = [part.strip() for part in found["broker_url"].split(",") if part.strip()]
    if not urls:
        raise ConfigurationError(
            "No broker is configured.", hint="Set FUNCMQ_BROKER_URL=amqp://USER:PASSWORD@HOST:5672/ (see deploy/rabbitmq)."
        )
    broker, vhost = _broker(urls)
    public = tuple(part.strip() for part in found["public_broker_urls"].split(",") if part.strip()) or broker.urls
    management, user, password = _management(found["management_url"], broker)
    code_file = given.get("code_file")
    database = parse_url(found["database_url"] or _default_database())
    return ServeSettings(
        host=found["host"],
        port=_port("port", found["port"]),
        broker_auth_host=found["broker_auth_host"],
        broker_auth_port=_port("broker_auth_port", found["broker_auth_port"]),
        broker=broker,
        vhost=vhost,
        public_brokers=tuple(_bare(url) for url in public),
        management_url=management,
        management_user=user,
        management_password=password,
        database=database,
        code_file=Path(code_file) if code_file else None,
        metrics_host=found["metrics_host"],
        metrics_port=_port("metrics_port", found["metrics_port"]),
        key_file=_key_file(found["key_file"], database),
        only=_parts(found["only"]),
        results_days=_days("results_days", found["results_days"]),
    )


def _read(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    hint = "Correct it, or pass another file with --config."
    try:
        content, text = tomlfile.read(file, hint)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no {file}.", hint=hint) from None
    for name, value in content.items():
        if name not in NAMES:
            tomlfile.unknown(file, text, name, NAMES)
        if wrong := _wrong(name, value):
            raise ConfigurationError(f"{tomlfile.place(file, text, name)}: {name} must be {wrong}, not {value!r}.", hint=hint)
    return {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in content.items()}


def _wrong(name: str, value: object) -> str:
    """What a setting must be, where it is something else."""
    if name.endswith("_port") or name == "port":
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535
        return "" if good else "a port, a number between 0 and 65535"
    good = isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))
    return "" if good else "text, or a list of texts"


def _broker(urls: list[str]) -> tuple[Broker, str]:
    parts = urlsplit(urls[0])
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ConfigurationError("FUNCMQ_BROKER_URL is not an AMQP URL.", hint="It looks like amqp://USER:PASSWORD@HOST:5672/.")
    if not parts.username or parts.password is None:
        raise ConfigurationError(
            "FUNCMQ_BROKER_URL has no user and password.", hint="The broker's user for the front door: see deploy/rabbitmq."
        )
    vhost = unquote(parts.path[1:]) or "/"
    return Broker(tuple(_bare(url) for url in urls), unquote(parts.username), unquote(parts.password)), vhost


def _management(url: str, broker: Broker) -> tuple[str, str, str]:
    host = urlsplit(broker.urls[0]).hostname or ""
    parts = urlsplit(url or f"http://{f'[{host}]' if ':' in host else host}:{_MANAGEMENT_PORT}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("FUNCMQ_MANAGEMENT_URL is not an HTTP URL.", hint="It looks like http://HOST:15672.")
    user = unquote(parts.username) if parts.username else broker.user
    password = unquote(parts.password) if parts.password is not None else broker.password
    return _bare(urlunsplit(parts)), user, password


def _bare(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _port(name: str, text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise ConfigurationError(
            f"The setting {name} is {text!r}, not a port.", hint="Use a number between 0 and 65535; 0 takes any free port."
        )
    return int(text)


def _key_file(named: str, database: URL) -> Path | None:
    """Front doors that share a PostgreSQL must share the key too, so there it lies only where somebody says."""
    if named:
        return Path(named).expanduser()
    return Path(database.database or "").parent / "front-door.key" if database.get_backend_name() == "sqlite" else None


def _parts(text: str) -> frozenset[str]:
    parts = frozenset(part.strip() for part in text.split(",") if part.strip())
    if wrong := sorted(parts - set(PARTS)):
        raise ConfigurationError(f"There is no part {wrong[0]!r} of `funcmq serve`.", hint=f"Known: {', '.join(PARTS)}.")
    return parts


def _days(name: str, text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days <= 36_500:
        raise ConfigurationError(f"The setting {name} is {text!r}, not a number of days.", hint="Use a number above 0.")
    return days


def _default_database() -> str:
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"sqlite:///{home}/funcmq/funcmq.db"
