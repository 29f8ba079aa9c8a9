"""The shell around the core: what happens is written to the journal and carried out, in turns of the event loop.

One *turn* serves everything that has come since the last one: packets are launched, ends and counts collect for the next commit.  One
*flush* at a time forms result bundles, commits them together with what else is to be written, and hands them to the outbox; what comes
during a flush shares the next.  So the work per task is a few plain loops, and the number of commits adapts by itself to the load.

The order that promises rest on: a bundle is committed before it is acked, *launched* before a packet is submitted, *done* before a result
is sent.  So the journal of a killed daemon names every task that may have run.  Work that can start at once is accepted and launched in one
commit; should the journal then know some of it from long ago, that part is discarded before anything of it is submitted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funcmq.broker import codec
from funcmq.broker.environment import minor
from funcmq.broker.errors import FuncmqError, InvalidRequest, StorageFull
from funcmq.broker.messages import MAX_INLINE, Dispatch, Running, Work
from funcmq.broker.topology import results_key
from funcmq.endpoint import values
from funcmq.endpoint.changes import changes, confirm, restored
from funcmq.endpoint.clock import now_ms
from funcmq.endpoint.core import Core
from funcmq.endpoint.functions import Functions
from funcmq.endpoint.journal import Journal
from funcmq.endpoint.pool import Pool
from funcmq.endpoint.results import Formed, Signer
from funcmq.endpoint.tasks import Bundle, Task
from funcmq.endpoint.todo import Launch, Todo
from funcmq.endpoint.trust import REMEMBER_MS, TrustedKeys
from funcmq.endpoint.worker.packet import Member, Packet, Report, Spill
from funcmq.endpoint.writes import Accept, Buried, OpenBundle, Write

log = logging.getLogger("funcmq.engine")

ANNOUNCE_S = 1.0
"""A task that runs longer than this is told of as running."""
DISK_WAIT_S = 1.0
PAUSE_S = 20.0
"""Two heartbeats.  A process that stood still for longer may have lost its lease: it proves its channel before it launches anything."""


WEIGHT = 10 * 1024 * 1024
"""Memory that open work may take before no more is wanted, about."""
RESUME = 0.7
_PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Mouth:
    """What the engine says to the outside.  Neither call waits.

    :param results: these result bundles are committed and are to reach the store.
    :param tell: kind, routing key and bytes of a message that may be lost.
    """

    results: Callable[[list[Formed]], None]
    tell: Callable[[str, str, bytes], None]


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A bundle on its way into the journal: the tasks of it that were not open here, and the number of those that turn out to be new."""

    write: Accept
    tasks: list[Task]
    fresh: asyncio.Future[int]


