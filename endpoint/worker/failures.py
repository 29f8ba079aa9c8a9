"""Exceptions of tasks as data."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import TypeVar

from funcmq.broker.codec import pack_plain
from funcmq.broker.errors import FuncmqError
from funcmq.broker.messages import Failure

MAX_TEXT = 64 * 1024
"""Characters of a message or a traceback; the middle of longer ones is left out."""
MAX_ARGS = 64 * 1024
"""Bytes of the exception's own arguments; more are left out."""
T = TypeVar("T")
_BETWEEN = {"funcmq", "asyncio", "cloudpickle", "msgpack"}
"""Packages whose frames may lie between us and the user's code."""


def describe(raised: BaseException, code: str = "TaskFailed", traces: bool = True) -> Failure:
    """What a task raised.  Runs the exception's own __str__."""
    if isinstance(raised, ModuleNotFoundError):
        return missing_module(raised, "it ran")
    hint = "The function called sys.exit: return a value or raise an exception instead." if isinstance(raised, SystemExit) else ""
    return Failure(code, _text(raised), type_name(type(raised)), _traceback(raised) if traces else "", _args(raised), hint)


def missing_module(raised: ModuleNotFoundError, when: str) -> Failure:
    """A module is missing on the worker; `when` completes 'while …'."""
    message = f"The module {raised.name!r} is missing on the worker: {raised} (while {when})."
    return Failure("ImportFailed", message, type_name(type(raised)), _traceback(raised), _args(raised))


def from_error(error: FuncmqError, hint: str = "") -> Failure:
    """One of our own errors, with the traceback of its cause, if it has one."""
    cause = error.__cause__
    if isinstance(cause, ModuleNotFoundError):
        return missing_module(cause, "its function or arguments were loaded")
    shown = ""
    if cause is not None and _users(cause.__traceback__) is not None:
        cause.__suppress_context__ = True  # that the value is not plain data either helps nobody
        shown = _traceback(cause)
    return Failure(error.code, _cut(error.message), traceback=shown, hint=hint or error.hint)


def not_loaded(name: str, raised: BaseException) -> Failure:
    """The function itself cannot be restored here."""
    if isinstance(raised, ModuleNotFoundError):
        return missing_module(raised, f"{name} was loaded")
    if isinstance(raised, FuncmqError):
        return from_error(raised)
    message = f"The function {name} cannot be restored on the worker: {type_name(type(raised))}: {_text(raised)}"
    hint = "Are the versions of its modules the same on both sides?"
    return Failure("NotSerializable", message, traceback=_traceback(raised), hint=hint)


def bad_arguments(name: str, raised: BaseException) -> Failure:
    """The arguments of a task cannot be restored here."""
    found = from_error(raised) if isinstance(raised, FuncmqError) else describe(raised, "NotSerializable")
    if found.code == "ImportFailed":
        return found
    message = f"The arguments of {name} cannot be restored on the worker.  {found.message}"
    return Failure(found.code, message, traceback=found.traceback, hint=found.hint)


def unserializable(value: object, error: FuncmqError) -> Failure:
    """A result cannot be sent."""
    if isinstance(value, GeneratorType | AsyncGeneratorType):
        return from_error(error, "The function is a generator: return list(…) of it, or map over a function of one item.")
    return from_error(error)


def type_name(kind: type) -> str:
    """`module.qualname`; builtins without module."""
    return kind.__qualname__ if kind.__module__ == "builtins" else _cut(f"{kind.__module__}.{kind.__qualname__}")


def _text(raised: BaseException) -> str:
    return _guarded(lambda: _cut(str(raised)), f"<its __str__ raises, it is a {type_name(type(raised))}>")


def _traceback(raised: BaseException) -> str:
    def text() -> str:
        shown = traceback.TracebackException(type(raised), raised, _users(raised.__traceback__), compact=True)
        return _cut("".join(shown.format()))

    return _guarded(text, "<the traceback cannot be printed>\n")


def _args(raised: BaseException) -> bytes | None:
    def packed() -> bytes | None:
        data = pack_plain(list(raised.args))
        return data if len(data) <= MAX_ARGS else None

    return _guarded(packed, None)


def _guarded(make: Callable[[], T], otherwise: T) -> T:
    """What make makes; an exception of a user may raise anything when it is looked at."""
    try:
        return make()
    except BaseException:  # noqa: BLE001 (SystemExit included)
        return otherwise


def _users(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins with the user's code: what lies between us and it is left out."""
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        trace = trace.tb_next
    return trace


def _cut(text: str) -> str:
    """Text that can be encoded and is short enough."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[: MAX_TEXT // 4]}\n  … {len(text) - MAX_TEXT:,} characters left out …\n{text[-MAX_TEXT * 3 // 4 :]}"
