"""Function records to functions, in the child that runs them: the one place where code of users comes to life."""

from __future__ import annotations

import functools
import io
import linecache
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from funcmq.broker import codec
from funcmq.broker.errors import EnvironmentMismatch, InvalidRequest
from funcmq.broker.functions import PYTHON, make_code
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord

Places = Sequence[tuple[str, int]]


def load(data: bytes, expected: str, places: Places = ()) -> Callable[..., Any]:
    """The function in a record.  `places` are file and first line of its code objects, in their order in the record; without them
    tracebacks have no file names.

    :raises InvalidRequest: these are not the bytes that this id stands for.
    :raises EnvironmentMismatch: another minor version of Python made the record.
    :raises Exception: whatever unpickling raises, ModuleNotFoundError where the worker lacks a module.
    """
    if sha256(data) != expected:
        raise InvalidRequest(
            f"The function {expected} was kept with other content.", hint="Remove that file from the pool's shared folder."
        )
    record = codec.decode(FunctionRecord, data, "function record")
    if record.python != PYTHON:
        raise EnvironmentMismatch(f"{record.name} was made by Python {record.python}; this worker has Python {PYTHON}.")
    function: Callable[..., Any] = _Unpickler(io.BytesIO(record.code), places).load()
    if record.source and isinstance(function, FunctionType):
        _show_source(function.__code__, record.source)
    return function


class _Unpickler(pickle.Unpickler):
    """Puts file names and lines back where a record has none."""

    def __init__(self, file: io.BytesIO, places: Places) -> None:
        super().__init__(file)
        self._make_code = functools.partial(_code_at, places)

    def find_class(self, module: str, name: str) -> Any:
        """As pickle does, except for what makes code."""
        if name == make_code.__name__ and module == make_code.__module__:
            return self._make_code
        return super().find_class(module, name)


def _code_at(places: Places, place: int, *parts: Any) -> CodeType:
    code = make_code(place, *parts)
    if place >= len(places):
        return code
    file, line = places[place]
    return code.replace(co_filename=file, co_firstlineno=line)


def _show_source(code: CodeType, source: str) -> None:
    """Let tracebacks show lines of a file that this machine does not have."""
    name, first = code.co_filename, code.co_firstlineno
    if not name or first < 1 or Path(name).exists():
        return
    indent = _indent(code, source)
    lines = [indent + line if line.strip() else line for line in source.splitlines(keepends=True)]
    known = linecache.cache.get(name)
    shown = list(known[2]) if known is not None and len(known) > 1 else []
    shown += ["\n"] * (first - 1 + len(lines) - len(shown))
    shown[first - 1 : first - 1 + len(lines)] = lines
    # an entry without a time of change is never checked against the disk
    linecache.cache[name] = (sum(map(len, shown)), None, shown, name)


def _indent(code: CodeType, source: str) -> str:
    """What dedenting took away: code remembers columns, and tracebacks mark them."""
    try:
        compiled = compile(source, "", "exec")
    except SyntaxError:
        return ""
    same = next((one for one in compiled.co_consts if isinstance(one, CodeType) and one.co_name == code.co_name), code)
    columns = ((here[2] or 0, there[2] or 0) for here, there in zip(code.co_positions(), same.co_positions(), strict=False))
    return " " * next((here - there for here, there in columns if here > there), 0)
