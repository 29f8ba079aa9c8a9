"""What the front door and its callers say to each other over HTTP: the bodies of requests and answers of `/v1`.

Each is a map, as JSON or msgpack by `Content-Type` and `Accept`.  Ids are hex; times are integers, milliseconds since the epoch.  A signed
bundle and a function
record are sent as they are (`RAW`): their exact bytes count.  Every error is `{"error": {"code", "message", "hint", "details"}}` with a
code of `errors.TABLE`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from funcmq.broker.errors import FuncmqError, rebuild
from funcmq.broker.messages import PoolStatus

JSON = "application/json"
MSGPACK = "application/msgpack"
RAW = "application/vnd.funcmq"
"""Exact bytes: a signed bundle (`POST /tasks`) or a function record (`POST /functions`, `GET /functions/{id}`)."""

State = Literal["accepted", "published", "received", "running", "succeeded", "failed", "cancelled", "expired", "lost"]
ENDS: tuple[State, ...] = ("succeeded", "failed", "cancelled", "expired", "lost")


Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""What databases and JSON readers take as a number."""


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


class FrontDoor(Record, frozen=True, kw_only=True):
    """`GET /front-door`: its release, and the key with which it signs for users who have none ('' if it does not)."""

    release: str
    key: str = ""
    fingerprint: str = ""


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


class OrderRequest(Record, frozen=True, kw_only=True):
    """`POST /endpoints/{id}/orders`: what its daemon is to do; `size` is how many bytes of the end of its log to show, 256 KiB at most."""

    verb: Literal["drain", "stop", "logs"]
    size: int = 0


class OrderAnswer(Record, frozen=True, kw_only=True):
    """The daemon that obeys, and the end of its log (a file on its host)."""

    host: str
    pid: int
    log: str
    text: str = ""


class UserKey(Record, frozen=True, kw_only=True):
    """One row of `GET /endpoints/{id}/keys`: a signing key of its owner, or of a user who is let in."""

    user: str
    user_name: str
    key: str
    comment: str


class Brokers(Record, frozen=True, kw_only=True):
    """`GET /brokers`: where endpoints and clients connect to, without credentials."""

    urls: list[str]


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
    """What a daemon needs to connect.  `cancels`: tasks it may still hold that somebody cancelled; `gone`: when a journal of this endpoint
    was given up for gone last (0 never): what was signed before may have run there.
    """

    epoch: int
    brokers: list[str]
    user: str
    password: str
    cancels: list[str]
    gone: int = 0


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
    """202 of `POST /tasks`: everything is accepted but the `verdicts` listed.

    `tasks` and `group` are there where the front door made them, for tasks that came as plain data: one id each, '' for a refused one.
    """

    bundle: str
    accepted: int
    verdicts: list[Verdict] = []
    tasks: list[str] = []
    group: str = ""


