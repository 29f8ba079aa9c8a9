"""Exchanges, queues and routing keys: names come from these functions and from nowhere else (design §7).

Arguments are accepted unchanged by RabbitMQ 3.10 and 4.x; they cannot be altered once a queue exists, which is why lengths that operators
tune are policies (deploy/rabbitmq) and not arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TASKS = "tasks"
RESULTS = "results"
STREAMS = "streams"
CONTROL = "control"
STATUS = "status"
DEAD = "dead"
SERVE = "serve"

STREAM_EXPIRES_S = 600
STREAM_BYTES = 64 * 1024 * 1024
CONTROL_TTL_S = 3600
SERVE_EXPIRES_S = 60
DELIVERY_LIMIT = 20

Argument = str | int | bool
_STATUS_ARGUMENTS: dict[str, Argument] = {
    "x-queue-type": "classic",
    "x-max-length": 10_000,
    "x-overflow": "drop-head",
    "x-message-ttl": 60_000,
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["direct", "topic", "fanout"]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and its bindings, as (exchange, key)."""

    name: str
    arguments: dict[str, Argument]
    bindings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """A set of exchanges and queues; declaring it twice changes nothing."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = field(default=())


def tasks_queue(endpoint: str) -> str:
    return f"endpoint.{endpoint}.tasks"


def results_queue(endpoint: str) -> str:
    return f"endpoint.{endpoint}.results"


def control_queue(endpoint: str) -> str:
    return f"endpoint.{endpoint}.control"


def stream_queue(session: str) -> str:
    return f"stream.{session}"


def reply_queue(ask: str) -> str:
    return f"reply.{ask}"


def serve_queue(serve: str) -> str:
    return f"serve.{serve}"


def results_key(endpoint: str, group: str) -> str:
    """Key of results, receipts and `running` of one group."""
    return f"{endpoint}.{group}"


def refused_key(endpoint: str) -> str:
    """Key of refusals, which belong to no group because nothing in the bundle is believed."""
    return f"{endpoint}.-"


def group_pattern(group: str) -> str:
    """What a stream is bound to: everything of one group, from every endpoint."""
    return f"*.{group}"


def _quorum(more: dict[str, Argument]) -> dict[str, Argument]:
    return {"x-queue-type": "quorum", **more}


def fixed() -> Topology:
    """What exists once, however many endpoints there are."""
    return Topology(
        exchanges=(
            Exchange(TASKS, "direct"),
            Exchange(RESULTS, "topic"),
            Exchange(STREAMS, "direct"),
            Exchange(CONTROL, "direct"),
            Exchange(STATUS, "topic"),
            Exchange(DEAD, "fanout"),
            Exchange(SERVE, "fanout"),
        ),
        queues=(
            Queue(DEAD, _quorum({"x-overflow": "reject-publish"}), ((DEAD, ""),)),
            Queue(
                STATUS,
                {"x-queue-type": "classic", "x-max-length": 10_000, "x-overflow": "drop-head", "x-message-ttl": 60_000},
                ((STATUS, "#"),),
            ),
        ),
    )


def endpoint(identifier: str) -> Topology:
    """The three queues of one endpoint."""
    tasks = _quorum(
        {
            "x-single-active-consumer": True,
            "x-overflow": "reject-publish",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-strategy": "at-least-once",
        }
    )
    control: dict[str, Argument] = {"x-queue-type": "classic", "x-message-ttl": CONTROL_TTL_S * 1000}
    return Topology(
        queues=(
            Queue(tasks_queue(identifier), tasks, ((TASKS, identifier),)),
            Queue(results_queue(identifier), _quorum({"x-delivery-limit": -1}), ((RESULTS, f"{identifier}.#"),)),
            Queue(control_queue(identifier), control, ((CONTROL, identifier),)),
        )
    )


def stream(session: str, groups: tuple[str, ...] = ()) -> Topology:
    """The queue of one client session: it loses its oldest messages rather than slow an endpoint, and goes 10 minutes after its client."""
    arguments: dict[str, Argument] = {
        "x-queue-type": "classic",
        "x-expires": STREAM_EXPIRES_S * 1000,
        "x-message-ttl": STREAM_EXPIRES_S * 1000,
        "x-max-length-bytes": STREAM_BYTES,
        "x-overflow": "drop-head",
    }
    bindings = ((STREAMS, session), *((RESULTS, group_pattern(group)) for group in groups))
    return Topology(queues=(Queue(stream_queue(session), arguments, bindings),))


def reply(ask: str, endpoint: str) -> Topology:
    """Where a front door hears one answer of one endpoint, beside its heartbeats; it goes a minute after it."""
    arguments: dict[str, Argument] = {"x-queue-type": "classic", "x-expires": 60_000, "x-max-length": 100, "x-overflow": "drop-head"}
    return Topology(queues=(Queue(reply_queue(ask), arguments, ((STATUS, endpoint),)),))


def serve(identifier: str) -> Topology:
    """Where one `funcmq serve` hears the others, and every heartbeat: all of it may be lost.

    No exclusive queue, because those cannot be declared on one connection and consumed on another; it goes a minute after its reader.
    """
    arguments: dict[str, Argument] = {
        "x-queue-type": "classic",
        "x-expires": SERVE_EXPIRES_S * 1000,
        "x-message-ttl": SERVE_EXPIRES_S * 1000,
        "x-max-length": 10_000,
        "x-overflow": "drop-head",
    }
    return Topology(queues=(Queue(serve_queue(identifier), arguments, ((SERVE, ""), (STATUS, "#"))),))
