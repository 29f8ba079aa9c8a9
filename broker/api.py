"""What the front door and its callers say to each other over HTTP: the bodies of requests and answers of `/v1`.

Each is a map, as JSON or msgpack by `Content-Type` and `Accept`.  Ids are hex; times are integers, milliseconds since the epoch.  A signed
bundle and a function
record are sent as they are (`RAW`): their exact bytes count.  Every error is `{"error": {"code", "message", "hint", "details"}}` with a
code of `errors.TABLE`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from funcmq.broker.errors import FuncmqError, rebuild
from funcmq.broker.messages import PoolStatus

JSON = "application/json"
MSGPACK = "application/msgpack"
RAW = "application/vnd.funcmq"
"""Exact bytes: a signed bundle (`POST /tasks`) or a function record (`POST /functions`, `GET /functions/{id}`)."""

State = Literal["accepted", "published", "received", "running", "succeeded", "failed", "cancelled", "expired", "lost"]
ENDS: tuple[State, ...] = ("succeeded", "failed", "cancelled", "expired", "lost")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all bodies: unknown fields are ignored, so that neighbouring releases understand each other."""


class LoginRequest(Record, frozen=True, kw_only=True):
    """`POST /login`: a one-time code for a token; `key` is the base64 of this machine's public key, `comment` tells where it lives."""

    code: str
    key: str | None = None
    comment: str = ""


class TokenAnswer(Record, frozen=True, kw_only=True):
    """The only time that a token is seen in clear."""

    id: str
    token: str
    user: str
    user_name: str
    expires: int


class Me(Record, frozen=True, kw_only=True):
    """`GET /me`."""

    user: str
    name: str
    admin: bool
    release: str
    max_inline: int
    token: str = ""
    expires: int = 0


class UserRequest(Record, frozen=True, kw_only=True):
    """`POST /users` (administrators)."""

    name: str
    admin: bool = False


class UserAnswer(Record, frozen=True, kw_only=True):
    """A user; `code` is the one-time login code of a new one, valid for 10 minutes."""

    id: str
    name: str
    admin: bool = False
    code: str | None = None
    code_expires: int = 0


class TokenRequest(Record, frozen=True, kw_only=True):
    """`POST /tokens`: `days` until it expires."""

    comment: str = ""
    days: float = 30.0


class TokenView(Record, frozen=True, kw_only=True):
    """One row of `GET /tokens`."""

    id: str
    comment: str
    created: int
    expires: int


class KeyRequest(Record, frozen=True, kw_only=True):
    """`POST /keys`: a public key that signs for this user."""

    key: str
    comment: str = ""


class KeyView(Record, frozen=True, kw_only=True):
    """A signing key; `id` is the SHA-256 of the raw key."""

    id: str
    key: str
    comment: str
    created: int


class EnrolmentAnswer(Record, frozen=True, kw_only=True):
    """`POST /enrolments`: a one-time code with which another machine registers an endpoint for this user."""

    code: str
    expires: int


class EndpointRequest(Record, frozen=True, kw_only=True):
    """`POST /endpoints`, with a user's token or with an enrolment code instead."""

    name: str
    key: str
    host: str = ""
    enrolment: str | None = None


class EndpointAnswer(Record, frozen=True, kw_only=True):
    """The endpoint's own token, and its owner's keys for `trusted_keys` to show and pin."""

    id: str
    name: str
    token: str
    owner: str
    owner_name: str
    owner_keys: list[KeyView]


class EndpointView(Record, frozen=True, kw_only=True):
    """An endpoint as users see it.  `online`: a heartbeat came within the last 30 s.  `trusted`: key ids it accepts work from."""

    id: str
    name: str
    owner: str
    owner_name: str
    key: str
    online: bool
    seen: int = 0
    since: int = 0
    host: str = ""
    pid: int = 0
    release: str = ""
    pools: list[PoolStatus] = []
    queued: int = 0
    running: int = 0
    unstored: int = 0
    reason: str = ""
    trusted: list[str] = []
    allowed: list[str] = []


class EndpointPatch(Record, frozen=True, kw_only=True):
    """`PATCH /endpoints/{id}`: names of users who may, or may no longer, send it tasks."""

    allow: list[str] = []
    deny: list[str] = []


