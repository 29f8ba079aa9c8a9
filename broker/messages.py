"""Every message that travels through RabbitMQ, and the bundle that both HTTP and RabbitMQ carry.

A message is a msgpack array; its first element is its version, its AMQP property `type` is `name/version` (`TYPES`).  New fields are added
at the end with a
default, so that neighbouring releases understand each other; anything else is a new version.  The bytes of every version are kept in
tests/golden.

Times are integers, milliseconds since the epoch, unless a name ends in `_s`.  Task ids are 16 bytes, all other ids are hex.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from funcmq.broker import codec
from funcmq.broker.errors import InvalidRequest, VersionMismatch
from funcmq.broker.ids import is_hash, is_id

MAX_TASKS = 1024
"""Tasks in a bundle, results in a result bundle."""
MAX_BUNDLE = 1024 * 1024
"""Bytes of a bundle with more than one task, or a result bundle with more than one result."""
MAX_INLINE = 8 * 1024 * 1024
"""Bytes of one argument or result slot."""
MAX_WAIT_S = 7 * 24 * 3600
"""Longest time between signing and first start."""

End = Literal["succeeded", "failed", "cancelled", "expired", "lost"]
Kind = Literal["call", "chunk"]
Retry = Literal["infra", "never"] | int


class Inline(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A value that travels inside the message: `encoding` is `msgpack` (plain data) or `pickle`."""

    encoding: Literal["msgpack", "pickle"]
    data: bytes


