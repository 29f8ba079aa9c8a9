"""The one that writes: requests hand in operations, all that wait share one transaction and one commit (design §3.2).

An operation is a coroutine function of the connection, and awaits nothing else.  It must be repeatable: when one of a batch raises, the
whole batch is rolled back and each operation runs again in a transaction of its own, so that a failing one never undoes its neighbours
and the usual case pays for no savepoints.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sqlite3  # statements that go straight to its driver raise its own errors
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from funcmq.broker.errors import Busy, FuncmqError, StorageFull
from funcmq.forwarder import sqlite
from funcmq.forwarder.prepared import Prepared, Row, many
from funcmq.forwarder.tally import Tally

log = logging.getLogger("funcmq.writer")

T = TypeVar("T")
Operation = Callable[[AsyncConnection], Awaitable[T]]

LONGEST_BATCH = 256
"""Operations in one transaction: what one waiter may wait for."""
TRIES = 4
"""How often a transaction is tried that collided with another front door's: PostgreSQL ends one of two that wait for each other."""
LAZY_S = 0.3
"""How long rows of `later` wait for a transaction to go with."""


@dataclass(slots=True)
class _Request(Generic[T]):
    operation: Operation[T]
    done: asyncio.Future[T]


class Writer:
    """See the module.  `run` must be running; only one writer may write to a SQLite file."""

    def __init__(self, engine: AsyncEngine, *, in_thread: bool = False) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "database") if in_thread else None
        self._waiting: deque[_Request[Any]] = deque()
        self._later: dict[Prepared, list[Row]] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._connection: AsyncConnection | None = None  # kept: taking one from the pool and giving it back costs two more round trips
        self._closing = False
        self.sizes = Tally(1, 2, 4, 8, 16, 32, 64, 128)
        """Operations of each transaction that had any."""

    async def __call__(self, operation: Operation[T]) -> T:
        """Run operation in the next transaction; its result, once that is committed.

        Cancelling the caller does not tell whether it was written.

        :raises StorageFull: the disk is full; nothing was written.
        :raises Busy: the database failed or is closing; nothing was written, or a commit was lost with the connection (state unknown).
        """
        if self._closing:
            raise Busy("The front door is shutting down.")
        request: _Request[T] = _Request(operation, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake.set()
        return await request.done

    def later(self, statement: Prepared, *rows: Row) -> None:
        """Write rows with whatever transaction comes next, or in a moment; lost with the process, so only for what can be found again."""
        self._later.setdefault(statement, []).extend(rows)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LAZY_S, self._wake.set)

    async def run(self) -> None:
        """Write until `close` was called and nothing waits any more."""
        try:
            while not (self._closing and not self._waiting and not self._later):
                await self._wake.wait()
                self._wake.clear()
                while self._waiting or self._later:
                    await self._batch()
        finally:
            await self._disconnect()
            if self._thread is not None:
                self._thread.shutdown()

    def close(self) -> None:
        """Take no more operations; `run` ends when those that wait are written."""
        self._closing = True
        self._wake.set()

    async def _batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), LONGEST_BATCH))]
        batch = [request for request in batch if not request.done.cancelled()]
        rows = self._take_later()
        try:
            answers = await self._transact([request.operation for request in batch], rows)
        except Exception as error:  # noqa: BLE001 - whatever it was is found again, and told, one by one
            await self._one_by_one(batch, rows, error)
        else:
            if batch:
                self.sizes.add(len(batch))
            for request, answer in zip(batch, answers, strict=True):
                _resolve(request, answer)

    def _take_later(self) -> dict[Prepared, list[Row]]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        rows, self._later = self._later, {}
        return rows

    async def _transact(self, operations: Sequence[Operation[Any]], rows: dict[Prepared, list[Row]]) -> list[Any]:
        """One transaction; where the driver blocks, the whole of it in one thread: one hop, however many statements."""
        if self._thread is None:
            return await self._persist(operations, rows)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: sqlite.finish(self._carry_out(operations, rows)))

    async def _persist(self, operations: Sequence[Operation[Any]], rows: dict[Prepared, list[Row]]) -> list[Any]:
        for left in reversed(range(TRIES)):
            try:
                return await self._carry_out(operations, rows)
            except DBAPIError as error:
                if not left or not collided(error):
                    raise
                await asyncio.sleep(random.uniform(0, 0.05))
        raise AssertionError

    async def _carry_out(self, operations: Sequence[Operation[Any]], rows: dict[Prepared, list[Row]]) -> list[Any]:
        if self._connection is None or self._connection.invalidated:
            await self._disconnect()
            self._connection = await self._engine.connect()
        connection = self._connection
        async with connection.begin():
            answers = [await operation(connection) for operation in operations]
            for statement, values in rows.items():
                await many(connection, statement, values)
            return answers

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _one_by_one(self, batch: list[_Request[Any]], rows: dict[Prepared, list[Row]], error: Exception) -> None:
        if len(batch) == 1 and not rows:
            _fail(batch[0], error)
            return
        for request in batch:
            try:
                answers = await self._transact([request.operation], {})
            except Exception as failed:  # noqa: BLE001 - told to the one who asked
                _fail(request, failed)
            else:
                _resolve(request, answers[0])
        with contextlib.suppress(asyncio.CancelledError):
            await self._try_later(rows)

    async def _try_later(self, rows: dict[Prepared, list[Row]]) -> None:
        try:
            await self._transact([], rows)
        except Exception:
            log.exception("rows that could wait were not written", extra={"action": "lazy_rows_lost"})


def _resolve(request: _Request[Any], answer: object) -> None:
    if not request.done.done():
        request.done.set_result(answer)


def _fail(request: _Request[Any], error: Exception) -> None:
    if not request.done.done():
        request.done.set_exception(explain(error))


def collided(error: DBAPIError) -> bool:
    """Whether PostgreSQL rolled a transaction back only because of another one: deadlock, or no serial order."""
    return getattr(error.orig, "sqlstate", "") in ("40P01", "40001")


def explain(error: Exception) -> Exception:
    """The named error behind a database's own."""
    of_driver = isinstance(error, (DBAPIError, PoolTimeout, sqlite3.Error, OSError)) or type(error).__module__.startswith("asyncpg.")
    if isinstance(error, FuncmqError) or not of_driver:  # while PostgreSQL starts, asyncpg's errors come as they are
        return error
    text = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    if "full" in text.lower() or "no space" in text.lower():
        return StorageFull("The front door's database has no space left.")
    log.error("the database failed: %s", text, extra={"action": "database_failed"})
    return Busy("The front door's database does not take this now.", retry_after=2.0)