class LeaseRequest(Record, frozen=True, kw_only=True):
    """`POST /endpoints/{id}/lease`, with the endpoint's token.

    `epoch` None asks for the next epoch (a start); a number renews that one, at every reconnect: `Conflict` says that a later epoch exists
    (the daemon is fenced).
    """

    journal: str
    birth: int
    epoch: int | None
    host: str
    pid: int
    release: str
    trusted: list[str]
    takeover: bool = False


class Lease(Record, frozen=True, kw_only=True):
    """What a daemon needs to connect.  `cancels`: tasks it may still hold that somebody cancelled."""

    epoch: int
    brokers: list[str]
    user: str
    password: str
    cancels: list[str]


class Verdict(Record, frozen=True, kw_only=True):
    """What became of one task of a bundle.  `same`: this key or id was accepted before, as task `id` in `group`."""

    index: int
    verdict: Literal["same", "refused"]
    id: str = ""
    group: str = ""
    code: str = ""
    message: str = ""
    hint: str = ""


class SubmitAnswer(Record, frozen=True, kw_only=True):
    """202 of `POST /tasks`: everything is accepted but the `verdicts` listed."""

    bundle: str
    accepted: int
    verdicts: list[Verdict] = []


class TaskView(Record, frozen=True, kw_only=True):
    """A task as the store knows it.  Times that are not known are 0; `failure` is `[code, message]`."""

    id: str
    state: State
    group: str
    endpoint: str
    endpoint_name: str
    user: str
    function: str
    function_name: str
    accepted: int
    published: int = 0
    received: int = 0
    started: int = 0
    ended: int = 0
    host: str = ""
    attempt: int = 0
    failure: tuple[str, str] | None = None
    waiting_for: str = ""
    stdout: str = ""
    stderr: str = ""


class TasksRequest(Record, frozen=True, kw_only=True):
    """`POST /tasks/query` and `POST /tasks/cancel`."""

    tasks: list[str]


class TaskState(Record, frozen=True, kw_only=True):
    """A task in short; `failure` is there where the front door itself wrote the end, because then no signed result says why."""

    id: str
    state: State
    failure: tuple[str, str] | None = None


class QueryAnswer(Record, frozen=True, kw_only=True):
    """States of the tasks asked for that this user owns, and the result bundles (exact signed bytes, each once) that hold their results.

    At most 16 MiB of bundles at a time: `more` says that the remaining ids are to be asked again.
    """

    tasks: list[TaskState]
    bundles: list[bytes]
    more: list[str] = []


class GroupAnswer(Record, frozen=True, kw_only=True):
    """`GET /groups/{id}`: number of tasks per state, and their ids in order of submission."""

    id: str
    name: str
    counts: dict[str, int]
    tasks: list[str]


class CancelAnswer(Record, frozen=True, kw_only=True):
    """How many of the tasks had not ended; their endpoints have been asked."""

    asked: int


class SessionRequest(Record, frozen=True, kw_only=True):
    """`POST /sessions` and `POST /sessions/{id}/groups`: the groups to listen to.  An unnamed group is created by its first listener or
    bundle.
    """

    groups: list[str]


class Stream(Record, frozen=True, kw_only=True):
    """Where to consume results."""

    urls: list[str]
    queue: str
    user: str
    password: str


class SessionAnswer(Record, frozen=True, kw_only=True):
    """A result stream per broker cluster."""

    id: str
    streams: list[Stream]


class FunctionAnswer(Record, frozen=True, kw_only=True):
    """`POST /functions`."""

    id: str


class FunctionView(Record, frozen=True, kw_only=True):
    """One row of `GET /functions`."""

    id: str
    name: str
    python: str
    created: int


class ErrorBody(Record, frozen=True, kw_only=True):
    """The inner part of every error answer."""

    code: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, error: FuncmqError) -> ErrorBody:
        """What is said of this error to the outside."""
        return cls(code=error.code, message=error.message, hint=error.hint, details=error.details)

    def error(self) -> FuncmqError:
        """The error to raise on the calling side."""
        return rebuild(self.code, self.message, self.hint, self.details)


class ErrorAnswer(Record, frozen=True, kw_only=True):
    """The body of every answer with a status of 400 and above."""

    error: ErrorBody
