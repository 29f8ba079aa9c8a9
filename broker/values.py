"""Arguments and results to slots and back.  Only clients and workers import this: it is the one place that unpickles values.

Plain data (see `codec.pack_plain`) travels as msgpack and crosses Python versions.  Everything else is pickled: objects of installed
classes cross them too; code, of functions and classes that travel by value, says which minor version it is of and is refused by others.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import sys
from types import CodeType
from typing import Any

import cloudpickle

from funcmq.broker.codec import pack_plain, unpack_plain
from funcmq.broker.errors import EnvironmentMismatch, NotSerializable, PayloadTooLarge
from funcmq.broker.messages import MAX_INLINE, Inline, Slot

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pack(value: object, what: str = "value", limit: int = MAX_INLINE) -> Inline:
    """The slot that carries this value.

    :raises NotSerializable: it is neither plain data nor picklable; the message says what and why.
    :raises PayloadTooLarge: its bytes are over the limit.
    """
    try:
        slot = Inline("msgpack", pack_plain(value))
    except (TypeError, ValueError, OverflowError):
        slot = Inline("pickle", _pickle(value, what))
    if len(slot.data) > limit:
        raise PayloadTooLarge(f"The {what} has {len(slot.data):,} bytes; the limit is {limit:,}.")
    return slot


def _pickle(value: object, what: str) -> bytes:
    try:
        file = io.BytesIO()
        _Pickler(file, protocol=5).dump(value)
    except Exception as broken:  # a value's own __reduce__ may raise anything
        raise NotSerializable(f"The {what} cannot be pickled: {type(broken).__name__}: {broken}.") from broken
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
    """cloudpickle, with code that knows its Python, and paths that all Pythons know."""

    def reducer_override(self, obj: Any) -> Any:
        """What stands for obj in the pickle."""
        if isinstance(obj, CodeType):
            _, parts = cloudpickle.Pickler.dispatch_table[CodeType](obj)
            return code_of, (PYTHON, *parts)
        if type(obj) in _PATHS:
            return path_of, (type(obj).__name__, str(obj))
        return super().reducer_override(obj)


_PATHS = (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)


def path_of(kind: str, text: str) -> pathlib.PurePath:
    """A path.  Python 3.13 keeps its classes in a module that no other version has; values name this function instead, as `code_of`."""
    path: pathlib.PurePath = getattr(pathlib, kind)(text)
    return path


def code_of(python: str, *parts: Any) -> CodeType:
    """Code of this minor version, from its parts.  Values name this function: its name and arguments are part of their version 1.

    :raises EnvironmentMismatch: it is another's; running it could crash the process.
    """
    if python != PYTHON:
        raise EnvironmentMismatch(
            f"A value holds code of Python {python}, of a function or class that travels with it; this is Python {PYTHON}.",
            hint="Pass plain data or objects of installed classes, or use the same minor version of Python on both sides.",
        )
    return CodeType(*parts)


def unpack(slot: Slot) -> Any:
    """The value in a slot.  Call this only on bytes whose signature has been checked.

    :raises NotSerializable: the bytes cannot be turned into a value here; the cause is attached.
    :raises EnvironmentMismatch: they hold code of another Python.
    """
    if not isinstance(slot, Inline):
        raise NotSerializable(f"This release cannot read values kept as {type(slot).__name__}.", hint="Install a newer funcmq.")
    if slot.encoding == "msgpack":
        return unpack_plain(slot.data)
    try:
        return pickle.loads(slot.data)  # noqa: S301 - the caller has checked the signature
    except EnvironmentMismatch:
        raise
    except Exception as broken:  # unpickling runs the value's own code
        raise NotSerializable(
            f"A pickled value cannot be restored here: {type(broken).__name__}: {broken}.",
            hint="Install here the modules, in the versions, that the value was made with.",
        ) from broken
