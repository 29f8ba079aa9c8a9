"""Functions to function records: what a client does before it sends one.  Only clients and workers import this, because it imports
cloudpickle.

The same source gives the same record, and so the same id, in every process: code is pickled without file names and first lines, and sets
are pickled in a stable order.  What was taken out travels beside the record as `places`, and comes back for tracebacks
(`funcmq.endpoint.worker.load`).  One exception: classes of `__main__` and of local modules carry the random id by which cloudpickle knows
them again.
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import re
import site
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal

import cloudpickle

from funcmq.broker import codec, values
from funcmq.broker.errors import InvalidRequest, NotSerializable
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_INLINE, FunctionRecord, FunctionRef, Inline

ByValue = Literal["auto"] | bool | Sequence[ModuleType]
MAX_SOURCE = 64 * 1024
"""Bytes of source that a record carries at most."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_PATHS = ("__file__", "__path__", "__cached__", "__spec__", "__loader__", "__builtins__")
"""Names of a module that say where it lies on this machine."""
_registry = threading.RLock()
"""Held while modules stand in cloudpickle's registry, which belongs to the whole process; what is pickled may itself make a record."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A function ready to be sent: `record` are the exact bytes whose SHA-256 is `id`, `places` file and first line of each code object, in
    their order in the record.
    """

    id: str
    record: bytes
    name: str
    places: list[tuple[str, int]]

    @property
    def ref(self) -> FunctionRef:
        """How a bundle names it."""
        return FunctionRef(self.id, self.name, self.places)


def make_record(function: Callable[..., Any], *, by_value: ByValue = "auto") -> Recorded:
    """The record of a function.  By value go functions of `__main__`, and of the modules that `by_value` says: "auto" means those outside
    site-packages and the standard library, a sequence exactly these and what is below them.

    :raises InvalidRequest: it cannot be called.
    :raises NotSerializable: it refers to something that cannot be pickled; the message names both.
    """
    if not callable(function):
        raise InvalidRequest(f"A function is needed; {type(function).__name__} cannot be called.")
    name = name_of(function)
    with _registry, _registered(_modules(by_value)):
        code, places = _dump(function, name)
    # what the worker imports needs no source
    source = _source(function) if places else None
    record = codec.encode(FunctionRecord(1, "pickle", name, PYTHON, code, source))
    return Recorded(sha256(record), record, name, places)


def pack(value: object, what: str = "value", limit: int = MAX_INLINE, *, by_value: ByValue = "auto") -> Inline:
    """As `values.pack`, where objects of local classes are pickled by value: the arguments that go with a record.

    :raises NotSerializable, PayloadTooLarge: as there.
    """
    try:
        plain = Inline("msgpack", codec.pack_plain(value))
    except (TypeError, ValueError, OverflowError):
        with _registry, _registered(_modules(by_value)):
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
    for name, value in _variables(function):
        try:
            _Pickler(io.BytesIO(), protocol=5).dump(value)
        except Exception:  # noqa: BLE001 (as above)
            return f"{name} holds a {type(value).__module__}.{type(value).__qualname__}: "
    return ""


