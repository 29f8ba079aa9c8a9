"""A function as a small program: text that makes the same function on every Python that can compile it.

A program holds the imports that the function needs, globals that are plain data, the functions that it calls, and last of all the function
itself.  Decorators stand in it as comments: what travels is the function that they were given, or gave back unchanged.  Defaults stand in
it with their values.  Annotations are not evaluated.
"""

from __future__ import annotations
import __future__

import ast
import dis
import functools
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from funcmq.broker.modules import ByValue, goes_by_value
from funcmq.broker.references import found, global_names

MAX_SOURCE = 64 * 1024
"""Bytes of source that a record carries at most."""
ANNOTATIONS = __future__.annotations.compiler_flag
"""With this flag programs are compiled."""
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_Definition = ast.FunctionDef | ast.AsyncFunctionDef


class NoProgram(Exception):
    """This function cannot travel as source; says why, beginning with `it`."""


def program(function: Callable[..., Any], by_value: ByValue) -> str:
    """The program of a function.

    :raises NoProgram: there is none: it has a closure, is a lambda, or uses what is neither imported, plain data nor such a function.
    """
    if not isinstance(function, FunctionType):
        raise NoProgram(f"it is no plain function but a {type(function).__name__}")
    made = _Program(by_value)
    made.add(function.__code__.co_name, function)
    text = made.text(function.__code__.co_name)
    if len(text.encode()) > MAX_SOURCE:
        raise NoProgram(f"its source has more than {MAX_SOURCE:,} bytes")
    return text


def shown(function: Callable[..., Any]) -> str | None:
    """The source of a plain function without closure, dedented, for tracebacks; None where there is none, or where it is not what runs."""
    if not isinstance(function, FunctionType) or function.__closure__:
        return None
    try:
        text = _text(function)
    except NoProgram:
        return None
    return text if len(text.encode()) <= MAX_SOURCE else None


class _Program:
    """Collects the parts; a name means one thing in all of them."""

    def __init__(self, by_value: ByValue) -> None:
        self._by_value = by_value
        self._meant: dict[str, object] = {}
        self._imports: set[str] = set()
        self._data: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._others: dict[str, str] = {}

    def text(self, last: str) -> str:
        """The whole, with this function as its last definition."""
        own = self._functions.pop(last)
        data = [f"{name} = {value}" for name, value in sorted(self._data.items())]
        others = [f"{name} = {value}" for name, value in sorted(self._others.items())]
        helpers = [text.rstrip() + "\n" for _, text in sorted(self._functions.items())]
        heads = ["\n".join(lines) + "\n" for lines in (sorted(self._imports), data) if lines]
        tails = ["\n".join(others) + "\n"] if others and helpers else []
        return "\n\n".join([*heads, *helpers, *tails, own])

    def add(self, name: str, value: Any) -> None:
        """Let this name mean this value."""
        if name in self._meant:
            if self._meant[name] is not value:
                raise NoProgram(f"it and a function that it calls mean different things by {name!r}")
            return
        self._meant[name] = value
        if isinstance(value, ModuleType):
            self._import_module(name, value)
        elif isinstance(value, FunctionType | BuiltinFunctionType | type):
            self._define_or_import(name, value)
        else:
            self._data[name] = _plain(value, f"uses the global variable {name!r}, which")

    def _import_module(self, name: str, module: ModuleType) -> None:
        full = module.__name__
        if sys.modules.get(full) is not module or goes_by_value(module, self._by_value):
            raise NoProgram(f"it uses the module {full!r}, which is not installed where workers could import it")
        self._imports.add(f"import {full}" if name == full else f"import {full} as {name}")

    def _define_or_import(self, name: str, value: FunctionType | BuiltinFunctionType | type) -> None:
        module = sys.modules.get(value.__module__ or "")
        if module is not None and not goes_by_value(module, self._by_value) and found(module, value):
            if "." in value.__qualname__:
                raise NoProgram(f"it uses {name!r}, which cannot be imported by a name without dots")
            called = value.__qualname__
            self._imports.add(f"from {module.__name__} import {called}" + ("" if called == name else f" as {name}"))
        elif isinstance(value, FunctionType):
            self._define(name, value)
        else:
            raise NoProgram(f"it uses {name!r}, {'a class' if isinstance(value, type) else 'which'} that is defined here")

    def _define(self, name: str, function: FunctionType) -> None:
        own = function.__code__.co_name
        if own != name:
            self.add(own, function)
            self._others[name] = own
            return
        self._functions[own] = _definition(function)
        loads = sorted(_loads(_read(function)[1]))
        for used in loads:
            value = function.__globals__.get(used, self)
            if value is not self and used != "__name__":
                self.add(used, getattr(value, "__funcmq_function__", value))
        self._imports.update(_submodules(function, loads))