class Engine:
    """See the module.  `attach` it to its pools, `recover`, then `run` it in a TaskGroup.  It owns the pools' answers (`pool.Owner`)."""

    def __init__(self, core: Core, journal: Journal, signer: Signer, trusted: TrustedKeys, functions: Functions, shared: Path) -> None:
        self.core = core
        self.changed = asyncio.Event()
        """Set when workers have come or gone."""
        self.landed = asyncio.Event()
        """Set when nothing is in a pool."""
        self.roomy = asyncio.Event()
        """Set while there is memory for more work."""
        self.roomy.set()
        self.gone = 0
        """When a journal of this endpoint was given up for gone last (ms); 0 never."""
        self._journal, self._signer, self._trusted, self._functions, self._shared = journal, signer, trusted, functions, shared
        self._pools: dict[str, Pool] = {}
        self._mouth = Mouth(lambda _: None, lambda *_: None)
        self._group: asyncio.TaskGroup | None = None
        self._holds: set[str] = {"starting"}
        self._turning = False
        self._flushing: asyncio.Task[None] | None = None
        self._arrivals: list[_Arrival] = []
        self._launches: list[tuple[Pool, Launch]] = []
        self._todo = Todo()
        self._timer: asyncio.TimerHandle | None = None
        self._announcer: asyncio.TimerHandle | None = None
        self._announced: set[int] = set()
        self._fetching: set[str] = set()
        self._pulsed = time.monotonic()

    # -- life -----------------------------------------------------------------------------------------------------------

    def attach(self, pools: Iterable[Pool], mouth: Mouth, group: asyncio.TaskGroup) -> None:
        """Where packets go, where results go, and where the engine's own tasks live."""
        self._pools = {pool.name: pool for pool in pools}
        self._mouth, self._group = mouth, group

    def hold(self, why: str) -> None:
        """Launch nothing for this reason until it is `let_go`."""
        self._holds.add(why)

    def let_go(self, why: str) -> None:
        """That reason has passed."""
        self._holds.discard(why)
        self._turn_soon()

    def pulse(self) -> None:
        """The event loop turns.  To be called every few seconds: a long gap between two calls is a pause."""
        now = time.monotonic()
        if now - self._pulsed > PAUSE_S:
            log.warning("this process stood still for %.0f s; it launches nothing before the broker answers", now - self._pulsed)
            self.hold(_PAUSED)
            self.changed.set()
        self._pulsed = now

    @property
    def paused(self) -> bool:
        """Whether the channel has to be proved."""
        return _PAUSED in self._holds

    def resume(self) -> None:
        """The channel is proved."""
        self.let_go(_PAUSED)

    def recover(self, bundles: Sequence[OpenBundle], tombstones: set[bytes]) -> None:
        """Take up what the journal held: what waited waits again, what was launched counts as lost once."""
        self.core.tombstones |= tombstones
        for row in bundles:
            bundle, tasks = restored(row)
            self._admit(bundle, tasks)
        self._turn_soon()

    async def settle(self) -> None:
        """Wait until everything that has happened is written and handed to the outbox."""
        while self._flushing is not None or self._turning:
            if self._flushing is not None:
                await asyncio.wait({self._flushing})
            else:
                await asyncio.sleep(0)

    def close(self) -> None:
        """Start nothing any more."""
        for timer in (self._timer, self._announcer):
            if timer is not None:
                timer.cancel()

    # -- work comes -----------------------------------------------------------------------------------------------------

    async def take(self, dispatch: Dispatch, bundle_id: str, work: Work) -> int:
        """Take in a verified bundle: when this returns it is on disk.  How many of its tasks were new.

        :raises InvalidRequest: the indices are not the bundle's.
        """
        indices = range(len(work.tasks)) if dispatch.only is None else dispatch.only
        if any(not 0 <= index < len(work.tasks) for index in indices) or len(set(indices)) != len(indices):
            raise InvalidRequest("The indices of a dispatch are not those of its bundle.")
        received = now_ms()
        bundle = self.core.bundles.get(bundle_id) or Bundle(bundle_id, work, received, len(dispatch.bundle))
        known = self.core.tasks
        tasks = [Task(call.id, bundle, index) for index in indices if (call := work.tasks[index]).id not in known]
        forget = max(options.not_after for options in work.options) + REMEMBER_MS
        ids = b"".join([work.tasks[index].id for index in indices])
        write = Accept(bundle_id, dispatch.bundle, received, indices, ids, forget)
        arrival = _Arrival(write, tasks, asyncio.get_running_loop().create_future())
        self._arrivals.append(arrival)
        if tasks:
            self._admit(bundle, tasks)
        if work.signed_at < self.gone:
            self.core.disown(tasks, received)
        self._turn_soon()
        return await arrival.fresh

    def _admit(self, bundle: Bundle, tasks: list[Task]) -> None:
        missing = self.core.accept(bundle, tasks, self._functions.has, now_ms())
        for function in set(missing) - self._fetching:
            self._fetching.add(function)
            self._spawn(self._bring(function), f"function {function[:8]}")

    async def _bring(self, function: str) -> None:
        try:
            await self._functions.get(function)
        except FuncmqError as error:
            self.core.function_missing(function, error, now_ms())
        else:
            self.core.function_ready(function, now_ms())
        finally:
            self._fetching.discard(function)
        self._turn_soon()

    async def cancel(self, ids: list[bytes]) -> None:
        """End these tasks, wherever they are; what is not known is refused when it comes."""
        running, unknown = self.core.cancel(ids, now_ms())
        for pool in self._pools.values():
            if running:
                pool.cancel(running)
        self._turn_soon()
        if unknown:
            forget = now_ms() + 8 * 24 * 3600 * 1000
            ended = (await self._journal.commit(Buried(b"".join(unknown), forget)))[0]
            self.core.tombstones.difference_update(ended)

    # -- pools answer (pool.Owner) --------------------------------------------------------------------------------------

    def answered(self, pool: str, number: int, payload: bytes) -> None:
        """A report has come."""
        try:
            report = codec.decode(Report, payload)
        except FuncmqError as broken:
            self.lost(pool, number, f"Its worker's report cannot be read: {broken.message}")
            return
        if any(isinstance(done.value, Spill) for done in report.members):
            self._spawn(self._read_back(pool, number, report), f"read back {number}")
        else:
            self._land(pool, number, report)

    def lost(self, pool: str, number: int, reason: str) -> None:
        """A packet is lost."""
        log.warning("a packet of the pool %s is lost: %s", pool, reason, extra={"action": "packet_lost"})
        self._tidy(pool, number)
        self.core.lost(number, reason, now_ms())
        self._turn_soon()

    def workers_changed(self, pool: str) -> None:
        """Workers have come or gone."""
        state, real = self.core.pools[pool], self._pools[pool]
        state.workers, state.python, state.broken = real.workers, minor(real.versions.get("python", "")), real.broken
        self.changed.set()
        self._turn_soon()

    def demand(self, pool: str) -> int:
        """Open tasks of a pool that could run now."""
        state = self.core.pools[pool]
        return len(state.queue) + sum(len(launch.tasks) for launch in state.flights.values())

    def _tidy(self, pool: str, number: int) -> None:
        """A packet is about to land: its tasks need no cancel any more, and their arguments no files."""
        launch = self.core.pools[pool].flights.get(number)
        if launch is not None:
            self._pools[pool].ended([task.id for task in launch.tasks])
            if large := [values.arguments(self._shared, task) for task in launch.tasks if values.is_large(task)]:
                self._spawn(asyncio.to_thread(values.remove, large), f"tidy {number}")

    async def _read_back(self, pool: str, number: int, report: Report) -> None:
        members = await asyncio.to_thread(lambda: [values.bring_back(self._shared, done) for done in report.members])
        self._land(pool, number, Report(report.v, report.host, report.pid, members))

    def _land(self, pool: str, number: int, report: Report) -> None:
        self._tidy(pool, number)
        self.core.report(number, report.host, report.members, now_ms())
        self._turn_soon()

    # -- a turn ---------------------------------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        now = now_ms()
        self.pulse()
        self.core.tick(now)
        if not self._holds:
            for name, pool in self._pools.items():
                self._launches += [(pool, launch) for launch in self.core.launch(self.core.pools[name], self._trusted.trusts, now)]
                pool.wake()
        self._todo.add(self.core.take_todo())
        if self._to_write and self._flushing is None:
            self._flushing = self._spawn(self._flush(), "flush")
        self._set_timer(now)
        if self.core.weight > WEIGHT:
            self.roomy.clear()
        elif self.core.weight < WEIGHT * RESUME:
            self.roomy.set()
        if self.core.launched:
            self.landed.clear()
        else:
            self.landed.set()

    @property
    def _to_write(self) -> bool:
        return bool(self._todo or self._launches or self._arrivals)

    def _set_timer(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due := self.core.next_due():
            # an hour at most: the clock of the system may be set meanwhile
            delay = min(3600.0, max(0.001, (due - now) / 1000))
            self._timer = asyncio.get_running_loop().call_later(delay, self._turn_soon)

    def _announce(self) -> None:
        self._announcer = None
        now = now_ms()
        groups: dict[tuple[str, str], list[bytes]] = {}
        running = self.core.running(now - int(ANNOUNCE_S * 1000))
        for launch in running:
            if launch.number not in self._announced:
                host = self._pools[launch.pool].host
                for task in launch.tasks:
                    groups.setdefault((task.bundle.work.group, host), []).append(task.id)
        self._announced = {launch.number for launch in running}
        endpoint = self._signer.endpoint
        for (group, host), ids in groups.items():
            self._mouth.tell("running/1", results_key(endpoint, group), codec.encode(Running(Running.VERSION, endpoint, ids, now, host)))
        if self.core.launched:
            self._announcer = asyncio.get_running_loop().call_later(ANNOUNCE_S, self._announce)

    # -- the journal ----------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        try:
            while self._to_write:
                arrivals, self._arrivals = self._arrivals, []
                todo, self._todo = self._todo.due()
                launches, self._launches = self._launches, []
                formed = self._signer.form(todo.ended, now_ms())
                closed = [bundle for bundle in todo.closed if bundle.id not in self.core.bundles]
                writes = changes([arrival.write for arrival in arrivals], todo.again, [launch for _, launch in launches], formed, closed)
                answers = await self._commit_at_last(writes)
                for arrival, fresh in zip(arrivals, answers, strict=False):
                    self._todo.drop(confirm(self.core, arrival.tasks, fresh))
                    if not arrival.fresh.done():
                        arrival.fresh.set_result(len(fresh))
                self._mouth.results(formed)
                for pool, launch in launches:
                    self._hand_over(pool, launch)
        finally:
            self._flushing = None

    def _hand_over(self, pool: Pool, launch: Launch) -> None:
        if not launch.tasks:
            self.core.lost(launch.number, "", now_ms())
            self._turn_soon()  # its place is free for those who wait
        elif any(values.is_large(task) for task in launch.tasks):
            self._spawn(self._spill(pool, launch), f"spill {launch.number}")
        else:
            self._submit(pool, launch, [values.member(task) for task in launch.tasks])

    async def _spill(self, pool: Pool, launch: Launch) -> None:
        try:
            members = await asyncio.to_thread(values.spilled_members, self._shared, launch.tasks)
        except OSError as full:
            log.error("arguments cannot be written to %s: %s", self._shared, full, extra={"action": "spill_failed"})
            await asyncio.sleep(DISK_WAIT_S)
            self.lost(pool.name, launch.number, f"Its arguments could not be written to the shared folder: {full.strerror}.")
        else:
            self._submit(pool, launch, members)

    def _submit(self, pool: Pool, launch: Launch, members: list[Member]) -> None:
        packet = Packet(Packet.VERSION, members, str(self._shared), pool.cancels_address, str(pool.certificates), MAX_INLINE)
        pool.submit(launch.number, codec.encode(packet))
        if self._announcer is None:
            self._announcer = asyncio.get_running_loop().call_later(ANNOUNCE_S, self._announce)

    async def _commit_at_last(self, changes: list[Write]) -> list[Any]:
        """What has happened has happened: a full disk delays it, and is told, but loses nothing."""
        while True:
            try:
                return await self._journal.commit(*changes)
            except StorageFull as full:
                log.error("%s", full.message, extra={"action": "journal_full"})
                await asyncio.sleep(DISK_WAIT_S)

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        assert self._group is not None, "an Engine is attached before it is used"
        return self._group.create_task(work, name=name)
