"""What was submitted and has not left: collected by lane (one group, one endpoint), taken out as bundles.  No I/O; thread-safe.

The longer nobody takes, the larger the next bundle grows: with a few requests under way at most, load makes its own batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from funcmq.broker import codec
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_BUNDLE, MAX_TASKS, FunctionRef, Inline, Options, Task, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.client.futures import TaskFuture
from funcmq.client.options import Scope

Lane = tuple[str, str | tuple[str, ...], str]
"""Group, endpoint and `offline` of a scope."""

_OVERHEAD = 1024
"""Bytes for signature, ids and frames of a bundle."""
_PER_TASK = 48
_PER_OPTIONS = 160
_PER_PLACE = 16
_PER_NAMED = 1024
"""For a function of which only the name is known yet."""


@dataclass(slots=True, weakref_slot=True)
class Sent:
    """What is known of a bundle as a whole: every future in it looks here, so that a receipt for a thousand tasks is one assignment."""

    state: str = "pending"
    accepted: float = 0.0
    """Seconds since the epoch at which the front door's 202 was seen."""


@dataclass(slots=True)
class Bundle:
    """Tasks that leave together, in the order of their submission."""

    lane: Lane
    futures: list[TaskFuture[Any]]
    sent: Sent = field(default_factory=Sent)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle as it travels: `id` is the hash of its body, `not_after` the earliest end of its tasks' waiting (milliseconds)."""

    id: str
    data: bytes
    not_after: int


@dataclass(frozen=True, slots=True)
class Address:
    """Who signs, and for whom: ids as hex."""

    user: str
    key: PrivateKey
    endpoint: str
    group: str


class Bundler:
    """Collects futures whose `args` and `function` are set.

    :param wake: called, under no lock, whenever a lane begins to wait; who takes then goes on until nothing is left.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._lanes: dict[Lane, deque[TaskFuture[Any]]] = {}
        self.refs: dict[str, FunctionRef] = {}
        """Every function seen so far, by id."""
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        with self._lock:
            return sum(len(lane) for lane in self._lanes.values())

    def know(self, ref: FunctionRef) -> None:
        """Functions are made known before the first task that names them."""
        if ref.id not in self.refs:
            self._sizes[ref.id] = 100 + len(ref.name.encode()) + sum(_PER_PLACE + len(place[0].encode()) for place in ref.places)
            self.refs[ref.id] = ref

    def add(self, future: TaskFuture[Any], scope: Scope) -> None:
        """Put aside until the next `take`."""
        with self._lock:
            waiting = self._lanes.get(scope.lane)
            if waiting is not None:
                waiting.append(future)
                return
            self._lanes[scope.lane] = deque((future,))
        self._wake()

    def withdraw(self, future: TaskFuture[Any]) -> bool:
        """Whether the future was still here; it will not be taken any more."""
        with self._lock:
            if future.sent is not None or future.args is None:
                return False
            future.args = None
            return True

    def take(self) -> Bundle | None:
        """The next bundle, None when nothing waits.  Lanes take turns."""
        with self._lock:
            while self._lanes:
                lane, waiting = next(iter(self._lanes.items()))
                del self._lanes[lane]
                futures = self._fill(waiting)
                if waiting:
                    self._lanes[lane] = waiting
                if futures:
                    bundle = Bundle(lane, futures)
                    for future in futures:
                        future.sent = bundle.sent
                    return bundle
        return None

    def take_all(self) -> list[TaskFuture[Any]]:
        """Everything that waits, for a client that gives up."""
        with self._lock:
            futures = [future for lane in self._lanes.values() for future in lane if future.args is not None]
            self._lanes.clear()
        return futures

    def _fill(self, waiting: deque[TaskFuture[Any]]) -> list[TaskFuture[Any]]:
        futures: list[TaskFuture[Any]] = []
        room, functions, options = MAX_BUNDLE - _OVERHEAD, set[str](), set[int]()
        while waiting and len(futures) < MAX_TASKS:
            future = waiting[0]
            if future.args is None:  # withdrawn
                waiting.popleft()
                continue
            size = self._size(future, functions, options)
            if futures and size > room:
                break
            room -= size
            futures.append(waiting.popleft())
        return futures

    def _size(self, future: TaskFuture[Any], functions: set[str], options: set[int]) -> int:
        assert isinstance(future.args, Inline)
        size = _PER_TASK + len(future.args.data) + len(future.key)
        if future.function not in functions:
            functions.add(future.function)
            size += self._sizes.get(future.function, _PER_NAMED)
        how = id(future.scope)
        if how not in options:
            options.add(how)
            size += _PER_OPTIONS + (len(repr(future.scope.how.resources)) if future.scope else 0)
        return size

    def seal(self, bundle: Bundle, address: Address, now: float) -> Sealed:
        """Sign a bundle as of `now`, seconds since the epoch."""
        signed_at = int(now * 1000)
        functions: dict[str, int] = {}
        options: dict[int, int] = {}
        hows: list[Options] = []
        tasks = []
        for future in bundle.futures:
            scope, args = future.scope, future.args
            assert scope is not None
            assert args is not None
            at = options.get(id(scope))
            if at is None:
                at = options[id(scope)] = len(hows)
                hows.append(msgspec.structs.replace(scope.how, not_after=signed_at + int(scope.expires_s * 1000)))
            tasks.append(Task(future.task_id, functions.setdefault(future.function, len(functions)), at, args, future.key))
        refs = [self.refs[function] for function in functions]
        public = address.key.public
        work = Work(Work.VERSION, address.user, public.id, "", address.endpoint, address.group, signed_at, refs, hows, tasks)
        body = codec.encode(work)
        return Sealed(sha256(body), address.key.sign(BUNDLE, body), min(how.not_after for how in hows))