@functools.lru_cache(maxsize=1024)
def _loads(code: CodeType) -> frozenset[str]:
    """Names that code really looks up as globals."""
    inner = [_loads(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(found.argval for found in dis.get_instructions(code) if found.opname in _LOADS).union(*inner)


def _submodules(function: FunctionType, loads: list[str]) -> Iterator[str]:
    """Imports of modules that the function reaches through their packages: `xml.etree` of `import xml.etree`."""
    names = global_names(function.__code__)
    for package in [value for name in loads if isinstance(value := function.__globals__.get(name), ModuleType)]:
        if not hasattr(package, "__path__"):
            continue
        prefix = package.__name__ + "."
        for module in list(sys.modules):
            if module.startswith(prefix) and names.issuperset(module[len(prefix) :].split(".")):
                yield f"import {module}"


# One definition


def _definition(function: FunctionType) -> str:
    if function.__closure__:
        raise NoProgram(f"{_it(function)} uses {', '.join(map(repr, function.__code__.co_freevars))} of the function around it")
    if {name for name in function.__dict__ if name != "__wrapped__"}:
        raise NoProgram(f"{_it(function)} has attributes")
    text = _text(function)
    node = _parsed(text)
    lines = text.encode().splitlines(keepends=True)
    for at, value in sorted(_defaults(node, function), key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True):
        _replace(lines, at, value)
    for index in range(node.lineno - 1):
        lines[index] = b"# " + lines[index]
    return b"".join(lines).decode()


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> _Definition:
    node = ast.parse(text).body[0]
    assert isinstance(node, _Definition), "_text has seen to that"
    return node


def _defaults(node: _Definition, function: FunctionType) -> Iterator[tuple[ast.expr, str]]:
    """Expressions of defaults, and the values that they have given."""
    values, keywords = function.__defaults__ or (), dict(function.__kwdefaults__ or {})
    written = [(argument.arg, at) for argument, at in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if at is not None]
    if len(values) != len(node.args.defaults) or [name for name, _ in written] != list(keywords):
        raise NoProgram(f"the defaults of {_it(function)} were changed")
    given = [*zip(node.args.defaults, values, strict=True), *((at, keywords[name]) for name, at in written)]
    for at, value in given:
        text = _plain(value, f"has a default ({ast.unparse(at)}) that")
        if text != _literal_of(at):
            yield at, text


def _literal_of(at: ast.expr) -> str | None:
    try:
        return repr(ast.literal_eval(at))
    except (ValueError, TypeError, SyntaxError):
        return None


def _replace(lines: list[bytes], at: ast.expr, text: str) -> None:
    """Put text in the place of an expression; what follows stays on its line."""
    assert at.end_lineno is not None
    assert at.end_col_offset is not None
    first, last = at.lineno - 1, at.end_lineno - 1
    before, after = lines[first][: at.col_offset], lines[last][at.end_col_offset :]
    lines[first : last + 1] = (before + text.encode() + b"\n" * (last - first) + after).splitlines(keepends=True)


def _plain(value: object, what: str) -> str:
    """An expression for plain data."""
    kind = type(value)
    if kind is float and not math.isfinite(value):  # type: ignore[arg-type]
        return f'float("{value}")'
    if kind in (type(None), bool, int, float, str, bytes):
        return repr(value)
    if kind in (list, tuple):
        parts = [_plain(part, what) for part in value]  # type: ignore[attr-defined]
        inside = ", ".join(parts) + ("," if kind is tuple and len(parts) == 1 else "")
        return f"[{inside}]" if kind is list else f"({inside})"
    if kind is dict:
        return "{" + ", ".join(f"{_plain(key, what)}: {_plain(part, what)}" for key, part in value.items()) + "}"  # type: ignore[attr-defined]
    raise NoProgram(f"it {what} is no plain data but a {kind.__module__}.{kind.__qualname__}")


def _it(function: FunctionType) -> str:
    return function.__qualname__


# Text


def _text(function: FunctionType) -> str:
    """The dedented source of a function, which is what runs."""
    return _read(function)[0]


def _read(function: FunctionType) -> tuple[str, CodeType]:
    """Source, and the code that it gives where it stands alone."""
    if function.__name__ == "<lambda>":
        raise NoProgram("it is a lambda (give it a name with def)")
    known = _source_of(function.__code__, function.__code__.co_filename)
    if known is None:
        raise NoProgram(f"the source of {_it(function)} cannot be found, or is not what runs")
    return known


@functools.lru_cache(maxsize=256)
def _source_of(code: CodeType, _file: str) -> tuple[str, CodeType] | None:
    # the file is named because equal code of another file may have other comments
    try:
        text = textwrap.dedent(inspect.getsource(code))
        text.encode()
        whole = _compiled("".join(inspect.findsource(code)[0]), code.co_flags & ANNOTATIONS)
        alone = next(_inside(_compiled(text, ANNOTATIONS)), None)
        plain = isinstance(ast.parse(text).body[0], _Definition)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    # where a file imports a name decides which instructions call through it: the file is compiled as a whole
    current = any(one.co_code == code.co_code and _alike(one, code, exactly=True) for one in _inside(whole))
    if not (plain and current and alone is not None and _alike(alone, code)):
        return None
    return (text, alone) if global_names(alone) <= global_names(code) else None  # a class changes names like __x


@functools.lru_cache(maxsize=16)
def _compiled(text: str, flags: int) -> CodeType:
    # notebooks may await in a cell
    code: CodeType = compile(text, "", "exec", flags=flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _inside(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)


def _alike(one: CodeType, other: CodeType, *, exactly: bool = False) -> bool:
    """Whether both have the same parameters and names; and exactly: the same instructions and constants, wherever they stand."""
    if any(getattr(one, name) != getattr(other, name) for name in _ALIKE):
        return False
    if not exactly:
        return True
    if one.co_code != other.co_code or one.co_names != other.co_names or len(one.co_consts) != len(other.co_consts):
        return False
    return all(_equal(mine, theirs) for mine, theirs in zip(one.co_consts, other.co_consts, strict=True))


def _equal(mine: object, theirs: object) -> bool:
    if isinstance(mine, CodeType) and isinstance(theirs, CodeType):
        return _alike(mine, theirs, exactly=True)
    return mine == theirs if isinstance(mine, frozenset) else repr(mine) == repr(theirs)


_ALIKE = ("co_name", "co_varnames", "co_freevars", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount")
