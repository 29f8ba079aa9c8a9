"""Where a stack's RabbitMQ comes from: a private node, or one that somebody prepared as deploy/rabbitmq says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NoReturn, Protocol
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import ConfigurationError, InvalidRequest
from funcmq.dev.guard import Job
from funcmq.dev.rabbitmq import QUESTIONS, Guardian, Node

AUTH_PORT = 8601
"""Where a prepared broker asks: the port in deploy/rabbitmq/rabbitmq.conf; `FUNCMQ_BROKER_AUTH_PORT` names another one, as for `serve`."""
MANAGEMENT_PORT = 15672


class Source(Protocol):
    """A RabbitMQ for as long as it is started; once prepared, `url`, with the password of its internal user, and `management_url` are
    known.
    """

    @property
    def url(self) -> str: ...
    @property
    def management_url(self) -> str: ...
    @property
    def auth_port(self) -> int: ...
    def prepare(self) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def died(self) -> NoReturn: ...


class Prepared:
    """A broker that somebody runs: it is only checked.

    :param url: `amqp[s]://user:password@host[:port]/vhost` of its internal user.
    :param management_url: '' is port 15672 of the same host.
    :param auth_port: where it asks the front door.
    :param remove: a folder to delete when the stack is gone, however it went.
    """

    def __init__(self, url: str, management_url: str = "", auth_port: int = AUTH_PORT, remove: Path | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname or not parts.username or not parts.password:
            raise InvalidRequest("The broker's URL must be amqp://USER:PASSWORD@HOST/VHOST.", hint="Set it as FUNCMQ_BROKER_URL.")
        self.url = url
        self.management_url = management_url or f"http://{parts.hostname}:{MANAGEMENT_PORT}"
        self.auth_port = auth_port
        self._parts, self._remove = parts, remove
        self._guardian: Guardian | None = None

    @property
    def _internal_user(self) -> Broker:
        parts = self._parts
        plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        return Broker((plain,), unquote(parts.username or ""), unquote(parts.password or ""))

    def prepare(self) -> None:
        """Somebody else has."""

    async def start(self) -> None:
        """:raises NotAllowed, Unreachable: the internal user cannot log in."""
        await check(self._internal_user)
        if self._remove is not None:
            self._guardian = await Guardian.start(Job([], str(self._remove)))

    async def stop(self) -> None:
        """The broker itself is left as it is."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            await guardian.stop()

    async def died(self) -> NoReturn:
        """Never: links to it come back by themselves."""
        await asyncio.Event().wait()
        raise AssertionError


def choose(url: str, folder: Path, remove: Path | None) -> Source:
    """The prepared broker at url, or a private node for ''."""
    if not url:
        return Node(folder, remove=remove)
    port = os.environ.get("FUNCMQ_BROKER_AUTH_PORT", "")
    return Prepared(url, os.environ.get("FUNCMQ_MANAGEMENT_URL", ""), int(port) if port.isdigit() else AUTH_PORT, remove)


def with_credentials(shown: str, environment: str) -> str:
    """The URL given on the command line, with the credentials of `FUNCMQ_BROKER_URL`; '' for ''.

    :raises InvalidRequest: it carries a password itself, where everybody on this host could read it, or there are none for it.
    """
    if not shown:
        return ""
    parts, known = _split(shown), urlsplit(environment)
    if parts.password:
        raise InvalidRequest(
            "A password in a command line can be read by everybody on this host.", hint="Set the whole URL as FUNCMQ_BROKER_URL."
        )
    if not _same_place(parts, known) or not known.password:
        raise InvalidRequest(
            f"There are no credentials for {shown}.", hint=f"Set FUNCMQ_BROKER_URL=amqp://USER:PASSWORD@{parts.hostname or 'HOST'}/ too."
        )
    return environment


def _split(shown: str) -> SplitResult:
    try:
        parts = urlsplit(shown)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname or port == 0:
        raise InvalidRequest(
            f"{shown.rpartition('@')[2]!r} is not the URL of a broker.", hint="It looks like amqp://HOST/ or amqps://HOST/."
        )
    return parts


def _same_place(one: SplitResult, other: SplitResult) -> bool:
    return (one.scheme, one.hostname, one.port, one.path.rstrip("/")) == (other.scheme, other.hostname, other.port, other.path.rstrip("/"))


def refused(auth_port: int) -> ConfigurationError:
    """What to say when a short-lived user of ours cannot log in."""
    asks = "\n".join(f"  auth_http.{what}_path = http://127.0.0.1:{auth_port}/broker/{what}" for what in QUESTIONS)
    return ConfigurationError(
        "RabbitMQ does not take the users of this fabric: it does not ask this front door about them.",
        hint="Set in rabbitmq.conf (deploy/rabbitmq has the whole file), enable the plugin rabbitmq_auth_backend_http, and restart it:\n"
        f"  auth_backends.1 = internal\n  auth_backends.2 = http\n  auth_http.http_method = post\n{asks}",
    )
