"""Functions to function records: what a client does before it sends one.  Only clients and workers import this, because it imports
cloudpickle.

The same source gives the same record, and so the same id, in every process: code is pickled without file names and first lines, and sets
are pickled in a stable order.  What was taken out travels beside the record as `places`, and comes back for tracebacks
(`funcmq.endpoint.worker.load`).  One exception: classes of `__main__` and of local modules carry the random id by which cloudpickle knows
them again.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Literal

import cloudpickle

from funcmq.broker import codec, values
from funcmq.broker.errors import InvalidRequest, NotSerializable
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_INLINE, FunctionRecord, FunctionRef, Inline
from funcmq.broker.modules import ByValue, chosen, registered
from funcmq.broker.references import variables
from funcmq.broker.source import program, shown
from funcmq.broker.texts import NoProgram
from funcmq.broker.values import PYTHON

Strategy = Literal["auto", "pickle", "source"]
_PATHS = ("__file__", "__path__", "__cached__", "__spec__", "__loader__", "__builtins__")
"""Names of a module that say where it lies on this machine."""
_registry = threading.RLock()
"""Held while modules stand in cloudpickle's registry, which belongs to the whole process; what is pickled may itself make a record."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A function ready to be sent: `record` are the exact bytes whose SHA-256 is `id`, `places` file and first line of each code object, in
    their order in the record.  `needs` is the minor version of Python that it wants ('' any), `why` the reason, beginning with 'it'.
    """

    id: str
    record: bytes
    name: str
    places: list[tuple[str, int]]
    needs: str = ""
    why: str = ""

    @property
    def ref(self) -> FunctionRef:
        """How a bundle names it."""
        return FunctionRef(self.id, self.name, self.places)


def make_record(function: Callable[..., Any], *, by_value: ByValue = "auto", strategy: Strategy = "auto") -> Recorded:
    """The record of a function.  By value go functions of `__main__`, and of the modules that `by_value` says: "auto" means those outside
    site-packages and the standard library, a sequence exactly these and what is below them.

    With `strategy` "auto" it carries its source beside its pickle where that can stand alone, for workers with another Python; with
    "source" nothing else, with "pickle" for tracebacks only.

    :raises InvalidRequest: it cannot be called.
    :raises NotSerializable: it refers to something that cannot be pickled, the message names both; or it has to go as source and cannot.
    """
    if not callable(function):
        raise InvalidRequest(f"A function is needed; {type(function).__name__} cannot be called.")
    name = name_of(function)
    if strategy == "source":
        return _as_source(function, name, by_value)
    with _registry, registered(chosen(by_value)):
        code, places = _dump(function, name)
    if not places:  # the worker imports all of it, whatever its Python
        return _recorded(FunctionRecord(1, "pickle", name, "", code, None), places)
    why = 'it was submitted with strategy="pickle"'
    if strategy == "auto":
        try:
            return _recorded(FunctionRecord(1, "source", name, PYTHON, code, program(function, by_value)), places)
        except NoProgram as none:
            why = str(none)
    return _recorded(FunctionRecord(1, "pickle", name, PYTHON, code, shown(function)), places, why)


def _as_source(function: Callable[..., Any], name: str, by_value: ByValue) -> Recorded:
    try:
        text = program(function, by_value)
    except NoProgram as none:
        hint = "Pass what it uses as arguments, import it inside the function, or leave strategy at 'auto'."
        raise NotSerializable(f"{name} cannot be sent as source: {none}.", hint=hint) from None
    code = getattr(function, "__code__")  # noqa: B009 (only plain functions have programs)
    return _recorded(FunctionRecord(1, "source", name, "", b"", text), [(code.co_filename, code.co_firstlineno)])


def _recorded(record: FunctionRecord, places: list[tuple[str, int]], why: str = "") -> Recorded:
    data = codec.encode(record)
    return Recorded(sha256(data), data, record.name, places, record.needs, why)


def pack(value: object, what: str = "value", limit: int = MAX_INLINE, *, by_value: ByValue = "auto") -> Inline:
    """As `values.pack`, where objects of local classes are pickled by value: the arguments that go with a record.

    :raises NotSerializable, PayloadTooLarge: as there.
    """
    try:
        plain = Inline("msgpack", codec.pack_plain(value))
    except (TypeError, ValueError, OverflowError):
        with _registry, registered(chosen(by_value)):
            return values.pack(value, what, limit)
    return plain if len(plain.data) <= limit else values.pack(value, what, limit)


def name_of(function: Callable[..., Any]) -> str:
    """What people call it: `module.name`, without the module where that is `__main__`."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    module = getattr(named, "__module__", None)
    name = str(getattr(named, "__qualname__", type(function).__qualname__))
    return name if module in (None, "__main__", "__mp_main__", "builtins") else f"{module}.{name}"


