"""From the end of a task, as its endpoint or the front door told it, to the exception that the waiting side sees.

A failed task raises what is both `TaskFailed` and the original type, where that type is a builtin or already imported here: it is
looked up, never imported.  Nothing in this module raises, however odd the original type is; where it cannot be built, plain
`TaskFailed` stands in with the same words.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from dataclasses import dataclass
from typing import Any

from funcmq.broker import codec
from funcmq.broker.errors import TABLE, FuncmqError, TaskCancelled, TaskError, TaskExpired, TaskFailed, TaskLost, rebuild
from funcmq.broker.messages import End, Failure

_NEVER = (StopIteration, StopAsyncIteration)
"""Raised by a generator or coroutine, these would mean something else to Python itself."""

_WITHOUT_FAILURE: dict[str, type[TaskError]] = {"cancelled": TaskCancelled, "expired": TaskExpired, "lost": TaskLost}


@dataclass(frozen=True, slots=True)
class Where:
    """Which task it was: its id, the name of the function, id and name of the endpoint, the host ('' where unknown)."""

    task: str
    function: str = ""
    endpoint: str = ""
    endpoint_name: str = ""
    host: str = ""

    def __str__(self) -> str:
        named = (("task", self.task), ("function", self.function), ("endpoint", self.endpoint_name or self.endpoint), ("host", self.host))
        return ", ".join(f"{what} {text}" for what, text in named if text)


def failure_to_error(state: End, failure: Failure | None, where: Where) -> FuncmqError:
    """The exception for a task that ended without a value."""
    said = failure or Failure((_WITHOUT_FAILURE.get(state) or TaskError).__name__, "")
    error = _failed(said, where) if said.code == "TaskFailed" else _named(said, where)
    if said.traceback:
        error.add_note(f"Traceback on the worker:\n{said.traceback.rstrip()}")
    error.add_note(f"({where})")
    return error


def _named(failure: Failure, where: Where) -> FuncmqError:
    return rebuild(failure.code, failure.message, failure.hint, _details(failure, where))


def _failed(failure: Failure, where: Where) -> FuncmqError:
    original = find_type(failure.type_name)
    if original is not None:
        # the original type's own code runs: anything may come out of it
        with contextlib.suppress(Exception):
            return _build(original, failure, where)
    return TaskFailed(_sentence(failure), hint=failure.hint, **_details(failure, where))


def _sentence(failure: Failure) -> str:
    """What plain TaskFailed says: the type belongs to it, because the class does not tell."""
    name = failure.type_name.removeprefix("builtins.")
    return f"{name}: {failure.message}" if name and failure.message else failure.message or name


def _details(failure: Failure, where: Where) -> dict[str, Any]:
    words = {"task": where.task, "endpoint": where.endpoint, "host": where.host}
    words |= {"type_name": failure.type_name, "traceback": failure.traceback}
    return {name: text for name, text in words.items() if text}


def find_type(name: str) -> type[Exception] | None:
    """The exception type of this qualified name, if it is a builtin or its module is imported in this process."""
    module, _, qualified = name.rpartition(".")
    while True:
        found = _attribute(module or "builtins", qualified)
        if found is not None or not module:
            break
        module, _, last = module.rpartition(".")
        qualified = f"{last}.{qualified}"
    if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, _NEVER):
        return found
    return None


def _attribute(module: str, qualified: str) -> object:
    found: object = sys.modules.get(module)
    for part in qualified.split("."):
        found = vars(found).get(part) if isinstance(found, type) or hasattr(found, "__dict__") else None
    return found


@functools.lru_cache(maxsize=256)
def _both(original: type[Exception]) -> type[TaskFailed]:
    """The class that is TaskFailed and original; made once per type, so that `type(a) is type(b)` holds for two equal failures."""
    if issubclass(original, TaskFailed):
        return original
    if issubclass(original, TaskError):
        raise TypeError("a task that itself met a TaskError must not look as if it had ended so")
    body: dict[str, Any] = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
    body |= {"code": property(lambda _: "TaskFailed"), "__reduce__": _reduce, "__str__": _say}
    return type(original.__name__, (TaskFailed, original), body)


def _say(error: FuncmqError) -> str:
    return error.message


def _build(original: type[Exception], failure: Failure, where: Where) -> FuncmqError:
    args = _arguments(failure)
    cls = _both(original)  # type: ignore[arg-type]  # mypy asks whether exceptions are hashable, not whether types are
    error: TaskFailed = cls.__new__(cls, *args)
    error.args = args
    # a signature that differs from .args is common; the object is good without its __init__
    with contextlib.suppress(Exception):
        original.__init__(error, *args)
    error.message, error.hint, error.details = failure.message, failure.hint, _details(failure, where)
    return error


def _arguments(failure: Failure) -> tuple[Any, ...]:
    if failure.args is not None:
        try:
            args = codec.unpack_plain(failure.args)
        except FuncmqError:
            args = None
        if isinstance(args, list | tuple):
            return tuple(args)
    return (failure.message,)


def _reduce(error: TaskFailed) -> tuple[Any, ...]:
    try:
        args: bytes | None = codec.pack_plain(list(error.args))
    except (TypeError, ValueError, OverflowError):
        args = None
    failure = Failure("TaskFailed", error.message, error.type_name, error.remote_traceback, args, error.hint)
    return _revive, (codec.encode(failure), error.task, error.endpoint, error.host, list(getattr(error, "__notes__", [])))


def _revive(failure: bytes, task: str, endpoint: str, host: str, notes: list[str]) -> FuncmqError:
    error = _failed(codec.decode(Failure, failure), Where(task, endpoint=endpoint, host=host))
    for note in notes:
        error.add_note(note)
    return error


def chunk_failure(said: list[Any] | tuple[Any, ...]) -> Failure:
    """The failure of one call of a chunk, from the plain list in which it travels; anything malformed becomes a TaskFailed that says so."""
    fields = [*said[:6], *[None] * (6 - len(said))] if isinstance(said, list | tuple) else [None] * 6
    code, message, type_name, trace, args, hint = fields
    if code not in TABLE:
        code = "TaskFailed"
    return Failure(code, _text(message), _text(type_name), _text(trace), args if isinstance(args, bytes) else None, _text(hint))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def copy(error: FuncmqError) -> FuncmqError:
    """An error of its own for each of several futures that end for the same reason, so that their tracebacks do not grow together."""
    return rebuild(error.code, error.message, error.hint, error.details)
