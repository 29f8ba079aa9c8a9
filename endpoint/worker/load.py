"""Function records to functions, in the child that runs them: the one place where code of users comes to life."""

from __future__ import annotations

import functools
import io
import pickle
import platform
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

from funcmq.broker import codec
from funcmq.broker.environment import Wanted, mismatch
from funcmq.broker.errors import InvalidRequest
from funcmq.broker.functions import make_code
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.broker.values import PYTHON
from funcmq.endpoint.worker.programs import run_program, show

Places = Sequence[tuple[str, int]]


def load(data: bytes, expected: str, places: Places = ()) -> Callable[..., Any]:
    """The function in a record.  `places` are file and first line of its code objects, in their order in the record; without them
    tracebacks have no file names.

    :raises InvalidRequest: these are not the bytes that this id stands for.
    :raises EnvironmentMismatch: another minor version of Python made the record, and its source does not help.
    :raises Exception: whatever unpickling raises, ModuleNotFoundError where the worker lacks a module.
    """
    if sha256(data) != expected:
        raise InvalidRequest(
            f"The function {expected} was kept with other content.", hint="Remove that file from the pool's shared folder."
        )
    record = codec.decode(FunctionRecord, data, "function record")
    if record.kind == "source" and (not record.code or record.python not in ("", PYTHON)):
        return run_program(record, places)
    if record.needs not in ("", PYTHON):
        raise mismatch(Wanted(record.name, record.needs, ""), f"this worker has Python {platform.python_version()}", PYTHON)
    function: Callable[..., Any] = _Unpickler(io.BytesIO(record.code), places).load()
    if record.source and isinstance(function, FunctionType):
        show(function.__code__, record.source)
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
