"""What an endpoint reports about tasks, believed or not.  A core without I/O.

An endpoint speaks for itself only: the queue that a message came from, the id inside and the registered key that signed it must be the same
endpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from funcmq.broker import codec
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotAllowed
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_TASKS, Outcome, Refused, Results, Signed
from funcmq.broker.signing import REFUSED, RESULTS, PublicKey


@dataclass(frozen=True, slots=True)
class Source:
    """The endpoint whose result queue a message came from."""

    endpoint: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class ResultBundle:
    """A result bundle whose signature holds; `data` are its exact bytes."""

    id: str
    data: bytes
    body: Results


@dataclass(frozen=True, slots=True)
class Unbelieved:
    """A result bundle that is refused for good, and why."""

    id: str
    reason: str


def read_results(source: Source, data: bytes) -> ResultBundle | Unbelieved:
    """A result bundle, checked as far as its bytes go.

    :raises InvalidRequest, VersionMismatch: these bytes are not even a signed message, so there is no id to answer with.
    """
    signed = codec.decode(Signed, data, "result bundle")
    identifier = sha256(signed.body)
    try:
        source.key.verify(RESULTS, signed)
        body = codec.decode(Results, signed.body, "results")
        _check(source, body.endpoint, body.key)
        if not 1 <= len(body.results) <= MAX_TASKS or len({outcome.id for outcome in body.results}) != len(body.results):
            raise InvalidRequest(f"A result bundle holds 1 to {MAX_TASKS} results, each of another task.")
    except FuncmqError as reason:
        return Unbelieved(identifier, reason.message)
    return ResultBundle(identifier, data, body)


def read_refusal(source: Source, data: bytes) -> Refused:
    """A refusal of a bundle.

    :raises NotAllowed, InvalidRequest, VersionMismatch: it is not that, or not by this endpoint.
    """
    signed = codec.decode(Signed, data, "refusal")
    source.key.verify(REFUSED, signed)
    body = codec.decode(Refused, signed.body, "refusal")
    _check(source, body.endpoint, body.key)
    return body


def _check(source: Source, endpoint: str, key: str) -> None:
    if endpoint != source.endpoint or key != source.key.id:
        raise NotAllowed(
            "It names another endpoint than the one that signed it.", hint="Somebody may be forging reports; see the endpoint's log."
        )


@dataclass(frozen=True, slots=True)
class Home:
    """The bundle that a task belongs to."""

    endpoint: str
    user: str
    group: str


def misplaced(body: Results, tasks: Mapping[bytes, int], homes: Mapping[int, Home]) -> str:
    """Why these results are not this endpoint's to report; '' if they are.

    `tasks` has the bundle of each task that the store knows, `homes` whose bundles these are.
    """
    mine = Home(body.endpoint, body.user, body.group)
    own = {bundle for bundle, home in homes.items() if home == mine}
    for outcome in body.results:
        bundle = tasks.get(outcome.id)
        if bundle is None:
            return f"Nobody knows the task {outcome.id.hex()}."
        if bundle not in own:
            return f"The task {outcome.id.hex()} is not of this endpoint, user and group."
    return ""


def differs(one: Outcome, other: Outcome) -> bool:
    """Whether two results of one task give its user something else."""
    return (one.state, one.value, one.failure) != (other.state, other.value, other.failure)
