"""What is kept no longer: tasks with their arguments and results some days after they ended, and sessions, codes and tokens that are over.

Everything goes in small transactions, oldest first, so that nobody waits for it.  A task that has not ended stays, however old it is, and
with it the bundle that it came in and the result bundles of its neighbours: whole bundles go, because what is signed is kept whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import FuncmqError
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.states import WAITING
from funcmq.forwarder.tables import (
    bundle_bytes,
    bundles,
    cancels,
    codes,
    dead_letters,
    failures,
    listeners,
    results,
    sessions,
    task_keys,
    tasks,
    tokens,
)
from funcmq.forwarder.views import read_results

log = logging.getLogger("funcmq.retention")

DAY_MS = 24 * 3600 * 1000
LOOK_EVERY_S = 600.0
PAUSE_S = 0.2
"""Between two transactions: whoever has something to do goes first."""
MOST_BUNDLES = 20
MOST_ROWS = 200
CODE_MS = DAY_MS
TOKEN_MS = 30 * DAY_MS
"""After its end, so that `token list` and an audit still show it for a while."""
SESSION_MS = 30 * DAY_MS
"""A client that runs for longer makes a new one by itself when it is told that its own is gone."""

Sweep = Callable[[AsyncConnection, int], Awaitable[int]]


class Retention:
    """`run` looks every few minutes.

    :param days: how long what has ended is kept.
    :param mine: whether this front door is the one that does it now.
    """

    def __init__(self, database: Database, days: float, *, mine: Callable[[], bool] = lambda: True) -> None:
        self._database, self._days, self._mine = database, days, mine

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                while self._mine() and await self.sweep(now_ms()):  # noqa: ASYNC110  # a pause, not a wait
                    await asyncio.sleep(PAUSE_S)
            except FuncmqError as failed:
                log.warning("old rows are removed later: %s", failed.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def sweep(self, now: int) -> int:
        """One small step of each kind; how much went, 0 when there is nothing left to do."""
        ended: Sweep = partial(_forget_tasks, kept=int(self._days * DAY_MS))
        gone = 0
        for step in (ended, _forget_codes, _forget_sessions, _forget_tokens):
            gone += await self._database.write(partial(_step, step=step, now=now))
        return gone


async def _step(connection: AsyncConnection, step: Sweep, now: int) -> int:
    return await step(connection, now)


async def _forget_tasks(connection: AsyncConnection, now: int, kept: int) -> int:
    seqs = await _ended_before(connection, now - kept)
    if not seqs:
        return 0
    rows = (await connection.execute(select(tasks.c.id, tasks.c.result).where(tasks.c.bundle.in_(seqs)))).all()
    ids = select(tasks.c.id).where(tasks.c.bundle.in_(seqs))
    for table in (failures, cancels, task_keys):
        await connection.execute(delete(table).where(table.c.task.in_(ids)))
    await connection.execute(delete(tasks).where(tasks.c.bundle.in_(seqs)))
    await connection.execute(delete(dead_letters).where(dead_letters.c.bundle.in_(seqs)))
    await connection.execute(delete(bundle_bytes).where(bundle_bytes.c.seq.in_(seqs)))
    await connection.execute(delete(bundles).where(bundles.c.seq.in_(seqs)))
    for seq in {row.result for row in rows if row.result is not None}:
        await _forget_result(connection, seq)
    log.info("%d tasks are kept no longer", len(rows), extra={"action": "tasks_forgotten"})
    return len(seqs)


async def _ended_before(connection: AsyncConnection, before: int) -> list[int]:
    """Bundles all of whose tasks had ended by then."""
    mine = tasks.c.bundle == bundles.c.seq
    open_ = exists().where(mine, tasks.c.state.in_([int(state) for state in WAITING]))
    by_result = exists().where(mine, results.c.seq == tasks.c.result, results.c.stored >= before)
    by_us = exists().where(mine, failures.c.task == tasks.c.id, failures.c.ended >= before)
    query = select(bundles.c.seq).where(bundles.c.accepted < before, ~open_, ~by_result, ~by_us)
    return list((await connection.execute(query.order_by(bundles.c.seq).limit(MOST_BUNDLES))).scalars())


async def _forget_result(connection: AsyncConnection, seq: int) -> None:
    """A result bundle goes with the last of its tasks; which they are it says itself."""
    data = (await connection.execute(select(results.c.data).where(results.c.seq == seq))).scalar()
    if data is None:
        return
    ids = [outcome.id for outcome in read_results(data).results]
    left = select(tasks.c.id).where(tasks.c.id.in_(ids), tasks.c.result == seq).limit(1)
    if (await connection.execute(left)).first() is None:
        await connection.execute(delete(results).where(results.c.seq == seq))


async def _forget_codes(connection: AsyncConnection, now: int) -> int:
    old = select(codes.c.hash).where(codes.c.expires < now - CODE_MS).limit(MOST_ROWS)
    return int((await connection.execute(delete(codes).where(codes.c.hash.in_(old)))).rowcount)


async def _forget_sessions(connection: AsyncConnection, now: int) -> int:
    over = select(tokens.c.id).where(_over(now))
    old = or_(sessions.c.created < now - SESSION_MS, sessions.c.token_id.in_(over))
    ids = list((await connection.execute(select(sessions.c.id).where(old).limit(MOST_ROWS))).scalars())
    if ids:
        await connection.execute(delete(listeners).where(listeners.c.session_id.in_(ids)))
        await connection.execute(delete(sessions).where(sessions.c.id.in_(ids)))
    return len(ids)


async def _forget_tokens(connection: AsyncConnection, now: int) -> int:
    used = select(sessions.c.token_id)
    old = select(tokens.c.id).where(_over(now), tokens.c.id.not_in(used)).limit(MOST_ROWS)
    return int((await connection.execute(delete(tokens).where(tokens.c.id.in_(old)))).rowcount)


def _over(now: int) -> ColumnElement[bool]:
    """Tokens that ended long ago."""
    revoked = and_(tokens.c.revoked > 0, tokens.c.revoked < now - TOKEN_MS)
    return or_(revoked, and_(tokens.c.expires > 0, tokens.c.expires < now - TOKEN_MS))
