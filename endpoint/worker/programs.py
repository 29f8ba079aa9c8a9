"""Functions that come as source: run, and shown in tracebacks."""

from __future__ import annotations

import ast
import linecache
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType
from typing import Any

from funcmq.broker.errors import EnvironmentMismatch
from funcmq.broker.messages import FunctionRecord
from funcmq.broker.texts import ANNOTATIONS


def run_program(record: FunctionRecord, places: Sequence[tuple[str, int]]) -> Callable[..., Any]:
    """The function that the program of a record makes.

    :raises EnvironmentMismatch: this Python cannot compile it.
    :raises Exception: whatever it raises, ModuleNotFoundError where the worker lacks a module.
    """
    text = record.source or ""
    called = f"<the program of {record.name}>"
    try:
        tree = ast.parse(text)
        main = tree.body.pop()
        assert isinstance(main, ast.FunctionDef | ast.AsyncFunctionDef), "a program ends with its function"
        file, shift = _place(text, main.lineno, places) or (called, 0)
        ast.increment_lineno(main, shift)
        parts = [_compile(tree, called), _compile(ast.Module([main], []), file)]
    except SyntaxError as new:
        made = f"was made by Python {record.python} and " if record.python else ""
        raise EnvironmentMismatch(
            f"{record.name} {made}travels as source, which Python {platform.python_version()} does not understand: {new}.",
            hint="Write it for both versions, or take a pool with yours.",
        ) from None
    linecache.cache[called] = (len(text), None, text.splitlines(keepends=True), called)
    names: dict[str, Any] = {"__name__": record.name.rpartition(".")[0] or "__main__"}
    for part in parts:
        exec(part, names)  # noqa: S102 (running what its owner has signed is what a worker is for)
    function: Callable[..., Any] = names[main.name]
    if file != called:
        show(function.__code__, text)
    return function


def _compile(tree: ast.Module, file: str) -> CodeType:
    code: CodeType = compile(tree, file, "exec", flags=ANNOTATIONS, dont_inherit=True)
    return code


def _place(text: str, line: int, places: Sequence[tuple[str, int]]) -> tuple[str, int] | None:
    """Where the function stood: its file, and how much further down than in its program."""
    if not places or not places[0][0]:
        return None
    above = text.splitlines()[: line - 1]
    decorators = next((count for count, before in enumerate(reversed(above)) if not before.startswith("# ")), len(above))
    return places[0][0], places[0][1] + decorators - line


def show(code: CodeType, source: str) -> None:
    """Let tracebacks show lines of a file that this machine does not have: of its last definition, whose code this is."""
    name = code.co_filename
    if not name or code.co_firstlineno < 1 or Path(name).exists():
        return
    try:
        node = ast.parse(source).body[-1]
        compiled = compile(source, "", "exec", flags=code.co_flags & ANNOTATIONS, dont_inherit=True)
    except (SyntaxError, IndexError):
        return
    same = next((one for one in reversed(compiled.co_consts) if isinstance(one, CodeType) and one.co_name == code.co_name), code)
    shift, indent = _offset(code, same)
    first, text = same.co_firstlineno, source.splitlines(keepends=True)
    lines = [indent + line if line.strip() else line for line in text[first - 1 : node.end_lineno]]
    _put(name, first + shift, lines)


def _put(name: str, first: int, lines: list[str]) -> None:
    if first < 1:
        return
    known = linecache.cache.get(name)
    shown = list(known[2]) if known is not None and len(known) > 1 else []
    shown += ["\n"] * (first - 1 + len(lines) - len(shown))
    shown[first - 1 : first - 1 + len(lines)] = lines
    # an entry without a time of change is never checked against the disk
    linecache.cache[name] = (sum(map(len, shown)), None, shown, name)


def _offset(code: CodeType, same: CodeType) -> tuple[int, str]:
    """How far down and how far in the code stood: code remembers columns, and tracebacks mark them."""
    shift, indent = 0, 0
    for here, there in zip(code.co_positions(), same.co_positions(), strict=False):
        if here[0] and there[0]:
            shift = here[0] - there[0]
        if (here[2] or 0) > (there[2] or 0) and not indent:
            indent = (here[2] or 0) - (there[2] or 0)
    return shift, " " * indent
