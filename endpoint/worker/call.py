"""One member of a packet, from its bytes to what became of it.  Runs in the child; catches everything that a task can raise."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CoroutineType
from typing import Any

from funcmq.broker import values
from funcmq.broker.errors import NotSerializable
from funcmq.broker.messages import Failure, Inline
from funcmq.endpoint.worker import failures
from funcmq.endpoint.worker.load import load
from funcmq.endpoint.worker.packet import SPILL, Member, Spill

MAX_FUNCTIONS = 256
"""Functions kept loaded."""
MAX_TRACEBACKS = 1024 * 1024
"""Characters of tracebacks in the result of one chunk; calls that fail after that have none."""
_NO_LIMIT = 1 << 62
_NOTHING = Inline("msgpack", b"\xc0")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call: a value or a failure, and the seconds that the call itself took."""

    value: Inline | Spill | None
    failure: Failure | None
    run_s: float


class WorkerFaultError(Exception):
    """The worker cannot do its part, a file is missing in the shared folder for instance: no fault of the task."""


class _Fork:
    """Knows whether this process is the other half of a task that forked and forgot to exit: it must not run our loop a second time."""

    def __init__(self) -> None:
        self.happened = False
        os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.happened = True


class Caller:
    """Runs members of packets that share a folder.  Loaded functions are kept, and with them what they remember in their globals."""

    def __init__(self) -> None:
        self._functions: dict[Any, Callable[..., Any]] = {}
        self._fork = _Fork()

    def call(self, member: Member, shared: str, max_inline: int) -> Result:
        """Run this member.

        :raises WorkerFaultError: its function or arguments cannot be read.
        """
        try:
            function = self._function(member, shared)
        except WorkerFaultError:
            raise
        except BaseException as raised:  # noqa: BLE001 (loading runs the user's code)
            return Result(None, failures.not_loaded(member.name, raised), 0.0)
        slot = member.args if isinstance(member.args, Inline) else _read_spill(member.args, shared)
        try:
            given = values.unpack(slot)
        except BaseException as raised:  # noqa: BLE001 (and so does unpickling)
            return Result(None, failures.bad_arguments(member.name, raised), 0.0)
        run = self._chunk if member.kind == "chunk" else self._single
        began = time.perf_counter()
        value, failure = run(function, given)
        took = time.perf_counter() - began
        if self._fork.happened:
            os._exit(0)
        if failure is not None:
            return Result(None, failure, took)
        return Result(*_pack(value, member, shared, max_inline), took)

    def _function(self, member: Member, shared: str) -> Callable[..., Any]:
        key = member.function, tuple(member.places)
        function = self._functions.get(key)
        if function is None:
            data = _read(Path(shared, "functions", member.function))
            function = load(data, member.function, member.places)
            if len(self._functions) >= MAX_FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            self._functions[key] = function
        return function

    @staticmethod
    def _single(function: Callable[..., Any], given: Any) -> tuple[Any, Failure | None]:
        args, keywords = given
        try:
            value = function(*args, **keywords)
            if isinstance(value, CoroutineType):
                value = asyncio.run(value)
        except BaseException as raised:  # noqa: BLE001 (SystemExit included: the task failed, the worker goes on)
            return None, failures.describe(raised)
        return value, None

    def _chunk(self, function: Callable[..., Any], given: Any) -> tuple[Any, Failure | None]:
        star, items = given
        failed: dict[int, Failure] = {}
        found: list[Any] = []
        room = MAX_TRACEBACKS
        with _runner() as finish:
            for index, item in enumerate(items):
                try:
                    value = function(*item) if star else function(item)
                    found.append(finish(value) if isinstance(value, CoroutineType) else value)
                except BaseException as raised:  # noqa: BLE001 (as above)
                    found.append(None)
                    failed[index] = failures.describe(raised, traces=room > 0)
                    room -= len(failed[index].traceback)
                if self._fork.happened:
                    os._exit(0)
        return Chunk(failed, found), None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What became of the calls of a chunk: a value for each, None for those that failed."""

    failed: dict[int, Failure]
    values: list[Any]

    def plain(self) -> tuple[dict[int, list[Any]], list[Any]]:
        """As it travels."""
        rows = {i: [f.code, f.message, f.type_name, f.traceback, f.args, f.hint] for i, f in self.failed.items()}
        return rows, self.values

    def without_culprits(self) -> Chunk:
        """The same, with failures in place of the values that cannot be sent."""
        failed, found = dict(self.failed), list(self.values)
        for index, value in enumerate(found):
            try:
                values.pack(value, "result", _NO_LIMIT)
            except NotSerializable as broken:
                failed[index], found[index] = failures.unserializable(value, broken), None
        return Chunk(dict(sorted(failed.items())), found)


@contextlib.contextmanager
def _runner() -> Iterator[Callable[[Any], Any]]:
    """Something that runs coroutines, on one event loop made at first use."""
    runner: asyncio.Runner | None = None

    def finish(coroutine: Any) -> Any:
        nonlocal runner
        runner = runner or asyncio.Runner()
        return runner.run(coroutine)

    try:
        yield finish
    finally:
        if runner is not None:
            runner.close()


def _pack(value: Any, member: Member, shared: str, max_inline: int) -> tuple[Inline | Spill | None, Failure | None]:
    if value is None:
        return _NOTHING, None
    try:
        slot = _inline(value)
    except NotSerializable as broken:
        return None, failures.unserializable(value, broken)
    except BaseException as raised:  # noqa: BLE001 (a value's own __reduce__ may raise SystemExit)
        return None, failures.describe(raised, "NotSerializable")
    if len(slot.data) <= min(SPILL, max_inline):
        return slot, None
    try:
        return _keep(slot, member, shared, max_inline)
    except OSError as full:
        return None, Failure("StorageFull", f"The result of {member.name} ({len(slot.data):,} bytes) cannot be kept in {shared}: {full}.")


def _keep(slot: Inline, member: Member, shared: str, max_inline: int) -> tuple[Spill | None, Failure | None]:
    """Write a large value where the daemon reads it, or for good, if it may not be sent at all."""
    size = len(slot.data)
    if size <= max_inline:
        return Spill(slot.encoding, _write(shared, "spill", f"{member.id.hex()}-{member.attempt}.result", slot.data), size), None
    path = Path(shared, _write(shared, "results", f"{member.id.hex()}.{slot.encoding}", slot.data))
    message = f"The result of {member.name} has {size:,} bytes; the limit is {max_inline:,}.  It is kept at the endpoint, as {path}."
    return None, Failure("PayloadTooLarge", message, hint="Return less, or write large data to a file and return its path.")


def _inline(value: Any) -> Inline:
    if not isinstance(value, Chunk):
        return values.pack(value, "result", _NO_LIMIT)
    try:
        return values.pack(value.plain(), "result", _NO_LIMIT)
    except NotSerializable:
        return values.pack(value.without_culprits().plain(), "result", _NO_LIMIT)


def _read_spill(spill: Spill, shared: str) -> Inline:
    return Inline(spill.encoding, _read(Path(shared, spill.path)))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as missing:
        raise WorkerFaultError(f"it could not read {path}: {missing.strerror}") from missing


def _write(shared: str, folder: str, name: str, data: bytes) -> str:
    """Write a file so that it is there whole or not at all; its path relative to the shared folder."""
    target = Path(shared, folder, name)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = target.with_name(f".{name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.rename(target)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return f"{folder}/{name}"