class PlainTask(Record, frozen=True, kw_only=True):
    """One call, its arguments plain data.  `key` makes it safe to send again: the same key is the same task."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    key: str = ""


class PlainTasks(Record, frozen=True, kw_only=True):
    """`POST /tasks` without a signature, for endpoints that trust the front door's own key.

    `endpoint` is a name or an id; `function` an id, `owner/name`, or the name of a function of yours; `group` a name of yours or an id;
    `walltime` and `expires` are seconds.
    """

    endpoint: str
    function: str
    tasks: list[PlainTask]
    group: str = ""
    pool: str = ""
    walltime: float = 0.0
    expires: float = 604_800.0
    retry: Literal["infra", "never"] | int = "infra"
    priority: int = 0
    resources: dict[str, Any] = {}


class Waiting(Record, frozen=True, kw_only=True):
    """Why a task has not ended; `broker.waiting.sentence` says it.

    `kind`: offline (`since` when, last seen on `host`), broker, delivery, ahead (`ahead` tasks), worker, running (`since` when, on `host`,
    with `walltime_s` where there is one), reason (`reason` is the endpoint's own).  Others may follow.
    """

    kind: str
    since: int = 0
    host: str = ""
    ahead: int = 0
    walltime_s: float = 0.0
    reason: str = ""


class TaskView(Record, frozen=True, kw_only=True):
    """A task as the store knows it.  Times that are not known are 0; `failure` is `[code, message]`, `type_name` the exception's type.

    `waiting_for` is `why` as a sentence, in UTC; `traceback` is there where one task is asked for.
    """

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
    type_name: str = ""
    traceback: str = ""
    why: Waiting | None = None
    pool: str = ""


class TasksQuery(Record, frozen=True, kw_only=True):
    """`GET /tasks?…`, newest first.  `group` and `endpoint` are ids or names, `function` an id, a plain name, or `ada/recon`; `since` is in
    milliseconds; `before` is the last id of the page before.
    """

    state: State | None = None
    group: str = ""
    endpoint: str = ""
    function: str = ""
    since: Natural = 0
    before: str = ""
    limit: int = 100


class LeaseQuery(Record, frozen=True, kw_only=True):
    """`DELETE /endpoints/{id}/lease?epoch=`: makes sure that it is still the caller's to give."""

    epoch: Natural | None = None


class GroupQuery(Record, frozen=True, kw_only=True):
    """`GET /groups/{id}?tasks=false`: only whether there is such a group, and its id, because it may have a million tasks."""

    tasks: bool = True


class PageQuery(Record, frozen=True, kw_only=True):
    """`GET /groups/{id}/tasks?after=&limit=`: `after` is the last id of the page before."""

    after: str = ""
    limit: int = 1000


class NameQuery(Record, frozen=True, kw_only=True):
    """`GET /functions?name=` and `POST /functions?name=`."""

    name: str = ""


class TaskBrief(Record, frozen=True, kw_only=True):
    """One row of `GET /groups/{id}/tasks?after=&limit=`: the tasks of a group in the order of their submission."""

    id: str
    state: State
    endpoint: str
    function_name: str


class ResultAnswer(Record, frozen=True, kw_only=True):
    """`GET /tasks/{id}/result`: the plain value of a task that succeeded, as the store has it; no signature travels along, so nobody who
    reads this can check it.
    """

    id: str
    state: State
    value: Any = None
    failure: tuple[str, str] | None = None
    type_name: str = ""
    waiting_for: str = ""


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
    """`POST /sessions` and `POST /sessions/{id}/groups`: the groups to listen to.  A group is created by its first listener or bundle;
    `names` says how their user calls them, by id.
    """

    groups: list[str]
    names: dict[str, str] = {}


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
    """`POST /functions?name=`: the function's id; where it was given a name, that name and its version of it."""

    id: str
    name: str = ""
    version: int = 0


class FunctionView(Record, frozen=True, kw_only=True):
    """One row of `GET /functions?name=`: a function of the caller, or one shared with them.

    `names`: what it is registered as, each with its version, as in `ada/recon@2`; `allowed`: names of those whom its owner lets use these.
    """

    id: str
    name: str
    python: str
    created: int
    names: list[str] = []
    owner: str = ""
    allowed: list[str] = []


class FunctionPatch(Record, frozen=True, kw_only=True):
    """`PATCH /functions/{id}`: names of users who may, or may no longer, use a named function."""

    allow: list[str] = []
    deny: list[str] = []


class DeadLetter(Record, frozen=True, kw_only=True):
    """One row of `GET /dead`: what could not be delivered.  `bundle`, `user`, `endpoint` and `group` are '' where it matches no bundle.

    `reason` is the broker's word (delivery_limit, rejected, …) or `missing`; `message` the same for people; `state` what became of the
    bundle: sent again, left alone, received, failed, expired, lost, or unknown.
    """

    id: str
    bundle: str
    user: str
    user_name: str
    endpoint: str
    endpoint_name: str
    group: str
    reason: str
    message: str
    state: str
    kind: str
    size: int
    first: int
    last: int
    times: int
    reinjected: int


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