def _dump(function: Callable[..., Any], name: str) -> tuple[bytes, list[tuple[str, int]]]:
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=5)
    try:
        pickler.dump(function)
    except Exception as broken:  # pickling runs the __reduce__ of whatever the function refers to
        raise NotSerializable(f"{name} cannot be sent: {_culprit(function)}{type(broken).__name__}: {broken}.") from broken
    return file.getvalue(), pickler.places


def _culprit(function: Callable[..., Any]) -> str:
    """Which variable of the function cannot be pickled, where one can be named."""
    for name, value in variables(function):
        try:
            _Pickler(io.BytesIO(), protocol=5).dump(value)
        except Exception:  # noqa: BLE001 (as above)
            return f"{name} holds a {type(value).__module__}.{type(value).__qualname__}: "
    return ""


# Normal form


class _Sorted:
    """Stands for a set in a pickle, its items in a stable order."""

    __slots__ = ("items", "kind")

    def __init__(self, value: set[Any] | frozenset[Any], items: list[Any]) -> None:
        self.kind, self.items = type(value), items


def make_code(_place: int, *parts: Any) -> CodeType:
    """A code object from its parts.  Records name this function: its name and arguments are part of their version 1.  A loader that knows
    the places replaces it.
    """
    return CodeType(*parts)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc, name-defined, unused-ignore]
    """cloudpickle, with code in normal form.  `places` fills as code objects are met."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self.places: list[tuple[str, int]] = []
        self._strings: dict[str | bytes, str | bytes] = {}
        self._sets: dict[int, tuple[object, _Sorted | None]] = {}

    def reducer_override(self, obj: Any) -> Any:
        """What stands for obj in the pickle; code, modules by value and functions by value in normal form."""
        if isinstance(obj, CodeType):
            return self._code(obj)
        if isinstance(obj, _Sorted):
            return obj.kind, (obj.items,)
        if isinstance(obj, ModuleType):
            return self._module(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and isinstance(reduced, tuple):
            self._tidy(*reduced[1:3])
        return reduced

    def _code(self, code: CodeType) -> tuple[Any, ...]:
        place = len(self.places)
        self.places.append((code.co_filename, code.co_firstlineno))
        normal = code.replace(co_filename="", co_firstlineno=1)
        # the arguments of CodeType are cloudpickle's to know: they differ between Python versions
        _, parts = cloudpickle.Pickler.dispatch_table[CodeType](normal)
        return make_code, (place, *(self._constant(part) for part in parts))

    def _constant(self, value: Any) -> Any:
        """An equal constant whose pickle does not depend on which equal strings happened to be one object, or on the hash seed."""
        if type(value) in (str, bytes):
            return self._strings.setdefault(value, _copy(value))
        if type(value) is tuple:
            return tuple(self._constant(item) for item in value)
        if type(value) is frozenset:
            return _Sorted(value, [self._constant(item) for item in sorted(value, key=_order)])
        return value

    def _module(self, module: ModuleType) -> Any:
        reduced = cloudpickle.Pickler.dispatch_table[ModuleType](module)
        if len(reduced[1]) == 2:  # by value: name and variables
            name, variables = reduced[1]
            return reduced[0], (name, {key: self._set(value) for key, value in variables.items() if key not in _PATHS})
        return reduced

    def _tidy(self, new: tuple[Any, ...], state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        """Take out of a reduced function where it lies on this machine, and in which order modules were imported."""
        for name in _PATHS:
            new[1].pop(name, None)
        slots = state[1]
        slots["_cloudpickle_submodules"].sort(key=lambda module: module.__name__)
        slots["__globals__"] = {name: self._set(value) for name, value in slots["__globals__"].items()}

    def _set(self, value: Any) -> Any:
        """A stand-in for a global set whose items have an order of their own; one for each set, so that functions go on sharing it."""
        if type(value) not in (set, frozenset):
            return value
        if id(value) not in self._sets:
            plain = all(type(item) in (str, bytes, int, float, bool, type(None)) for item in value)
            self._sets[id(value)] = (value, _Sorted(value, sorted(value, key=_order)) if plain else None)
        return self._sets[id(value)][1] or value


def _copy(value: str | bytes) -> str | bytes:
    return "".join(value) if isinstance(value, str) else bytes(bytearray(value))


def _order(constant: Any) -> Any:
    """A key that sorts constants of any type, and not by hash."""
    if isinstance(constant, tuple | frozenset):
        parts = [_order(item) for item in constant]
        return type(constant).__name__, "", parts if isinstance(constant, tuple) else sorted(parts)
    return type(constant).__name__, repr(constant), []