class Blob(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A value kept by the front door under its hash (reserved)."""

    encoding: Literal["msgpack", "pickle"]
    sha256: str
    size: int


class Uri(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A value at an address that the worker can read (reserved)."""

    encoding: Literal["msgpack", "pickle"]
    uri: str
    sha256: str
    size: int


Slot = Inline | Blob | Uri


class Signature(msgspec.Struct, frozen=True, array_like=True, tag="signature"):
    """Ed25519 by the key whose raw public half has this SHA-256."""

    key: str
    sig: bytes


class Grant(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """A rule signed by its owner, and the event that it matched."""

    key: str
    sig: bytes
    rule: bytes
    event: bytes


class Unsigned(msgspec.Struct, frozen=True, array_like=True, tag="none"):
    """Nobody signed this; endpoints take it with --insecure only."""


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """`[auth, body]`: a bundle, a result bundle or a refusal.  Its id is the SHA-256 of the exact bytes of the body."""

    auth: Signature | Grant | Unsigned
    body: bytes


class FunctionRef(msgspec.Struct, frozen=True, array_like=True):
    """A function by its id; `places` are file and first line of its code objects, for tracebacks only."""

    id: str
    name: str
    places: list[tuple[str, int]] = []

    def __post_init__(self) -> None:
        if not is_hash(self.id):
            raise ValueError("a function id is 64 hex digits")


class Options(msgspec.Struct, frozen=True, array_like=True):
    """How tasks are to be run; shared by all tasks of a bundle that name it."""

    kind: Kind = "call"
    pool: str = ""
    walltime_s: float = 0.0
    """0: none."""
    retry: Retry = "infra"
    priority: int = 0
    not_before: int = 0
    not_after: int = 0
    resources: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not -10 <= self.priority <= 10:
            raise ValueError("priority is between -10 and 10")
        if self.walltime_s < 0:
            raise ValueError("walltime is not negative")
        if isinstance(self.retry, int) and not 0 <= self.retry <= 100:
            raise ValueError("retry is between 0 and 100")


class Task(msgspec.Struct, frozen=True, array_like=True):
    """One call, or one chunk of calls: `function` and `options` are indices into the bundle's lists, `args` holds `(args, kwargs)`, for a
    chunk `(star, [x, …])`.
    """

    id: bytes
    function: int
    options: int
    args: Slot
    key: str = ""

    def __post_init__(self) -> None:
        if len(self.id) != 16:
            raise ValueError("a task id is 16 bytes")


class Work(msgspec.Struct, frozen=True, array_like=True):
    """The body of a bundle: everything an endpoint acts on.  One user, one group, one endpoint."""

    VERSION: ClassVar[int] = 1

    v: int
    user: str
    key: str
    run_as: str
    endpoint: str
    group: str
    signed_at: int
    functions: list[FunctionRef]
    options: list[Options]
    tasks: list[Task]
    endpoints: list[str] = []

    def __post_init__(self) -> None:
        if self.v != self.VERSION:
            return
        if not (is_id(self.user) and is_id(self.endpoint) and is_id(self.group)):
            raise ValueError("user, endpoint and group are 32 hex digits each")
        if not 1 <= len(self.tasks) <= MAX_TASKS:
            raise ValueError(f"a bundle holds 1 to {MAX_TASKS} tasks, this one {len(self.tasks)}")
        for task in self.tasks:
            if not (0 <= task.function < len(self.functions) and 0 <= task.options < len(self.options)):
                raise ValueError("a task names a function or options that are not in the bundle")
        if len({task.id for task in self.tasks}) != len(self.tasks):
            raise ValueError("a task id stands twice in the bundle")
        latest = self.signed_at + MAX_WAIT_S * 1000
        if any(not 0 < options.not_after <= latest for options in self.options):
            raise ValueError("not_after lies at most 7 days after signed_at")


class Dispatch(msgspec.Struct, frozen=True, array_like=True):
    """What lies in a task queue: a bundle as it was signed, the how-manieth sending this is, and the indices accepted (None: all)."""

    dispatch: int
    only: list[int] | None
    bundle: bytes


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a task has no result.  `code` is a class of `errors.TABLE`; `args` are the exception's own arguments where they are plain data
    (see `codec`).
    """

    code: str
    message: str
    type_name: str = ""
    traceback: str = ""
    args: bytes | None = None
    hint: str = ""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """How one task ended."""

    id: bytes
    state: End
    value: Slot | None
    failure: Failure | None
    attempt: int
    received: int
    started: int
    ended: int
    host: str = ""
    stdout: str = ""
    stderr: str = ""


class Results(msgspec.Struct, frozen=True, array_like=True):
    """The body of a result bundle: tasks of one user and one group."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    key: str
    journal: str
    user: str
    group: str
    signed_at: int
    results: list[Outcome]


class Refused(msgspec.Struct, frozen=True, array_like=True):
    """The body of a refusal: the endpoint did not take this bundle, and runs nothing of it."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    key: str
    signed_at: int
    bundle: str
    code: str
    message: str


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """These bundles are committed to the endpoint's journal."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    journal: str
    bundles: list[str]
    at: int


class Running(msgspec.Struct, frozen=True, array_like=True):
    """These tasks run, and have for over a second; `host` is '' where the endpoint does not know on which node."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    tasks: list[bytes]
    at: int
    host: str = ""


class Cancel(msgspec.Struct, frozen=True, array_like=True):
    """Front door to endpoint: end these tasks if they have not ended."""

    VERSION: ClassVar[int] = 1

    v: int
    tasks: list[bytes]


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """Front door to endpoint: these result bundles are in the store; `reason` is '' or why one was refused for good."""

    VERSION: ClassVar[int] = 1

    v: int
    bundles: list[tuple[str, str]]


class Order(msgspec.Struct, frozen=True, array_like=True):
    """Front door to endpoint: send again what is not stored, take no more work, or end."""

    VERSION: ClassVar[int] = 1

    v: int
    verb: Literal["resend", "drain", "stop"]


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """Front door to the daemon that holds this epoch, and to no later one: take no more work, end, or only show the log.  It answers
    `Told` with the same `id`, and the last `size` bytes of its log, before it obeys.
    """

    VERSION: ClassVar[int] = 1

    v: int
    epoch: int
    verb: Literal["drain", "stop", "logs"]
    id: str
    size: int = 0


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `Ask`, on `status`: who obeys."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    id: str
    host: str
    pid: int
    log: str
    """Path on that host."""
    text: str = ""


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """One `funcmq serve` to all: look at the store again.  `rights` have changed, `claims` are free or there is a new endpoint, `bundles`
    wait to be sent.  Words that a release does not know it passes over.
    """

    VERSION: ClassVar[int] = 1

    v: int
    serve: str
    about: list[str]


class PoolStatus(msgspec.Struct, frozen=True, array_like=True):
    """A pool as a heartbeat tells of it: `workers` registered now, `capacity` workers it may grow to, `versions` of its interpreter,
    `reason` for not running.
    """

    name: str
    provider: str
    workers: int
    busy: int
    capacity: int
    blocks: int
    versions: dict[str, str]
    reason: str = ""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True):
    """Endpoint to front door, every few seconds; losing one is harmless."""

    VERSION: ClassVar[int] = 1

    v: int
    endpoint: str
    epoch: int
    journal: str
    at: int
    host: str
    pid: int
    release: str
    pools: list[PoolStatus]
    queued: dict[str, int]
    """Waiting tasks per user id."""
    running: int
    unstored: int
    reason: str = ""


class FunctionRecord(msgspec.Struct, frozen=True, array_like=True):
    """A function as it is kept and sent; its id is the SHA-256 of exactly these bytes.  `python` is the minor version that `code` (a
    normalised cloudpickle) needs, '' any.

    Of the kind "pickle", `source` is for tracebacks only.  Of the kind "source" it is a program (`source`), for every Python that `code`
    (b'': none) is not for.
    """

    VERSION: ClassVar[int] = 1

    v: int
    kind: Literal["pickle", "source"]
    name: str
    python: str
    code: bytes
    source: str | None

    @property
    def needs(self) -> str:
        """The minor version of Python without which it cannot run, '' none."""
        return self.python if self.kind == "pickle" else ""


Message = Dispatch | Signed | Receipt | Running | Cancel | Stored | Order | Ask | Told | Notice | Heartbeat

TYPES: dict[str, type[Any]] = {
    "bundle/1": Dispatch,
    "results/1": Signed,
    "refused/1": Signed,
    "receipt/1": Receipt,
    "running/1": Running,
    "cancel/1": Cancel,
    "stored/1": Stored,
    "order/1": Order,
    "ask/1": Ask,
    "told/1": Told,
    "serve/1": Notice,
    "heartbeat/1": Heartbeat,
}


def unpack(kind: str | None, body: bytes) -> Any:
    """The message in an AMQP body whose `type` property is kind.

    :raises VersionMismatch: a message of this name is known, this version of it is not.
    :raises InvalidRequest: the type is unknown or the body is not of that type.
    """
    if cls := TYPES.get(kind or ""):
        return codec.decode(cls, body, (kind or "").partition("/")[0])
    name = (kind or "").partition("/")[0]
    if any(known.startswith(name + "/") for known in TYPES) and name:
        raise VersionMismatch(
            f"A message of type {kind} arrived; this release of funcmq knows {name}/1.",
            hint="Install the sender's release here: pip install --upgrade funcmq",
        )
    raise InvalidRequest(f"A message of unknown type {kind!r} arrived.", hint="Its sender may be newer: pip install --upgrade funcmq")
