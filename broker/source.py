"""A function as a small program: text that makes the same function on every Python that can compile it.

A program holds the imports that the function needs, globals that are plain data, the functions that it calls, and last of all the function
itself.  Decorators stand in it as comments: what travels is the function that they were given, or gave back unchanged.  Defaults stand in
it with their values.  Annotations are not evaluated.
"""

from __future__ import annotations

import ast
import dis
import functools
import logging
import math
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from funcmq.broker.modules import ByValue, goes_by_value
from funcmq.broker.references import found, global_names, qualified
from funcmq.broker.texts import Definition, NoProgram, name_of, parsed, read, text_of

MAX_SOURCE = 64 * 1024
"""Bytes of source that a record carries at most."""
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


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
        text = text_of(function)
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
        elif isinstance(getattr(value, "__name__", None), str):
            self._define_or_import(name, value)
        else:
            self._data[name] = _plain(value, f"uses the global variable {name!r}, which")

    def _import_module(self, name: str, module: ModuleType) -> None:
        full = module.__name__
        if sys.modules.get(full) is not module or goes_by_value(module, self._by_value):
            raise NoProgram(f"it uses the module {full!r}, which is not installed where workers could import it")
        self._imports.add(f"import {full}" if name == full else f"import {full} as {name}")

    def _define_or_import(self, name: str, value: Any) -> None:
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        if module is not None and not goes_by_value(module, self._by_value) and found(module, value):
            called = qualified(value)
            if "." in called:
                raise NoProgram(f"it uses {name!r}, which cannot be imported by a name without dots")
            self._imports.add(f"from {module.__name__} import {called}" + ("" if called == name else f" as {name}"))
        elif isinstance(value, FunctionType):
            self._define(name, value)
        else:
            what = (
                "a class that is defined here"
                if isinstance(value, type)
                else f"a {type(value).__qualname__} that no module has by its name"
            )
            raise NoProgram(f"it uses {name!r}, {what}")

    def _define(self, name: str, function: FunctionType) -> None:
        own = function.__code__.co_name
        if own != name:
            self.add(own, function)
            self._others[name] = own
            return
        self._functions[own] = _definition(function)
        loads = sorted(_loads(read(function)[1]))
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
        raise NoProgram(f"{name_of(function)} uses {', '.join(map(repr, function.__code__.co_freevars))} of the function around it")
    if {name for name in function.__dict__ if name != "__wrapped__"}:
        raise NoProgram(f"{name_of(function)} has attributes")
    text = text_of(function)
    node = parsed(text)
    lines = text.encode().splitlines(keepends=True)
    for at, value in sorted(_defaults(node, function), key=lambda pair: (pair[0].lineno, pair[0].col_offset), reverse=True):
        _replace(lines, at, value)
    for index in range(node.lineno - 1):
        lines[index] = b"# " + lines[index]
    return b"".join(lines).decode()


def _defaults(node: Definition, function: FunctionType) -> Iterator[tuple[ast.expr, str]]:
    """Expressions of defaults, and the values that they have given."""
    values, keywords = function.__defaults__ or (), dict(function.__kwdefaults__ or {})
    written = [(argument.arg, at) for argument, at in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if at is not None]
    if len(values) != len(node.args.defaults) or [name for name, _ in written] != list(keywords):
        raise NoProgram(f"the defaults of {name_of(function)} were changed")
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


def _plain(value: Any, what: str) -> str:
    """An expression for plain data, and for what is made of a word or two."""
    kind = type(value)
    if kind is float and not math.isfinite(value):
        return f'float("{value}")'
    if kind in (type(None), bool, int, float, str, bytes):
        return repr(value)
    if kind in _BRACKETS:
        return _collection(kind, value, what)
    if kind in _MADE:
        return _MADE[kind](value)
    raise NoProgram(f"it {what} is no plain data but a {kind.__module__}.{kind.__qualname__}")


def _collection(kind: type, value: Any, what: str) -> str:
    if kind is dict:
        parts = [f"{_plain(key, what)}: {_plain(part, what)}" for key, part in value.items()]
    else:
        parts = [_plain(part, what) for part in value]
    if kind in (set, frozenset):
        if not parts:
            return f"{kind.__name__}()"
        parts.sort()  # their own order differs from process to process
    start, end = _BRACKETS[kind]
    return start + ", ".join(parts) + ("," if kind is tuple and len(parts) == 1 else "") + end


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_MADE: dict[type, Callable[[Any], str]] = {
    re.Pattern: lambda value: f'__import__("re").compile({value.pattern!r}, {value.flags})',
    logging.Logger: lambda value: f'__import__("logging").getLogger({value.name!r})',
    type(pathlib.Path()): lambda value: f'__import__("pathlib").Path({str(value)!r})',
}
