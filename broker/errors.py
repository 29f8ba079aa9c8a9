"""Every error that funcmq raises, in one tree and one table.

FuncmqError
├── InvalidRequest          the request itself is wrong
│   ├── NotSerializable     an argument or a result cannot be serialised
│   └── PayloadTooLarge     a bundle, argument or result is over the limit
├── NotLoggedIn             no token, or it is expired or revoked
├── NotAllowed              known, but may not
├── NotFound                no such thing, or it belongs to somebody else
├── Conflict                the id is taken by something different
├── Busy                    try again later (`retry_after`, in seconds)
├── Unreachable             nobody answers there
├── VersionMismatch         two sides that do not understand each other
├── EnvironmentMismatch     the pool's Python cannot run this function
├── EndpointOffline         the endpoint is not connected and waiting was declined
├── AlreadyRunning          another process or host holds this endpoint
├── StorageFull             no space left where something must be kept
├── ConfigurationError      a setting is missing or wrong
└── TaskError               a task ended without a result
    ├── TaskFailed          the function raised
    │   └── ImportFailed    a module is missing on the worker
    ├── TaskCancelled       somebody cancelled it
    ├── TaskExpired         it did not start before `expires`
    ├── TaskLost            nobody can tell how it ended
    ├── TaskPoisoned        its bundle could not be delivered
    ├── WalltimeExceeded    it ran longer than its walltime
    └── WorkerDied          its own process died under it

The docstring of a class is the default message; `hint` is what to do next; `http` is the status of an answer that carries it, `exit` that
of a command that ends by it.  `code` is the same word in Python, in HTTP answers and in logs.  The end of a task is no failure of the
request that asks for it: `http` is 200 there, and the error stands inside the answer.
"""

from __future__ import annotations

import concurrent.futures
from typing import Any, ClassVar


class FuncmqError(Exception):
    """Something went wrong inside funcmq."""

    http: ClassVar[int] = 500
    exit: ClassVar[int] = 6
    hint: str = "Please report this with the log of the process that raised it."
    details: dict[str, Any]

    def __init__(self, message: str = "", *, hint: str = "", **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.details = details
        if hint:
            self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self).__name__, self.message, self.hint, self.details)

    @property
    def code(self) -> str:
        """The name that travels: equal to the class's name for every class of the table."""
        return type(self).__name__


class InvalidRequest(FuncmqError):
    """The request is not valid."""

    http, exit, hint = 422, 2, "Correct the request; nothing of it was accepted."


class NotSerializable(InvalidRequest):
    """A value cannot be sent to another process."""

    exit = 6
    hint = "Pass plain data, or something that cloudpickle can pickle: no open files, sockets, locks or generators."


class PayloadTooLarge(InvalidRequest):
    """The payload is over the size limit."""

    http, exit = 413, 6
    hint = "Write large data to a file that both sides can read, and pass its path."


class NotLoggedIn(FuncmqError):
    """The front door does not know this token, or it has expired."""

    http, exit, hint = 401, 4, "Run `funcmq login URL`."


class NotAllowed(FuncmqError):
    """You may not do this."""

    http, exit, hint = 403, 4, "Ask the owner for access."


class NotFound(FuncmqError):
    """There is no such thing here."""

    http, exit, hint = 404, 6, "Check the name; `funcmq endpoint list` and `funcmq task list` show what you can see."


class Conflict(FuncmqError):
    """This id is already taken by something different."""

    http, exit, hint = 409, 6, "Use a new id; what was accepted under the old one is unchanged."


class Busy(FuncmqError):
    """The service cannot take this now."""

    http, exit, hint = 503, 3, "Try again with the same ids; nothing is run twice."

    @property
    def retry_after(self) -> float:
        """Seconds to wait before the next try."""
        return float(self.details.get("retry_after", 1.0))


class Unreachable(FuncmqError):
    """Nobody answers at this address."""

    http, exit, hint = 503, 3, "Check the URL and the network, and that the service runs there."


