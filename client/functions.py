"""Functions on their way out: recorded once, named by reference, sent to the front door before the first task that needs them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funcmq.broker.functions import Recorded, Strategy
from funcmq.broker.ids import is_hash, short
from funcmq.broker.messages import FunctionRef
from funcmq.client.options import ByValue
from funcmq.client.recorder import Recorder

Function = Callable[..., Any] | str | Recorded
"""What can be submitted: a function, the id or the name (`ada/recon`, `ada/recon@2`) of one, or a record made before."""
_NAME = re.compile(r"[^/@\s]+/[\w.-]+(@[1-9]\d*)?\Z")


@dataclass(frozen=True, slots=True)
class Named:
    """A function of which only the name is known: its id is asked for when it is sent."""

    id: str

    @property
    def name(self) -> str:
        """For people."""
        return self.id


class Functions:
    """The functions of one connection.  Thread-safe, as dicts are.

    :param know: called with every function that is new.
    """

    def __init__(self, know: Callable[[FunctionRef], None]) -> None:
        self._know = know
        self._refs: dict[str, FunctionRef] = {}
        self._recorders: dict[tuple[int | str, Strategy], tuple[ByValue, Recorder]] = {}
        self._needs: dict[str, tuple[str, str]] = {}
        self.unsent: dict[str, bytes] = {}
        """Records that the front door may not have yet, by id; taken out when it has them."""

    def ref(self, function: Function, by_value: ByValue, strategy: Strategy = "auto") -> FunctionRef | Named:
        """How a bundle names this function, whose record is in `unsent` now if it was never sent.

        :raises TypeError: it cannot be called.
        :raises NotSerializable: it refers to something that cannot be sent.
        """
        if isinstance(function, str):
            return self._by_id(function)
        recorded = function if isinstance(function, Recorded) else self.record(function, by_value, strategy)
        ref = self._refs.get(recorded.id)
        if ref is None:
            self.unsent[recorded.id] = recorded.record
            self._needs[recorded.id] = recorded.needs, recorded.why
            ref = self._new(recorded.ref)
        return ref

    def _by_id(self, function: str) -> FunctionRef | Named:
        if _NAME.match(function):
            return Named(function)
        if not is_hash(function):
            raise TypeError(f"{function!r} is neither a function nor the id of one (64 hex digits), nor a name such as 'ada/recon'.")
        return self.know(FunctionRef(function, short(function)))

    def know(self, ref: FunctionRef) -> FunctionRef:
        """This function is at the front door already; as it is known here."""
        return self._refs.get(ref.id) or self._new(ref)

    def _new(self, ref: FunctionRef) -> FunctionRef:
        self._know(ref)
        self._refs[ref.id] = ref
        return ref

    def needs(self, function: str) -> tuple[str, str]:
        """The minor version of Python that a function wants ('' any, or not known here), and why."""
        return self._needs.get(function, ("", ""))

    def record(self, function: Callable[..., Any], by_value: ByValue, strategy: Strategy = "auto") -> Recorded:
        """The record of a function, from the cache where that is safe; errors as for `ref`."""
        if not callable(function):
            raise TypeError(f"A function is needed, or the id of one; {type(function).__name__} cannot be called.")
        at = (by_value if isinstance(by_value, str | bool) else id(by_value)), strategy
        found = self._recorders.get(at)
        if found is None:
            found = self._recorders[at] = (by_value, Recorder(by_value, strategy))
        return found[1].record(function)
