"""The daemon: holds the lease and the link, lets work in, and sees that it ends.

Order of the start: journal, lease, pools, link; nothing is launched before the lease is held.  Order of the stop: take no more work, launch no more, wait for what runs (the
grace), write and send what has ended, end the pools, leave the broker, give the lease back if nothing is open, close the journal.

Exit status: 0 after an order or a signal, 76 when a later lease exists (fenced).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Awaitable, Iterator

import funcmq
from funcmq.broker import api, codec, messages
from funcmq.broker.errors import Busy, Conflict, FuncmqError, InvalidRequest, NotFound, StorageFull, Unreachable, VersionMismatch
from funcmq.broker.http import Api
from funcmq.broker.ids import sha256
from funcmq.broker.lifeline import parent_gone
from funcmq.broker.link import Broker, Consumer, Delivery, Link
from funcmq.broker.messages import Cancel, Dispatch, Heartbeat, Order, PoolStatus, Receipt, Signed, Stored
from funcmq.broker.signing import PrivateKey
from funcmq.broker.topology import RESULTS, STATUS, control_queue, results_key, tasks_queue
from funcmq.endpoint import leftovers, values, writes
from funcmq.endpoint.config import EndpointConfig
from funcmq.endpoint.core import Core
from funcmq.endpoint.engine import Engine, Mouth, now_ms
from funcmq.endpoint.executor import Place, workers_per_node
from funcmq.endpoint.functions import Functions, write_whole
from funcmq.endpoint.journal import Journal, open_journal
from funcmq.endpoint.outbox import Outbox, Sender
from funcmq.endpoint.pool import Pool
from funcmq.endpoint.results import Formed, Signer
from funcmq.endpoint.trust import TrustedKeys, verify

log = logging.getLogger("funcmq.daemon")

FENCED = 76
BEAT_S = 10.0
PULSE_S = 2.0
RECEIPT_S = 0.05
"""Results that come sooner make a receipt needless."""
PREFETCH = 32
WEIGHT = 40 * 1024 * 1024
"""Memory that open work may take before no more is taken from the broker."""
RESUME = 0.75
SWEEP_S = 60.0
LAST_WORDS_S = 5.0
"""How long a stopping daemon waits for the broker and the front door to have its last results."""
RETRY_S = 1.0
LONGEST_RETRY_S = 15.0


class Fenced(Exception):
    """A later lease of this endpoint exists.  Not a FuncmqError: the link must end, not try again."""


class Daemon:
    """One run of an endpoint.

    :param takeover: treat the journal that holds the lease as gone.
    :param entry: the worker function, for tests with one of their own.
    """

    def __init__(self, config: EndpointConfig, *, takeover: bool = False, entry: str = "") -> None:
        self.config = config
        self._takeover, self._entry = takeover, entry
        self._trusted = TrustedKeys(config.trusted_keys)
        self._outbox = Outbox()
        self._lease: api.Lease | None = None
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._draining = False
        self._said: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue(1000)
        self._receipts: dict[str, dict[str, bool]] = {}
        self._receipts_timer: asyncio.TimerHandle | None = None
        self._fresh_lease = True

    # -- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until an order, a signal or a fence; the exit status.

        :raises FuncmqError: it could not start; the reason says what to do.
        """
        os.umask(0o077)
        self.config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        journal = open_journal(self.config.journal_dir)
        try:
            return await self._with_journal(journal)
        finally:
            self._say_state("ended")
            journal.close()

    async def _with_journal(self, journal: Journal) -> int:
        self._journal = journal
        key = PrivateKey.load(self.config.key)
        token = self.config.token.read_text(encoding="utf-8").strip()
        self._signer = Signer(self.config.id, journal.identity.id, key)
        self._say_state("starting")
        ended = await asyncio.to_thread(self._tidy)
        if ended:
            log.warning("ended %d processes that the last run left behind", ended, extra={"action": "leftovers_ended"})
        status = 0
        async with Api(self.config.url, token) as front:
            self._api = front
            with self._signals():
                try:
                    await self._first_lease()
                    await self._hold_lease()
                except* Fenced:
                    log.error("a later lease of this endpoint exists: this daemon ends", extra={"action": "fenced"})
                    status = FENCED
        return status

    def _tidy(self) -> int:
        ended = leftovers.end(self._journal.identity.id)
        values.clear(self.config.run_dir)
        return ended

    async def _hold_lease(self) -> None:
        functions = Functions(self.config.run_dir / "functions", lambda function: self._api.fetch_raw(f"/functions/{function}"))
        pools = {pool.name: {"workers": float(workers_per_node(pool))} for pool in self.config.pools}
        core = Core(pools, socket.gethostname())
        self._engine = engine = Engine(core, self._journal, self._signer, self._trusted, functions, self.config.run_dir)
        place = Place(self.config.run_dir, self.config.address, self._journal.identity.id)
        entry = (self._entry,) if self._entry else ()
        async with contextlib.AsyncExitStack() as stack:
            self._pools = [await stack.enter_async_context(Pool(pool, place, engine, *entry)) for pool in self.config.pools]
            self._link = link = await stack.enter_async_context(Link(f"endpoint {self.config.name}", self._broker))
            self._sender = Sender(self._outbox, self._fetch_result, self._publish_result)
            async with asyncio.TaskGroup() as group:
                engine.attach(self._pools, Mouth(self._send_results, self._tell), group)
                work = [group.create_task(pool.run(), name=f"pool {pool.name}") for pool in self._pools]
                work.append(group.create_task(self._fence(), name="fence"))
                for service in (self._sender.run, self._pulse, self._beat, self._speak, self._sweep, self._lifeline):
                    work.append(group.create_task(service(), name=service.__name__))
                await self._serve(link)
                for task in work:
                    task.cancel()
                engine.close()
        await self._give_back()

    async def _serve(self, link: Link) -> None:
        held = await self._journal.held()
        for bundle in held.outbox:
            self._outbox.add(bundle, None)
        await self._engine.recover(held.bundles, held.tombstones)
        assert self._lease is not None
        await self._engine.cancel([bytes.fromhex(task) for task in self._lease.cancels])
        self._sender.send(held.outbox)
        self._engine.let_go("starting")
        control = link.consume(control_queue(self.config.id), self._on_control, prefetch=PREFETCH)
        try:
            await self._take_work(link)
            await self._wind_down()
        finally:
            await control.cancel()

    async def _take_work(self, link: Link) -> None:
        """Consume while there is room and nobody says stop.  A consumer is given up rather than left waiting: what is unacked for long, a broker takes for dead."""
        told = False
        while not self._stopping.is_set():
            if self._may_take(RESUME):
                consumer = link.consume(tasks_queue(self.config.id), self._on_bundle, prefetch=PREFETCH)
                if not told:
                    await self._until(consumer.ready.wait())
                    self._say_state("connected")
                    told = True
                while not self._stopping.is_set() and self._may_take(1.0):
                    await self._until(asyncio.sleep(1.0))  # weight and disk change by what happens here; a look a second bounds the overshoot
                await consumer.cancel()
            else:
                await self._until(asyncio.sleep(1.0))

    def _may_take(self, part: float) -> bool:
        return not self._draining and self._engine.core.weight < WEIGHT * part and self._journal.has_room()

    async def _until(self, wait: Awaitable[object]) -> None:
        """Wait for this, or for the order to stop."""
        first, second = asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
            second.cancel()

    async def _wind_down(self) -> None:
        log.info("stopping: %d tasks run, %d wait", self._engine.core.launched, len(self._engine.core.tasks) - self._engine.core.launched)
        self._say_state("stopping")
        self._engine.hold("stopping")
        landed, now = asyncio.ensure_future(self._engine.landed.wait()), asyncio.ensure_future(self._at_once.wait())
        if self._engine.core.launched:
            await asyncio.wait({landed, now}, timeout=self.config.stop_grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in (landed, now):
            wait.cancel()
        await self._engine.settle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._at_once.is_set() else LAST_WORDS_S):
                await self._sender.all_confirmed()
                while len(self._outbox):
                    await asyncio.sleep(0.05)  # `stored` comes as a message; a stop may wait for it, but not on it

    async def _give_back(self) -> None:
        if not self._engine.core.idle or len(self._outbox):
            log.warning(
                "%d tasks are open and %d result bundles not stored: start here again, or with --takeover elsewhere",
                len(self._engine.core.tasks), len(self._outbox), extra={"action": "stopped_with_work"},
            )
            return
        with contextlib.suppress(FuncmqError):
            await self._api.tell("DELETE", f"/endpoints/{self.config.id}/lease")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, self._obey, "drain")
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Stop in order; called again: at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    async def _lifeline(self) -> None:
        await parent_gone()
        log.warning("the process this daemon belongs to is gone", extra={"action": "parent_gone"})
        self._at_once.set()
        self._stopping.set()

    # -- lease ----------------------------------------------------------------------------------------------------------

    async def _first_lease(self) -> None:
        """Ask for the next epoch, however long the front door is away; what it refuses is final."""
        wait = RETRY_S
        while not self._stopping.is_set():
            try:
                self._lease = await self._ask_lease(None)
            except (Unreachable, Busy) as away:
                log.warning("no lease yet: %s", away.message, extra={"action": "lease_waits"})
                self._say_state("starting", away.message)
                await self._until(asyncio.sleep(wait))
                wait = min(wait * 2, LONGEST_RETRY_S)
            else:
                log.info("lease %d is held", self._lease.epoch, extra={"action": "lease"})
                return
        raise Unreachable("Stopped before the front door answered.")

    async def _ask_lease(self, epoch: int | None) -> api.Lease:
        identity = self._journal.identity
        request = api.LeaseRequest(
            journal=identity.id,
            birth=identity.birth,
            epoch=epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            release=funcmq.__version__,
            trusted=self._trusted.ids(),
            takeover=self._takeover and epoch is None,
        )
        return await self._api.call("POST", f"/endpoints/{self.config.id}/lease", request, api.Lease)

    async def _broker(self) -> Broker:
        """For the link: the first time the lease just got, then a renewal of it."""
        lease, self._fresh_lease = (self._lease, False) if self._fresh_lease else (None, False)
        if lease is None:
            assert self._lease is not None
            try:
                lease = self._lease = await self._ask_lease(self._lease.epoch)
            except Conflict as later:
                raise Fenced from later
            await self._engine.cancel([bytes.fromhex(task) for task in lease.cancels])
        return Broker(tuple(lease.brokers), lease.user, lease.password)

    async def _fence(self) -> None:
        await self._link.ended()

    # -- work and control -----------------------------------------------------------------------------------------------

    async def _on_bundle(self, delivery: Delivery) -> None:
        bundle_id = ""
        try:
            dispatch = messages.unpack(delivery.kind, delivery.body)
            if not isinstance(dispatch, Dispatch):
                raise InvalidRequest("This is no bundle.")
            signed = codec.decode(Signed, dispatch.bundle)
            bundle_id = sha256(signed.body)
            work = verify(signed, self._trusted, self.config.id, now_ms())
            fresh = await self._engine.take(dispatch, bundle_id, work)
        except FuncmqError as refused:
            await self._refuse(delivery, bundle_id, refused)
        else:
            await delivery.ack()
            self._receive(work.group, bundle_id, always=not fresh)

    async def _refuse(self, delivery: Delivery, bundle: str, error: FuncmqError) -> None:
        log.warning("the bundle %s is refused: %s", bundle[:16] or "?", error.message, extra={"action": "refused"})
        if bundle:
            word = self._signer.refuse(bundle, error.code, error.message, now_ms())
            with contextlib.suppress(Unreachable, Busy, NotFound):
                await self._link.publish(RESULTS, self._signer.refused_key, "refused/1", word)
        await delivery.reject(requeue=False)

    async def _on_control(self, delivery: Delivery) -> None:
        try:
            message = messages.unpack(delivery.kind, delivery.body)
        except (InvalidRequest, VersionMismatch) as unknown:
            log.error("an order is not understood: %s", unknown.message, extra={"action": "bad_order"})
            await delivery.reject()
            return
        match message:
            case Cancel(tasks=tasks):
                await self._engine.cancel(tasks)
            case Stored(bundles=bundles):
                await self._on_stored(bundles)
            case Order(verb=verb):
                self._obey(verb)
        await delivery.ack()

    async def _on_stored(self, bundles: list[tuple[str, str]]) -> None:
        now = time.monotonic()
        for bundle, reason in bundles:
            if reason:
                await self._keep(bundle, reason)
            self._outbox.stored(bundle, now)
        await self._journal.commit(writes.Stored([bundle for bundle, _ in bundles]))

    async def _keep(self, bundle: str, reason: str) -> None:
        """The store will not have it: nothing computed is thrown away."""
        found = await self._fetch_result(bundle)
        if found is None:
            return
        path = self.config.run_dir / "results" / f"{bundle}.refused"
        await asyncio.to_thread(write_whole, path, found[1])
        log.error("the front door refused a result bundle (%s); it is kept as %s", reason, path, extra={"action": "result_refused"})

    def _obey(self, verb: str) -> None:
        log.info("order: %s", verb, extra={"action": "order"})
        match verb:
            case "stop":
                self.stop()
            case "drain":
                self._draining = True
                if self._lease is not None:
                    self._engine.changed.set()
            case "resend":
                self._sender.send(self._outbox.all_again())

    # -- what goes out --------------------------------------------------------------------------------------------------

    def _send_results(self, formed: list[Formed]) -> None:
        for piece in formed:
            self._outbox.add(piece.id, (piece.key, piece.data))
        self._sender.send([piece.id for piece in formed])

    async def _publish_result(self, key: str, data: bytes) -> None:
        await self._link.publish(RESULTS, key, "results/1", data)

    async def _fetch_result(self, bundle: str) -> tuple[str, bytes] | None:
        found: tuple[str, bytes] | None = (await self._journal.commit(writes.Fetch(bundle)))[0]
        return found

    def _tell(self, kind: str, key: str, body: bytes) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._said.put_nowait((kind, key, body))

    async def _speak(self) -> None:
        """Messages that may be lost, one after another."""
        while True:
            kind, key, body = await self._said.get()
            with contextlib.suppress(Unreachable, Busy, NotFound):
                await self._link.publish(RESULTS, key, kind, body)

    def _receive(self, group: str, bundle: str, *, always: bool) -> None:
        self._receipts.setdefault(group, {})[bundle] = always
        if self._receipts_timer is None:
            self._receipts_timer = asyncio.get_running_loop().call_later(RECEIPT_S, self._send_receipts)

    def _send_receipts(self) -> None:
        self._receipts_timer = None
        receipts, self._receipts = self._receipts, {}
        for group, bundles in receipts.items():
            open_ = [bundle for bundle, always in bundles.items() if always or bundle in self._engine.core.bundles]
            if open_:
                receipt = Receipt(Receipt.VERSION, self.config.id, self._journal.identity.id, open_, now_ms())
                self._tell("receipt/1", results_key(self.config.id, group), codec.encode(receipt))

    # -- heartbeats -----------------------------------------------------------------------------------------------------

    async def _pulse(self) -> None:
        """Show that the loop turns; a gap says that it stood still."""
        while True:
            self._engine.pulse()
            await asyncio.sleep(PULSE_S)

    async def _beat(self) -> None:
        while True:
            self._engine.changed.clear()
            proves = self._engine.paused  # a confirm proves the channel only if it was asked for after the pause
            beat = codec.encode(self._heartbeat())
            try:
                await self._link.publish(STATUS, self.config.id, "heartbeat/1", beat, mandatory=False, timeout=BEAT_S)
            except (Unreachable, Busy, NotFound) as lost:
                log.debug("no heartbeat: %s", lost.message)
            else:
                if proves:
                    self._engine.resume()
            self._sender.send(self._outbox.overdue(time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._engine.changed.wait()

    def _heartbeat(self) -> Heartbeat:
        assert self._lease is not None
        core = self._engine.core
        queued: dict[str, int] = {}
        for state in core.pools.values():
            for user, count in state.queue.waiting.items():
                queued[user] = queued.get(user, 0) + count
        return Heartbeat(
            Heartbeat.VERSION, self.config.id, self._lease.epoch, self._journal.identity.id, now_ms(), socket.gethostname(), os.getpid(),
            funcmq.__version__, [self._pool_status(pool) for pool in self._pools], queued, core.launched, len(self._outbox), self._reason(),
        )

    def _pool_status(self, pool: Pool) -> PoolStatus:
        busy = min(pool.workers, len(self._engine.core.pools[pool.name].flights))
        versions = {"python": platform.python_version(), "funcmq": funcmq.__version__}
        return PoolStatus(pool.name, pool.config.provider, pool.workers, busy, pool.capacity, pool.blocks, versions, pool.reason)

    def _reason(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if self._draining:
            return "draining: takes no more work"
        if not self._journal.has_room():
            return "the journal's disk is full"
        return ""

    async def _sweep(self) -> None:
        """Forget ids whose time has passed, a slice at a time."""
        last = b""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(StorageFull):
                last = (await self._journal.commit(writes.Forget(last, now_ms())))[0]

    def _say_state(self, state: str, reason: str = "") -> None:
        """For `funcmq endpoint start` and `status` on this host."""
        said = {"pid": os.getpid(), "state": state, "reason": reason, "host": socket.gethostname(), "at": now_ms()}
        with contextlib.suppress(OSError):
            write_whole(self.config.journal_dir / "state.json", json.dumps(said).encode())
