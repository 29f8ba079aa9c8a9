"""Who may do what in RabbitMQ: the whole table, as pure functions over the questions that `rabbitmq_auth_backend_http` asks.

Everything that is not said here is refused.  In particular nobody but the front door's own internal user configures or deletes anything,
and nobody writes the default exchange, which would be writing into every queue (facts: rabbitmq §0.8).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from funcmq.broker import topology

_ENDPOINT = re.compile(r"ep\.([0-9a-f]{32})\.([0-9]{1,12})\Z")
_SESSION = re.compile(r"cl\.([0-9a-f]{32})\Z")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint under one epoch of its lease."""

    id: str
    epoch: int

    @property
    def user(self) -> str:
        """Its AMQP user."""
        return f"ep.{self.id}.{self.epoch}"


@dataclass(frozen=True, slots=True)
class Session:
    """A client that listens to a result stream."""

    id: str

    @property
    def user(self) -> str:
        """Its AMQP user."""
        return f"cl.{self.id}"


Identity = Endpoint | Session


def identify(user: str) -> Identity | None:
    """Whom an AMQP user name stands for; None for names that are not ours.  Whether that user exists, and its password, is the store's
    business.
    """
    if match := _ENDPOINT.match(user):
        return Endpoint(match[1], int(match[2]))
    if match := _SESSION.match(user):
        return Session(match[1])
    return None


def may_use(who: Identity, resource: str, name: str, permission: str) -> bool:
    """The answer for `resource` ("queue" or "exchange"), its name and `permission` ("configure", "write" or "read")."""
    asked = (resource, name, permission)
    if isinstance(who, Session):
        return asked == ("queue", topology.stream_queue(who.id), "read")
    return asked in {
        ("queue", topology.tasks_queue(who.id), "read"),
        ("queue", topology.control_queue(who.id), "read"),
        ("exchange", topology.RESULTS, "write"),
        ("exchange", topology.STATUS, "write"),
    }


def may_route(who: Identity, exchange: str, permission: str, key: str) -> bool:
    """The answer for a topic exchange and a routing key."""
    if not isinstance(who, Endpoint) or permission != "write":
        return False
    if exchange == topology.RESULTS:
        return key.startswith(f"{who.id}.")
    return exchange == topology.STATUS and key == who.id