def _variables(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    if isinstance(function, functools.partial):
        yield from ((f"argument {index} of the partial", value) for index, value in enumerate(function.args))
        yield from ((f"argument {name!r} of the partial", value) for name, value in function.keywords.items())
        function = function.func
    if isinstance(function, MethodType):
        yield "its object", function.__self__
    elif isinstance(function, FunctionType):
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        yield from ((f"its closure variable {name!r}", _peek(cell)) for name, cell in cells)
        names = function.__globals__
        yield from ((f"the global variable {name!r}", names[name]) for name in sorted(_globals(function.__code__)) if name in names)
        yield from (("a default of it", value) for value in function.__defaults__ or ())
    elif hasattr(function, "__dict__") and not isinstance(function, type):
        yield from ((f"its attribute {name!r}", value) for name, value in vars(function).items())


# Which modules go by value


def _modules(by_value: ByValue) -> list[ModuleType]:
    if by_value is False:
        return []
    if by_value is True or by_value == "auto":
        return list(_local_modules(len(sys.modules), next(reversed(sys.modules), "")))
    if isinstance(by_value, str) or not all(isinstance(module, ModuleType) and module.__name__ in sys.modules for module in by_value):
        raise InvalidRequest(f"by_value is 'auto', False or a list of imported modules, not {by_value!r}.")
    return list(by_value)


@functools.lru_cache(maxsize=1)
def _local_modules(count: int, newest: str) -> tuple[ModuleType, ...]:  # noqa: ARG001 - they are the key of the cache
    """The local ones of `sys.modules`; both parameters say which state of it: whatever is imported or removed changes one of them."""
    return tuple(module for module in list(sys.modules.values()) if is_local(module))


def _goes_by_value(module: ModuleType, by_value: ByValue) -> bool:
    """Whether what this module defines is pickled by value."""
    name = module.__name__
    chosen = {one.__name__ for one in _modules(by_value)} if not isinstance(by_value, bool | str) else set()
    chosen |= cloudpickle.list_registry_pickle_by_value()
    if name in ("__main__", "__mp_main__") or any(name == other or name.startswith(other + ".") for other in chosen):
        return True
    return by_value in (True, "auto") and is_local(module)


def is_local(module: object) -> bool:
    """Whether this is a module of Python source outside site-packages and the standard library, and not ours: a worker may not have it."""
    if not isinstance(module, ModuleType):
        return False
    file = module.__dict__.get("__file__")
    if type(file) is not str or not _is_local_file(file):
        return False
    name = module.__name__
    return name not in ("__main__", "__mp_main__") and name.partition(".")[0] != "funcmq" and sys.modules.get(name) is module


@functools.lru_cache(maxsize=16384)
def _is_local_file(file: str) -> bool:
    path = Path(file)
    if path.suffix not in (".py", ".pyc") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    known = sysconfig.get_paths()
    folders = [known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # a virtual environment has its own site-packages and the standard library of the Python that it was made from
    base = str(Path(inspect.__file__).parent)
    return (*folders, base, *site.getsitepackages(), site.getusersitepackages())


@contextmanager
def _registered(modules: list[ModuleType]) -> Iterator[None]:
    """These modules stand in cloudpickle's registry; those that the user had put there stay."""
    before = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in before]
    try:
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        yield
    finally:
        for name in cloudpickle.list_registry_pickle_by_value() - before:
            cloudpickle.unregister_pickle_by_value(ModuleType(name))


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


# Source


def _source(function: Callable[..., Any]) -> str | None:
    """The source of a plain function without closure, dedented; None where there is none, or where it is no longer what runs."""
    if not isinstance(function, FunctionType) or function.__closure__ or function.__name__ == "<lambda>":
        return None
    return _source_of(function.__code__, function.__code__.co_filename)


@functools.lru_cache(maxsize=256)
def _source_of(code: CodeType, _file: str) -> str | None:
    # the file is named because equal code of another file may have other comments
    try:
        source = textwrap.dedent(inspect.getsource(code))
        compiled = compile(source, "", "exec")
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    current = any(isinstance(constant, CodeType) and _same(constant, code) for constant in compiled.co_consts)
    return source if current and len(source.encode("utf-8", "replace")) <= MAX_SOURCE else None


def _same(one: CodeType, other: CodeType) -> bool:
    return one.co_name == other.co_name and one.co_code == other.co_code and one.co_names == other.co_names


# Remembering


@dataclass(frozen=True, slots=True)
class _Seen:
    """A record and everything that it was made from: it is good while each of these is still the same object; all of them are immutable."""

    function: Callable[..., Any]
    recorded: Recorded
    attributes: list[tuple[FunctionType, CodeType, Any, Any]]
    variables: list[tuple[dict[str, Any], str, object]]
    cells: list[tuple[Any, object]]

    def holds(self) -> bool:
        """Whether nothing has changed."""
        for function, code, defaults, keywords in self.attributes:
            if function.__code__ is not code or function.__defaults__ is not defaults or function.__kwdefaults__ is not keywords:
                return False
            if function.__dict__:
                return False
        for names, name, value in self.variables:
            if names.get(name, _MISSING) is not value:
                return False
        return not self.cells or all(_peek(cell) is value for cell, value in self.cells)


_MISSING = object()
_ATOMS = {type(None), bool, int, float, complex, str, bytes, type(Ellipsis), re.Pattern, logging.Logger}
"""Types whose objects never change, or travel as their name only."""


class _MutableError(Exception):
    """Something that a function refers to may change without notice."""


class _Witness:
    """Walks what a function refers to and notes it; `_MutableError` where a change could go unseen."""

    def __init__(self, by_value: ByValue) -> None:
        self.attributes: list[tuple[FunctionType, CodeType, Any, Any]] = []
        self.variables: list[tuple[dict[str, Any], str, object]] = []
        self.cells: list[tuple[Any, object]] = []
        self._met: set[int] = set()
        self._by_value = by_value

    def see(self, value: Any) -> None:
        """Note this, and all that it refers to."""
        if type(value) in _ATOMS or id(value) in self._met:
            return
        self._met.add(id(value))
        if type(value) in (tuple, frozenset):
            for item in value:
                self.see(item)
        elif type(value) is FunctionType:
            self._function(value)
        elif not self._imported(value):
            raise _MutableError

    def _function(self, function: FunctionType) -> None:
        if self._imported(function):
            return
        if function.__dict__:
            raise _MutableError
        keywords = function.__kwdefaults__
        self.attributes.append((function, function.__code__, function.__defaults__, keywords))
        self.see(function.__defaults__)
        for name in keywords or ():
            self._variable(function.__kwdefaults__ or {}, name)
        for name in _globals(function.__code__):
            self._variable(function.__globals__, name)
        for cell in function.__closure__ or ():
            self.cells.append((cell, _peek(cell)))
            self.see(_peek(cell))

    def _variable(self, names: dict[str, Any], name: str) -> None:
        value = names.get(name, _MISSING)
        self.variables.append((names, name, value))
        if value is not _MISSING:
            self.see(value)

    def _imported(self, value: Any) -> bool:
        """Whether the worker imports it, so that changes here never reach it."""
        if isinstance(value, ModuleType):
            return sys.modules.get(value.__name__) is value and not _goes_by_value(value, self._by_value)
        if not isinstance(value, FunctionType | BuiltinFunctionType | type):
            return False
        module = sys.modules.get(value.__module__ or "")
        return module is not None and not _goes_by_value(module, self._by_value) and _found(module, value)


def _peek(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING


def _found(module: ModuleType, value: Any) -> bool:
    here: Any = module
    for part in value.__qualname__.split("."):
        here = getattr(here, part, None)
    return here is value


@functools.lru_cache(maxsize=1024)
def _globals(code: CodeType) -> frozenset[str]:
    """Names that code may look up as globals; some are attributes only, which costs a look and harms nothing."""
    inner = [_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


class Recorder:
    """Makes records, and gives out the last one again where it cannot be stale: the same function, and all that it refers to unchanged and
    immutable.

    Everything else, a function with an edited global or a list in its closure for instance, is pickled anew each time.  Thread-safe.
    """

    def __init__(self, by_value: ByValue = "auto", size: int = 256) -> None:
        self._by_value = by_value
        self._size = size
        self._seen: dict[int, _Seen] = {}

    def record(self, function: Callable[..., Any]) -> Recorded:
        """As `make_record`, in a few microseconds for a function seen before."""
        seen = self._seen.get(id(function))
        if seen is not None and seen.function is function and seen.holds():
            return seen.recorded
        witness = self._witness(function)
        recorded = make_record(function, by_value=self._by_value)
        self._seen.pop(id(function), None)
        if witness is not None:
            self._keep(_Seen(function, recorded, witness.attributes, witness.variables, witness.cells))
        return recorded

    def _witness(self, function: Callable[..., Any]) -> _Witness | None:
        """What the record will depend on, noted before it is made, so that a change meanwhile is seen next time; None: it must be made anew
        each time.
        """
        witness = _Witness(self._by_value)
        try:
            witness.see(function)
        except _MutableError:
            return None
        return witness

    def _keep(self, seen: _Seen) -> None:
        for oldest in list(self._seen)[: len(self._seen) - self._size + 1]:
            self._seen.pop(oldest, None)
        self._seen[id(seen.function)] = seen