class VersionMismatch(FuncmqError):
    """The two sides speak different versions."""

    http, exit, hint = 426, 6, "Install the same release on both sides: pip install --upgrade funcmq"


class EnvironmentMismatch(FuncmqError):
    """The endpoint's Python cannot run this function."""

    http, exit, hint = 422, 6, "Use the Python minor version of the pool on your side, or a pool with yours."


class EndpointOffline(FuncmqError):
    """The endpoint is not connected."""

    http, exit, hint = 409, 6, "Start it with `funcmq endpoint start NAME`, or submit with offline='wait'."


class AlreadyRunning(FuncmqError):
    """This endpoint is already running."""

    http, exit, hint = 409, 6, "Stop it there first, or start here with --takeover."


class StorageFull(FuncmqError):
    """There is no space left to keep this."""

    http, exit, hint = 507, 6, "Free some space; nothing that was accepted is lost."


class ConfigurationError(FuncmqError):
    """The configuration is missing or wrong."""

    http, exit, hint = 500, 78, "Try `funcmq dev`, or `funcmq login URL`."


class TaskError(FuncmqError):
    """A task ended without a result."""

    http, exit, hint = 200, 1, "`funcmq task show ID` tells what is known of it."

    @property
    def task(self) -> str:
        """Id of the task, as 32 hex digits ('' where unknown)."""
        return str(self.details.get("task", ""))

    @property
    def endpoint(self) -> str:
        """Id of the endpoint that ran it."""
        return str(self.details.get("endpoint", ""))

    @property
    def host(self) -> str:
        """Name of the host that ran it."""
        return str(self.details.get("host", ""))


class TaskFailed(TaskError):
    """The function raised an exception."""

    hint = "The traceback on the worker says where; mend the function, or submit it with retry=N if the next try may succeed."

    @property
    def type_name(self) -> str:
        """Qualified name of the exception's type on the worker."""
        return str(self.details.get("type_name", ""))

    @property
    def remote_traceback(self) -> str:
        """The traceback as the worker printed it."""
        return str(self.details.get("traceback", ""))


class ImportFailed(TaskFailed):
    """A module is missing on the worker."""

    hint = "Install the module in the pool's Python, or send it along with by_value=[module]."


class TaskCancelled(TaskError, concurrent.futures.CancelledError):
    """The task was cancelled."""

    hint = "Submit it again if its result is still wanted."


class TaskExpired(TaskError):
    """The task did not start before its time was up."""

    hint = "Submit it again, with a longer `expires` if the endpoint is often away."


class TaskLost(TaskError):
    """Nobody can tell how this task ended: it may have run."""

    hint = "Check what it may have changed, then submit it again."


class TaskPoisoned(TaskError):
    """The task could not be delivered to its endpoint."""

    hint = "See `funcmq dead list`."


class WalltimeExceeded(TaskError):
    """The task ran longer than its walltime and was ended."""

    hint = "Submit it with a longer `walltime`."


class WorkerDied(TaskError):
    """The process that ran this task died under it."""

    hint = "Too little memory, a crash in a C library and os._exit are the usual causes; `funcmq task logs ID` shows what it wrote."


def _walk(cls: type[FuncmqError]) -> list[type[FuncmqError]]:
    return [cls] + [found for child in cls.__subclasses__() for found in _walk(child)]


TABLE: dict[str, type[FuncmqError]] = {cls.__name__: cls for cls in _walk(FuncmqError)}
"""Code → class; HTTP status, exit status, default message and hint are on the class."""


def rebuild(code: str, message: str = "", hint: str = "", details: dict[str, Any] | None = None) -> FuncmqError:
    """The error that another process described; an unknown code becomes a plain FuncmqError that names it."""
    known = {key: value for key, value in (details or {}).items() if key not in ("message", "hint")}
    if cls := TABLE.get(code):
        return cls(message, hint=hint, **known)
    return FuncmqError(f"{code}: {message}", hint=hint or "The other side is newer than this one: pip install --upgrade funcmq", **known)
