"""The core of `map`: calls go out in chunks, one task each, and outcomes come back in order or as they end.  No I/O, not thread-safe.

Automatic chunks hold about a second of work.  They begin with one call, grow by what finished ones took, and stay small enough that
the last of them spread over all workers.  A chunk whose process died runs again call by call (unless `retry="never"`), so that one bad
call does not take its neighbours along.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Literal

from funcmq.broker.errors import InvalidRequest, NotSerializable, PayloadTooLarge, WorkerDied
from funcmq.broker.messages import MAX_INLINE, Inline
from funcmq.client.futures import TaskFuture
from funcmq.client.outcomes import Where, chunk_failure, failure_to_error

Errors = Literal["raise", "return", "skip"]

WORK_S = 1.0
GROWTH = 32
"""A chunk is at most this much larger than what was measured so far."""
LARGEST = 1_000_000
SPREAD = 2
"""Chunks per worker that the rest of the calls is cut into."""
SLOT = MAX_INLINE // 2
"""Bytes of arguments or results that a chunk should stay below."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to map.

    :param star: whether each item is a tuple of arguments rather than one.
    :param total: number of calls, where it is known.
    :param workers: how many may run at once, as far as is known.
    :param most: calls under way or waiting to be taken at most; 0: automatic.
    """

    star: bool
    total: int | None
    workers: int
    chunksize: int | None
    most: int
    ordered: bool
    errors: Errors
    rerun: bool = True


class Sizer:
    """How many calls the next chunk holds."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._measured = 0
        """Calls in the largest chunk measured."""
        self._call_s = 0.0
        self._call_bytes = 0.0

    def size(self, left: int | None) -> int:
        """For `left` calls that are not yet submitted (None: unknown)."""
        if self._plan.chunksize is not None:
            return self._plan.chunksize
        size = min(LARGEST, max(1, self._measured * GROWTH))
        if self._call_s:
            size = min(size, int(WORK_S / self._call_s))
        if self._call_bytes:
            size = min(size, int(SLOT / self._call_bytes))
        if left is not None:
            size = min(size, -(-left // (SPREAD * self._plan.workers)))
        if self._plan.most:
            size = min(size, -(-self._plan.most // SPREAD))
        return max(1, size)

    def measure(self, calls: int, seconds: float, size: int) -> None:
        """A chunk of this many calls took so long, and its larger slot has `size` bytes."""
        self._measured = max(self._measured, calls)
        self._call_s = max(seconds / calls, self._call_s / 2)
        self._call_bytes = max(size / calls, self._call_bytes / 2)


@dataclass(slots=True)
class Chunk:
    """Calls `start` to `start + len(items)`."""

    start: int
    items: list[Any]
    future: TaskFuture[Any] | None = None
    sent: int = 0
    """Bytes of its arguments."""


@dataclass(frozen=True, slots=True)
class Block:
    """Outcomes of neighbouring calls, in order; `errors` by index into `values`."""

    start: int
    values: list[Any]
    errors: dict[int, BaseException]


class Mapping:
    """One `map` under way.

    :param submit: sends a chunk's argument value, `[star, items]`.
    :param ended: called whenever a chunk has ended, from any thread: the owner then calls `settle` with it.
    """

    def __init__(
        self, items: Iterable[Any], plan: Plan, submit: Callable[[list[Any]], TaskFuture[Any]], ended: Callable[[Chunk], None]
    ) -> None:
        self._items, self._plan, self._submit, self._ended = iter(items), plan, submit, ended
        self._sizer = Sizer(plan)
        self._again: deque[Chunk] = deque()
        self._blocks: dict[int, Block] = {}
        self._submitted = self._taken = self._next = 0
        self._exhausted = False
        self.under_way: dict[int, Chunk] = {}
        self.done = self.failed = 0
        """Calls that have ended, and those of them without a value."""

    @property
    def finished(self) -> bool:
        """Everything was submitted, has ended and was taken."""
        return self._exhausted and not self.under_way and not self._blocks and not self._again

    @property
    def reason(self) -> str:
        """What the oldest chunk under way waits for, for a progress bar."""
        oldest = next(iter(self.under_way.values()), None)
        return "" if oldest is None or oldest.future is None else oldest.future.waiting_for

    def turn(self, ended: Iterable[Chunk]) -> Iterator[tuple[list[Any], BaseException | None]]:
        """These chunks have ended: what may be given now, and the error that ends the map then.  Submits what there is room for."""
        for chunk in ended:
            self.settle(chunk)
        self.top_up()
        for block in self.take():
            yield flatten(block, self._plan.errors)
        self.top_up()

    def top_up(self) -> None:
        """Submit as much as may be under way."""
        while self._room() and (chunk := self._next_chunk()) is not None:
            self.under_way[chunk.start] = chunk
            chunk.future = self._submit([self._plan.star, chunk.items])
            chunk.sent = len(chunk.future.args.data) if isinstance(chunk.future.args, Inline) else 0
            chunk.future.add_done_callback(lambda _, done=chunk: self._ended(done))  # type: ignore[misc]

    def _room(self) -> bool:
        if self._again:  # these count as submitted already, and others may wait for them
            return len(self.under_way) < 2 * self._plan.workers + 2
        if self._plan.most:
            return self._submitted - self._taken < self._plan.most
        # finished blocks that wait for an earlier one count too: a slow head must not let the rest pile up without end
        return len(self.under_way) < 2 * self._plan.workers + 2 and len(self._blocks) < 8 * self._plan.workers + 8

    def _next_chunk(self) -> Chunk | None:
        if self._again:
            return self._again.popleft()
        left = None if self._plan.total is None else max(0, self._plan.total - self._submitted)
        items = list(itertools.islice(self._items, self._sizer.size(left)))
        if not items:
            self._exhausted = True
            return None
        chunk = Chunk(self._submitted, items)
        self._submitted += len(items)
        return chunk

    def settle(self, chunk: Chunk) -> None:
        """A chunk has ended: keep its outcomes, or see that it runs again in pieces."""
        del self.under_way[chunk.start]
        future = chunk.future
        assert future is not None
        error = future.exception(0)
        if error is None:
            self._measure(chunk, future)
            self._keep(chunk, *_outcomes(future, len(chunk.items)))
        elif len(chunk.items) > 1 and self._in_pieces(future, error):
            self._again.extend(Chunk(chunk.start + at, [item]) for at, item in enumerate(chunk.items))
        else:
            self._keep(chunk, [None] * len(chunk.items), dict.fromkeys(range(len(chunk.items)), error))

    def _in_pieces(self, future: TaskFuture[Any], error: BaseException) -> bool:
        if future.sent is None:  # it never left: an argument that cannot be sent, or too much for one task
            return isinstance(error, NotSerializable | PayloadTooLarge)
        return isinstance(error, WorkerDied) and self._plan.rerun

    def _measure(self, chunk: Chunk, future: TaskFuture[Any]) -> None:
        outcome = future.outcome
        if outcome is not None:
            came = len(outcome.value.data) if isinstance(outcome.value, Inline) else 0
            self._sizer.measure(len(chunk.items), max(1, outcome.ended - outcome.started) / 1000, max(came, chunk.sent))

    def _keep(self, chunk: Chunk, values: list[Any], errors: dict[int, BaseException]) -> None:
        self._blocks[chunk.start] = Block(chunk.start, values, errors)
        self.done += len(values)
        self.failed += len(errors)
        chunk.items = []

    def take(self) -> Iterator[Block]:
        """The blocks whose turn it is."""
        while self._blocks:
            start = self._next if self._plan.ordered else next(iter(self._blocks))
            block = self._blocks.pop(start, None)
            if block is None:
                return
            self._next = start + len(block.values)
            self._taken += len(block.values)
            yield block

    def cancel(self) -> None:
        """End what is under way: nobody will take it."""
        for chunk in self.under_way.values():
            if chunk.future is not None:
                chunk.future.cancel()


def _outcomes(future: TaskFuture[Any], calls: int) -> tuple[list[Any], dict[int, BaseException]]:
    """Values (None where a call failed) and errors of a chunk's calls."""
    try:
        failures, values = future.result(0)
        values = list(values)
        if len(values) != calls:
            raise ValueError
        where = Where(future.id, future.name, future.endpoint_id, future.endpoint, future.host)
        return values, {int(at): failure_to_error("failed", chunk_failure(said), where) for at, said in failures.items()}
    except (TypeError, ValueError, AttributeError):
        message = f"The endpoint answered the chunk {future.id} with something else than {calls} outcomes."
        wrong = InvalidRequest(message, hint="Update its funcmq.")
        return [None] * calls, dict.fromkeys(range(calls), wrong)


def flatten(block: Block, errors: Errors) -> tuple[list[Any], BaseException | None]:
    """What `map` gives of a block, and the error that ends it then (with "raise")."""
    if not block.errors:
        return block.values, None
    if errors == "return":
        return [block.errors.get(at, value) for at, value in enumerate(block.values)], None
    if errors == "skip":
        return [value for at, value in enumerate(block.values) if at not in block.errors], None
    first = min(block.errors)
    return block.values[:first], block.errors[first]


def zipped(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], bool, int | None]:
    """Items of a map over these, whether each is a tuple of arguments, and how many there are where that is known.

    :raises TypeError: there is nothing to map over.
    """
    if not iterables:
        raise TypeError("map() needs something to map over.")
    total = min((len(one) for one in iterables if isinstance(one, Sized)), default=None)
    if len(iterables) == 1:
        return iterables[0], False, total
    if not all(isinstance(one, Sized) for one in iterables):
        total = None
    return zip(*iterables, strict=False), True, total


def check(chunksize: object, most: object, errors: object) -> None:
    """:raises TypeError, ValueError: an option of map is not what it should be."""
    for name, value in (("chunksize", chunksize), ("max_inflight", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is a whole number or None, not {type(value).__name__}.")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name} is at least 1, not {value}.")
    check_errors(errors)


def check_errors(errors: object) -> None:
    """:raises ValueError: there is no such way to treat errors."""
    if errors not in ("raise", "return", "skip"):
        raise ValueError(f"errors is 'raise', 'return' or 'skip', not {errors!r}.")
