"""Which `funcmq serve` does what: claims in the store that run out by themselves (design §2).

Three kinds of claim, one table: a `serve` that lives, the `results` of one endpoint, and a `job` that only one of all does (the
reconciler, retention, …).  Each serve renews its claims every few seconds, takes its fair share of the endpoints that nobody has, and gives
them back at an orderly end; those of a crashed one run out, and the others take them.  The clock is the database's, so that hosts need not
agree.  They are rows of their own, not columns of endpoints: heartbeats and leases never wait for a claim.

A claim keeps work from being done twice for nothing; it is no lock.  Whoever lost one without knowing does what two may do at the same
time: results are stored once whoever brings them, and a bundle is sent again only by the one whose update of its row came first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import Select, and_, delete, func, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import FuncmqError
from funcmq.broker.ids import new_hex
from funcmq.broker.signing import PublicKey
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.prepared import insert
from funcmq.forwarder.tables import claims, endpoints

log = logging.getLogger("funcmq.claims")

TTL_S = 15.0
RENEW_S = 4.0
SERVE, RESULTS, JOB = "serve", "results", "job"


@dataclass(frozen=True, slots=True)
class Held:
    """What one serve has after a round.  `keys` are of the endpoints whose results it takes in; `others`: how many more serves take in
    results; `freed`: whether it left some to them just now.
    """

    keys: dict[str, PublicKey]
    jobs: frozenset[str]
    others: int
    freed: bool

    @property
    def names(self) -> int:
        """How many claims these are."""
        return len(self.keys) + len(self.jobs)


def fair_share(endpoints: int, serves: int) -> int:
    """The most endpoints that one of so many serves takes."""
    return -(-endpoints // max(1, serves))


class Claims:
    """The claims of this process; `run` renews them.

    :param jobs: what this serve is ready to do, if nobody else does.
    :param results: whether it takes in results.
    :param took: called after each round with what is held now; when the store was away for so long that all ran out, with nothing.
    """

    def __init__(
        self, database: Database, jobs: tuple[str, ...], *, results: bool, took: Callable[[Held], Awaitable[None]], ttl_s: float = TTL_S
    ) -> None:
        self.id = new_hex()
        self._database, self._jobs, self._results, self._took, self._ttl_s = database, jobs, results, took, ttl_s
        self._keys: dict[str, PublicKey] = {}
        self._wanted = asyncio.Event()
        self._held = Held({}, frozenset(), 0, freed=False)
        self._until = 0.0

    def look(self) -> None:
        """There is something new to claim, now."""
        self._wanted.set()

    def holds(self, job: str) -> bool:
        """Whether this serve is the one that does it."""
        return job in self._held.jobs and time.monotonic() < self._until

    @property
    def alone(self) -> bool:
        """Whether no other serve takes in results, as far as is known."""
        return not self._held.others

    async def run(self) -> None:
        """Until cancelled; what is held stays claimed: see `release`."""
        while True:
            began = time.monotonic()
            try:
                self._held = await (self._alone() if self._database.exclusive else self._database.write(self._round))
                self._until = began + self._ttl_s
                await self._took(self._held)
            except FuncmqError as failed:
                log.warning("claims wait for the database: %s", failed.message, extra={"action": "claims_wait"})
                await self._run_out()
            await self._rest()

    async def release(self) -> None:
        """An orderly end: others may take all of it at once."""
        self._held = Held({}, frozenset(), 0, freed=False)
        try:
            if not self._database.exclusive:
                await self._database.write(self._give_back)
        except FuncmqError as failed:
            log.warning("claims run out by themselves: %s", failed.message)

    async def _run_out(self) -> None:
        if self._held.names and time.monotonic() >= self._until:
            self._held = Held({}, frozenset(), 0, freed=False)
            await self._took(self._held)

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._ttl_s * RENEW_S / TTL_S):
                await self._wanted.wait()
        except TimeoutError:
            return
        self._wanted.clear()

    async def _alone(self) -> Held:
        """Nobody else can open this database: everything is held, and nothing is written."""
        async with self._database.read() as connection:
            rows = await connection.execute(select(endpoints.c.id, endpoints.c.key).where(endpoints.c.deleted == 0))
            keys = self._parse({row.id: row.key for row in rows}) if self._results else {}
        return Held(keys, frozenset(self._jobs), 0, freed=False)

    def _parse(self, texts: dict[str, str]) -> dict[str, PublicKey]:
        """Keys of endpoints, which never change."""
        self._keys = {name: self._keys.get(name) or PublicKey.parse(text) for name, text in texts.items()}
        return self._keys

    async def _round(self, connection: AsyncConnection) -> Held:
        now = await store_clock(connection)
        until = now + int(self._ttl_s * 1000)
        serves = await self._show_up(connection, now, until)
        jobs = [job for job in self._jobs if await self._claim_job(connection, job, now, until)]
        keys, freed = await self._claim_endpoints(connection, serves, now, until) if self._results else ({}, False)
        return Held(keys, frozenset(jobs), max(0, serves - 1), freed)

    async def _show_up(self, connection: AsyncConnection, now: int, until: int) -> int:
        """Be known as one that takes in results; how many there are."""
        if self._results:
            mine = {"kind": SERVE, "name": self.id, "claimant": self.id, "until": until}
            adding = insert(connection.dialect, claims).values(mine)
            await connection.execute(adding.on_conflict_do_update(index_elements=["kind", "name"], set_={"until": until}))
        await connection.execute(delete(claims).where(claims.c.kind == SERVE, claims.c.until < now))
        alive = select(func.count()).select_from(claims).where(claims.c.kind == SERVE)
        return int((await connection.execute(alive)).scalar_one())

    async def _claim_job(self, connection: AsyncConnection, job: str, now: int, until: int) -> bool:
        row = {"kind": JOB, "name": job, "claimant": self.id, "until": until}
        adding = insert(connection.dialect, claims).values(row)
        free = (claims.c.claimant == self.id) | (claims.c.until < now)
        taking = adding.on_conflict_do_update(
            index_elements=["kind", "name"], set_={"claimant": self.id, "until": until}, where=free
        ).returning(claims.c.name)
        return (await connection.execute(taking)).first() is not None

    async def _claim_endpoints(self, connection: AsyncConnection, serves: int, now: int, until: int) -> tuple[dict[str, PublicKey], bool]:
        await self._match_endpoints(connection)
        total = int((await connection.execute(select(func.count()).select_from(claims).where(claims.c.kind == RESULTS))).scalar_one())
        mine = and_(claims.c.kind == RESULTS, claims.c.claimant == self.id)
        held = list((await connection.execute(select(claims.c.name).where(mine).order_by(claims.c.name))).scalars())
        share = fair_share(total, serves)
        if excess := held[share:]:
            await connection.execute(update(claims).where(mine, claims.c.name.in_(excess)).values(claimant="", until=0))
        elif len(held) < share:
            found = list((await connection.execute(_unclaimed(now, share - len(held)))).scalars())
            taking = update(claims).where(claims.c.kind == RESULTS, claims.c.name.in_(found))
            await connection.execute(taking.values(claimant=self.id))
        await connection.execute(update(claims).where(mine).values(until=until))
        rows = await connection.execute(select(endpoints.c.id, endpoints.c.key).join(claims, claims.c.name == endpoints.c.id).where(mine))
        return self._parse({row.id: row.key for row in rows}), bool(excess)

    async def _match_endpoints(self, connection: AsyncConnection) -> None:
        """One row for each endpoint that there is."""
        known = select(claims.c.name).where(claims.c.kind == RESULTS)
        missing = (
            select(literal_column(f"'{RESULTS}'"), endpoints.c.id, literal_column("''"), literal_column("0"))
            .where(endpoints.c.deleted == 0, endpoints.c.id.not_in(known))
            .order_by(endpoints.c.id)
        )
        adding = insert(connection.dialect, claims).from_select(["kind", "name", "claimant", "until"], missing)
        await connection.execute(adding.on_conflict_do_nothing())
        gone = select(endpoints.c.id).where(endpoints.c.deleted != 0)
        await connection.execute(delete(claims).where(claims.c.kind == RESULTS, claims.c.name.in_(gone)))

    async def _give_back(self, connection: AsyncConnection) -> None:
        mine = claims.c.claimant == self.id
        await connection.execute(delete(claims).where(mine, claims.c.kind == SERVE))
        await connection.execute(update(claims).where(mine).values(claimant="", until=0))


def _unclaimed(now: int, limit: int) -> Select[tuple[str]]:
    """Endpoints whose results nobody takes in; those that another serve is just taking are passed over, not waited for."""
    free = select(claims.c.name).where(claims.c.kind == RESULTS, claims.c.until < now)
    return free.order_by(claims.c.name).limit(limit).with_for_update(skip_locked=True)


async def store_clock(connection: AsyncConnection) -> int:
    """The time by which claims run out, in ms: the database's own where several hosts share it."""
    if connection.dialect.name != "postgresql":
        return now_ms()
    return int((await connection.exec_driver_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one())
