"""Records made once: a function that is submitted again and again is not pickled again and again, and never stale."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from funcmq.broker.functions import Recorded, Strategy, make_record
from funcmq.broker.modules import ByValue, goes_by_value
from funcmq.broker.references import MISSING, found, global_names, peek


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
            if names.get(name, MISSING) is not value:
                return False
        return not self.cells or all(peek(cell) is value for cell, value in self.cells)


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
        for name in global_names(function.__code__):
            self._variable(function.__globals__, name)
        for cell in function.__closure__ or ():
            self.cells.append((cell, peek(cell)))
            self.see(peek(cell))

    def _variable(self, names: dict[str, Any], name: str) -> None:
        value = names.get(name, MISSING)
        self.variables.append((names, name, value))
        if value is not MISSING:
            self.see(value)

    def _imported(self, value: Any) -> bool:
        """Whether the worker imports it, so that changes here never reach it."""
        if isinstance(value, ModuleType):
            return sys.modules.get(value.__name__) is value and not goes_by_value(value, self._by_value)
        if not isinstance(value, FunctionType | BuiltinFunctionType | type):
            return False
        module = sys.modules.get(value.__module__ or "")
        return module is not None and not goes_by_value(module, self._by_value) and found(module, value)


class Recorder:
    """Makes records, and gives out the last one again where it cannot be stale: the same function, and all that it refers to unchanged and
    immutable.

    Everything else, a function with an edited global or a list in its closure for instance, is pickled anew each time.  Thread-safe.
    """

    def __init__(self, by_value: ByValue = "auto", strategy: Strategy = "auto", size: int = 256) -> None:
        self._by_value, self._strategy = by_value, strategy
        self._size = size
        self._seen: dict[int, _Seen] = {}

    def record(self, function: Callable[..., Any]) -> Recorded:
        """As `make_record`, in a few microseconds for a function seen before."""
        seen = self._seen.get(id(function))
        if seen is not None and seen.function is function and seen.holds():
            return seen.recorded
        witness = self._witness(function)
        recorded = make_record(function, by_value=self._by_value, strategy=self._strategy)
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
