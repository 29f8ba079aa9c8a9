"""The daemon: holds the lease and the link, lets work in, and sees that it ends.

Order of the start: journal, leftovers of the last run, lease, pools, link; nothing is launched before the lease is held. Order of the stop:
take no more work, launch no more, wait for what runs (the grace), write and send what has ended, leave the broker, end the pools, give the
lease back if nothing is open, close the journal.

Exit status: 0 after an order or a signal, 76 when a later lease exists (fenced).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path

from funcmq.broker import codec, messages
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotFound, StorageFull, Unreachable, VersionMismatch
from funcmq.broker.http import Api
from funcmq.broker.ids import sha256
from funcmq.broker.lifeline import parent_gone
from funcmq.broker.link import Link
from funcmq.broker.messages import Ask, Cancel, Dispatch, Order, Signed, Stored
from funcmq.broker.signing import PrivateKey
from funcmq.broker.topology import RESULTS, STATUS, control_queue, tasks_queue
from funcmq.broker.transport import Ways
from funcmq.endpoint import leftovers, orders, values, writes
from funcmq.endpoint.clock import now_ms
from funcmq.endpoint.config import EndpointConfig
from funcmq.endpoint.core import Core
from funcmq.endpoint.engine import Engine, Mouth
from funcmq.endpoint.executor import Place, workers_per_node
from funcmq.endpoint.functions import Functions, write_whole
from funcmq.endpoint.heartbeat import Condition, heartbeat
from funcmq.endpoint.journal import Journal, open_journal
from funcmq.endpoint.lease import Fenced, Lease
from funcmq.endpoint.outbox import Outbox, Sender
from funcmq.endpoint.pool import Pool
from funcmq.endpoint.results import Formed, Signer
from funcmq.endpoint.trust import TrustedKeys, verify
from funcmq.endpoint.voice import Voice

log = logging.getLogger("funcmq.daemon")

FENCED = 76
BEAT_S = 10.0
PULSE_S = 2.0
PREFETCH = 16
HOLD_S = 20.0
"""How long acks are held back while there is no room for more work; after that the consumer is given up."""
MEET_S = 10.0
"""How long the start waits for the interpreters of pools to say what they are; who is slower is met later."""
LOOK_S = 1.0
"""Between looks at the disk: it bounds by how much it is overshot."""
SWEEP_S = 60.0
LAST_WORDS_S = 5.0
"""How long a stopping daemon waits for the broker and the front door to have its last results."""


class Daemon:
    """One run of an endpoint: `Daemon(config).run()`.  Every part is made in `run` and its helpers, in the order of the module's text."""

    _journal: Journal
    _signer: Signer
    _lease: Lease
    _engine: Engine
    _ways: Ways
    _link: Link
    _voice: Voice
    _sender: Sender
    _pools: list[Pool]

    def __init__(self, config: EndpointConfig, *, takeover: bool = False) -> None:
        self.config = config
        self._takeover = takeover
        self._trusted = TrustedKeys(config.trusted_keys)
        self._outbox = Outbox()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._draining = False

    # -- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until an order, a signal or a fence; the exit status.

        :raises FuncmqError: it could not start; the reason says what to do.
        """
        os.umask(0o077)
        config = self.config
        config.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        key, token = PrivateKey.load(config.key), config.read_token()
        self._journal = open_journal(config.journal_dir)
        self._signer = Signer(config.id, self._journal.identity.id, key)
        try:
            _say_state(config, "starting")
            await asyncio.to_thread(self._tidy)
            async with Api(config.url, token) as front:
                return await self._with_lease(front)
        finally:
            _say_state(config, "ended")
            self._journal.close()

    def _tidy(self) -> None:
        if ended := leftovers.end(self._journal.identity.id):
            log.warning("ended %d processes that the last run left behind", ended, extra={"action": "leftovers_ended"})
        values.clear(self.config.run_dir)

    async def _with_lease(self, front: Api) -> int:
        self._ways = Ways.by(front)
        functions = Functions(self.config.run_dir / "functions", lambda function: front.fetch_raw(f"/functions/{function}"))
        pools = {pool.name: {"workers": float(workers_per_node(pool))} for pool in self.config.pools}
        core = Core(pools, socket.gethostname(), functions.needs)
        self._engine = Engine(core, self._journal, self._signer, self._trusted, functions, self.config.run_dir)
        identity, endpoint = self._journal.identity, self.config.id
        self._lease = Lease(front, endpoint, identity, self._trusted, self._engine.cancel, takeover=self._takeover)
        status = 0
        with self._signals():
            await self._until(self._lease.obtain(lambda why: _say_state(self.config, "starting", why)))
            try:
                if self._lease.epoch:
                    await self._with_parts()
            except* Fenced:
                log.error("a later lease of this endpoint exists: this daemon ends", extra={"action": "fenced"})
                status = FENCED
        if self._lease.epoch and status == 0:
            await self._give_back()
        return status

    async def _with_parts(self) -> None:
        place = Place(self.config.run_dir, self.config.address, self._journal.identity.id)
        async with contextlib.AsyncExitStack() as stack:
            self._pools = [await stack.enter_async_context(Pool(pool, place, self._engine)) for pool in self.config.pools]
            link = Link(f"endpoint {self.config.name}", self._lease.broker, ways=self._ways)
            self._link = await stack.enter_async_context(link)
            bundles = self._engine.core.bundles
            self._voice = Voice(self._link, self.config.id, self._journal.identity.id, lambda bundle: bundle in bundles)
            self._sender = Sender(self._outbox, self._fetch_result, self._publish_result)
            async with asyncio.TaskGroup() as group:
                self._engine.attach(self._pools, Mouth(self._send_results, self._voice.tell), group)
                services = [self._link.ended, self._sender.run, self._voice.run, self._pulse, self._beat, self._sweep, self._lifeline]
                services += [self._lease.watch_trusted, *(pool.run for pool in self._pools)]
                work = [group.create_task(service(), name=service.__qualname__) for service in services]
                await self._serve()
                for task in work:
                    task.cancel()
                self._engine.close()

    async def _serve(self) -> None:
        with contextlib.suppress(TimeoutError):  # which pool a task takes depends on their Pythons
            async with asyncio.timeout(MEET_S):
                await asyncio.gather(*(pool.asked.wait() for pool in self._pools))
        held = await self._journal.held()
        for bundle in held.outbox:
            self._outbox.add(bundle, None)
        self._engine.gone = self._lease.gone
        self._engine.recover(held.bundles, held.tombstones)
        await self._engine.cancel(self._lease.cancels)
        self._sender.send(held.outbox)
        self._engine.let_go("starting")
        control = self._link.consume(control_queue(self.config.id), self._on_control, prefetch=PREFETCH)
        try:
            await self._take_work()
            await self._wind_down()
        finally:
            await control.cancel()

    async def _take_work(self) -> None:
        """Consume while there is room and nobody says stop.

        A short lack of room only holds acks back (`_on_bundle`).  A longer one gives the consumer up: who leaves messages unacked for long,
        a broker takes for dead, and counts them as delivered in vain.
        """
        said = False
        while not self._stopping.is_set():
            if self._may_take() and self._engine.roomy.is_set():
                consumer = self._link.consume(tasks_queue(self.config.id), self._on_bundle, prefetch=PREFETCH)
                if not said:
                    await self._until(consumer.ready.wait())
                    _say_state(self.config, "connected")
                    said = True
                full_since = 0.0
                while not self._stopping.is_set() and self._may_take() and not 0 < full_since < time.monotonic() - HOLD_S:
                    await self._until(asyncio.sleep(LOOK_S))
                    full_since = 0.0 if self._engine.roomy.is_set() else full_since or time.monotonic()
                await consumer.cancel()
            else:
                await self._until(asyncio.sleep(LOOK_S))

    def _may_take(self) -> bool:
        return not self._draining and self._journal.has_room()

    async def _until(self, wait: Awaitable[object]) -> None:
        """Wait for this, or for the order to stop."""
        wanted, stopped = asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({wanted, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                wanted.result()
        finally:
            for future in (wanted, stopped):
                future.cancel()

    async def _wind_down(self) -> None:
        core = self._engine.core
        log.info("stopping: %d tasks run, %d wait", core.launched, len(core.tasks) - core.launched, extra={"action": "stopping"})
        _say_state(self.config, "stopping")
        self._engine.hold("stopping")
        self._engine.changed.set()
        landed, now = asyncio.ensure_future(self._engine.landed.wait()), asyncio.ensure_future(self._at_once.wait())
        if core.launched:
            await asyncio.wait({landed, now}, timeout=self.config.stop_grace, return_when=asyncio.FIRST_COMPLETED)
        for wait in (landed, now):
            wait.cancel()
        await self._engine.settle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0 if self._at_once.is_set() else LAST_WORDS_S):
                await self._sender.all_confirmed()
                await self._outbox.all_stored()

    async def _give_back(self) -> None:
        tasks, unstored = len(self._engine.core.tasks), len(self._outbox)
        if tasks or unstored:
            log.warning(
                "%d tasks are open and %d result bundles not stored: start here again, or with --takeover elsewhere",
                tasks,
                unstored,
                extra={"action": "stopped_with_work"},
            )
        else:
            await self._lease.give_back()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGUSR1: self.drain}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Stop in order; called again: at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    def drain(self) -> None:
        """Take no more work; run what is here."""
        self._draining = True
        self._engine.changed.set()

    async def _lifeline(self) -> None:
        await parent_gone()
        log.warning("the process that this daemon belongs to is gone", extra={"action": "parent_gone"})
        self._at_once.set()
        self._stopping.set()

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
            self._voice.receive(work.group, bundle_id, always=not fresh)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HOLD_S):
                    await self._engine.roomy.wait()
            await delivery.ack()

    async def _refuse(self, delivery: Delivery, bundle: str, error: FuncmqError) -> None:
        log.warning("the bundle %s is refused: %s", bundle[:16] or "?", error.message, extra={"action": "refused"})
        if bundle:
            word = self._signer.refuse(bundle, error.code, error.message, now_ms())
            self._voice.tell("refused/1", self._signer.refused_key, word)
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
            case Order(verb="stop"):
                self.stop()
            case Order(verb="drain"):
                self.drain()
            case Ask(epoch=epoch) if epoch == self._lease.epoch:
                await self._obey(message)
            case Order(verb="resend"):
                self._sender.send(self._outbox.asked(time.monotonic()))
        await delivery.ack()

    async def _obey(self, ask: Ask) -> None:
        """Answer, then do it: the owner hears who it was, also if the answer is the last word."""
        told = await asyncio.to_thread(orders.tell, ask, self.config.id, self.config.run_dir)
        with contextlib.suppress(Unreachable, Busy, NotFound):
            await self._link.publish(STATUS, self.config.id, "told/1", codec.encode(told), mandatory=False, timeout=BEAT_S)
        log.info("the owner says: %s", ask.verb, extra={"action": f"ask_{ask.verb}"})
        if ask.verb == "stop":
            self.stop()
        elif ask.verb == "drain":
            self.drain()

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
        if found is not None:
            path = self.config.run_dir / "results" / f"{bundle}.refused"
            await asyncio.to_thread(write_whole, path, found[1])
            log.error("the front door refused a result bundle (%s); it is kept as %s", reason, path, extra={"action": "result_refused"})

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

    async def _pulse(self) -> None:
        """Show that the loop turns; a gap says that it stood still."""
        while True:
            self._engine.pulse()
            await asyncio.sleep(PULSE_S)

    async def _beat(self) -> None:
        while True:
            self._engine.changed.clear()
            proves = self._engine.paused  # a confirm proves the channel only if it was asked for after the pause
            condition = Condition(self._lease.epoch, len(self._outbox), self._reason())
            beat = heartbeat(self.config.id, self._journal.identity.id, self._engine.core, self._pools, condition)
            try:
                await self._link.publish(STATUS, self.config.id, "heartbeat/1", codec.encode(beat), mandatory=False, timeout=BEAT_S)
            except (Unreachable, Busy, NotFound) as lost:
                log.debug("no heartbeat: %s", lost.message)
            else:
                if proves:
                    self._engine.resume()
            self._sender.send(self._outbox.overdue(time.monotonic()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._engine.changed.wait()

    def _reason(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if self._draining:
            return "draining: takes no more work"
        return "" if self._journal.has_room() else "the disk of its journal is full"

    async def _sweep(self) -> None:
        """Forget ids whose time has passed, a slice at a time."""
        last = b""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(StorageFull):
                last = (await self._journal.commit(writes.Forget(last, now_ms())))[0]


def state_file(config: EndpointConfig) -> Path:
    """What a daemon says of itself to `funcmq endpoint start` and `status` on its host."""
    return config.journal_dir / "state.json"


def _say_state(config: EndpointConfig, state: str, reason: str = "") -> None:
    said = {"pid": os.getpid(), "state": state, "reason": reason, "host": socket.gethostname(), "at": now_ms()}
    with contextlib.suppress(OSError):
        write_whole(state_file(config), json.dumps(said).encode())
