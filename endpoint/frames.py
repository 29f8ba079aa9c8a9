"""What an interchange says to its daemon, taken apart without trusting it with more than it needs.

Parsl frames its messages with pickle.  This is the only module of the daemon that reads pickle, and its unpickler finds a handful of names
and nothing else: not even those are Parsl's classes, but empty ones of ours that keep what they are given.  What a worker function returned
is bytes, which a pickle carries without any class.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funcmq.broker.errors import InvalidRequest

MANAGERS = "funcmq.managers"
"""`type` of the message with which our interchange tells who is registered."""
_DATA = b"02\n"
"""Parsl's header of a value pickled with dill."""


class _Inert:
    """An object that does nothing: it keeps its arguments, and whatever state it is given."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.state = state


class ManagerLost(_Inert):
    """A node stopped answering."""


class WorkerLost(_Inert):
    """A worker process died."""


class VersionMismatch(_Inert):
    """A node came with another Parsl or Python; the interchange ends itself then."""


class _Wrapper(_Inert):
    state: dict[str, Any]


_KNOWN: dict[tuple[str, str], type[_Inert]] = {
    ("parsl.executors.high_throughput.errors", "ManagerLost"): ManagerLost,
    ("parsl.executors.high_throughput.errors", "WorkerLost"): WorkerLost,
    ("parsl.executors.high_throughput.errors", "VersionMismatch"): VersionMismatch,
    ("parsl.app.errors", "RemoteExceptionWrapper"): _Wrapper,
    ("tblib", "Traceback"): _Inert,
    ("tblib", "Frame"): _Inert,
    ("tblib", "Code"): _Inert,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not taken")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"the persistent id {pid!r} is not taken")


@dataclass(frozen=True, slots=True)
class Answered:
    """A worker returned these bytes for a packet."""

    task: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """A packet will not be answered."""

    task: int
    reason: str


@dataclass(frozen=True, slots=True)
class Manager:
    """A registered node: one process worker pool."""

    id: str
    block: str
    host: str
    workers: int


@dataclass(frozen=True, slots=True)
class Managers:
    """Who is registered now."""

    managers: list[Manager]


@dataclass(frozen=True, slots=True)
class Broken:
    """The interchange ends itself."""

    reason: str


Frame = Answered | Lost | Managers | Broken


def _load(data: bytes) -> Any:
    try:
        return _Reader(io.BytesIO(data)).load()
    except Exception as broken:  # noqa: BLE001 (unpickling garbage may raise anything)
        raise InvalidRequest(f"A frame of the interchange cannot be read: {broken}.") from None


def read(data: bytes) -> Frame:
    """The frame in data.

    :raises InvalidRequest: it is none of those known.
    """
    message = _load(data)
    if not isinstance(message, dict):
        raise InvalidRequest("A frame of the interchange is not a message.")
    try:
        if message["type"] == MANAGERS:
            return Managers([Manager(*(kind(field) for kind, field in zip(_MANAGER, row, strict=True))) for row in message["managers"]])
        number = int(message["task_id"])
        if "result" in message:
            return _answer(number, message["result"])
        reason = _reason(message["exception"])
    except (KeyError, TypeError, ValueError) as broken:
        raise InvalidRequest(f"A frame of the interchange is not complete: {broken}.") from None
    return Broken(reason) if number == -1 else Lost(number, reason)


_MANAGER: tuple[Callable[[Any], Any], ...] = (str, str, str, int)


def _answer(number: int, value: bytes) -> Frame:
    try:
        payload = _load(value[len(_DATA) :]) if value.startswith(_DATA) else None
    except InvalidRequest as refused:
        return Lost(number, refused.message)
    if not isinstance(payload, bytes):
        return Lost(number, "Its worker answered with something else than a report.")
    return Answered(number, payload)


def _reason(value: bytes) -> str:
    try:
        wrapper = _load(value[len(_DATA) :])
    except InvalidRequest as refused:
        return f"Its worker raised an error that is not taken here. {refused.message}"
    error = wrapper.state.get("e_value") if isinstance(wrapper, _Wrapper) and hasattr(wrapper, "state") else wrapper
    said = {**getattr(error, "state", {})}
    match error:
        case ManagerLost():
            return f"The node {said.get('hostname', '?')} stopped answering."
        case WorkerLost():
            return f"The worker process {said.get('worker_id', '?')} on {said.get('hostname', '?')} died."
        case VersionMismatch():
            return f"A node came with {said.get('manager_version', '?')}, the daemon has {said.get('interchange_version', '?')}."
    return "Something under it was lost."
