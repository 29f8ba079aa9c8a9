"""The table of rights in RabbitMQ, without RabbitMQ."""

from __future__ import annotations

import pytest

from funcmq.broker import rights, topology

A, B, S = (f"01a20490d9497c3cab28e7549b16d8{end}" for end in ("48", "49", "50"))
ENDPOINT, SESSION = rights.Endpoint(A, 3), rights.Session(S)

QUEUES = [
    *(name(identifier) for name in (topology.tasks_queue, topology.results_queue, topology.control_queue) for identifier in (A, B)),
    topology.stream_queue(S),
    topology.stream_queue(A),
    topology.DEAD,
    topology.STATUS,
    f"{topology.tasks_queue(A)}x",
    "",
]
EXCHANGES = [
    topology.TASKS,
    topology.RESULTS,
    topology.STREAMS,
    topology.CONTROL,
    topology.STATUS,
    topology.DEAD,
    topology.SERVE,
    "amq.default",
    "amq.topic",
    "",
]
ASKED = [
    (resource, name, permission)
    for resource, names in (("queue", QUEUES), ("exchange", EXCHANGES), ("topic", EXCHANGES))
    for name in names
    for permission in ("configure", "write", "read", "")
]


def test_an_endpoint_may_do_four_things() -> None:
    """Read its tasks and its orders, write results and heartbeats: of everything that can be asked, nothing else."""
    allowed = {asked for asked in ASKED if rights.may_use(ENDPOINT, *asked)}
    assert allowed == {
        ("queue", topology.tasks_queue(A), "read"),
        ("queue", topology.control_queue(A), "read"),
        ("exchange", topology.RESULTS, "write"),
        ("exchange", topology.STATUS, "write"),
    }


def test_a_session_may_do_one_thing() -> None:
    """Read its stream: of everything that can be asked, nothing else."""
    assert {asked for asked in ASKED if rights.may_use(SESSION, *asked)} == {("queue", topology.stream_queue(S), "read")}


@pytest.mark.parametrize(
    ("exchange", "permission", "key", "allowed"),
    [
        (topology.RESULTS, "write", f"{A}.group", True),
        (topology.RESULTS, "write", f"{A}.-", True),
        (topology.RESULTS, "write", A, False),
        (topology.RESULTS, "write", f"{A}x.group", False),
        (topology.RESULTS, "write", f"{B}.group", False),
        (topology.RESULTS, "write", "", False),
        (topology.RESULTS, "read", f"{A}.group", False),
        (topology.STATUS, "write", A, True),
        (topology.STATUS, "write", f"{A}.x", False),
        (topology.STATUS, "write", B, False),
        (topology.TASKS, "write", A, False),
        ("amq.topic", "write", f"{A}.x", False),
    ],
)
def test_an_endpoint_writes_under_its_own_key(exchange: str, permission: str, key: str, allowed: bool) -> None:
    """Topic exchanges take an endpoint's messages under its own id only; a session's never."""
    assert rights.may_route(ENDPOINT, exchange, permission, key) is allowed
    assert not rights.may_route(SESSION, exchange, permission, key)


@pytest.mark.parametrize(
    "user",
    ["", "guest", "funcmq", f"ep.{A}", f"ep.{A}.", f"ep.{A}.x", f"ep.{A}.1\n", f"ep.{A.upper()}.1", f"xep.{A}.1", f"cl.{S}.1", "cl."],
)
def test_other_names_are_nobody(user: str) -> None:
    """A user name that is not exactly an endpoint's or a session's stands for nobody."""
    assert rights.identify(user) is None


def test_names_come_back() -> None:
    """Whom a name was made for, it stands for."""
    for who in (ENDPOINT, SESSION):
        assert rights.identify(who.user) == who
