"""A pool: one executor of Parsl, watched, and started again when its interchange dies.

Nothing here blocks the event loop: whatever may (start, scaling, scheduler commands, shutdown) runs in one thread that lives as long as the
pool.  The interchange asks the kernel to end it with the thread that started it, and that is this one.

What a pool promises: every packet submitted is followed by exactly one `answered` or `lost`, unless the pool is stopped first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from funcmq.broker.errors import EnvironmentMismatch, InvalidRequest
from funcmq.broker.lifeline import gone
from funcmq.endpoint import environment, frames, leftovers
from funcmq.endpoint.blocks import Blocks, per_block
from funcmq.endpoint.cancels import Cancels
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import ENTRY, Executor, Place, make, prepare, without_secrets

log = logging.getLogger("funcmq.pool")

T = TypeVar("T")

TURN = 256
"""Messages read before the event loop has its turn."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
HEALTHY_S = 60.0
"""An interchange that has lived this long was not at fault from the start."""


class Owner(Protocol):
    """Who submits to a pool.  Called on the event loop; must not wait."""

    def answered(self, pool: str, number: int, payload: bytes) -> None:
        """The report to this packet."""

    def lost(self, pool: str, number: int, reason: str) -> None:
        """This packet will not be answered."""

    def workers_changed(self, pool: str) -> None:
        """Workers have come or gone."""

    def demand(self, pool: str) -> int:
        """Open tasks meant for this pool."""


class Pool:
    """See the module.  `async with` starts and stops it; `run` is its supervision, for a TaskGroup.

    :param entry: the worker function, bytes to bytes, by its full name.
    """

    def __init__(self, config: PoolConfig, place: Place, owner: Owner, entry: str = ENTRY) -> None:
        self.config, self.name = config, config.name
        self.managers: list[frames.Manager] = []
        self.interchange = 0
        """Pid of the interchange; 0 while there is none."""
        self.certificates = Path()
        self.versions: dict[str, str] = {}
        """Of its interpreter and what workers need, by name; empty before it was asked."""
        self.broken = False
        """Whether its interpreter cannot work for this daemon."""
        self.asked = asyncio.Event()
        """Set when the interpreter has answered, or has not."""
        self._place, self._owner, self._entry = place, owner, entry
        self._executor: Executor | None = None
        self._cancels: Cancels | None = None
        self._numbers: dict[int, int] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._blocks: Blocks | None = None
        self._reason = "its interchange is starting"
        self._reading = -1

    async def __aenter__(self) -> Pool:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"pool-{self.name}")
        self.certificates = await self._control(lambda: prepare(self._place, self.name))
        self._cancels = Cancels(self.certificates, self._place.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()
        if self._cancels is not None:
            self._cancels.close()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)

    # -- for the owner --------------------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """Registered now."""
        return sum(manager.workers for manager in self.managers)

    @property
    def host(self) -> str:
        """The node that all its workers are on; '' while there are none, or on several: Parsl does not say which took a packet."""
        hosts = {manager.host for manager in self.managers}
        return hosts.pop() if len(hosts) == 1 else ""

    @property
    def capacity(self) -> int:
        """Workers that the pool may grow to."""
        return self.config.max_blocks * per_block(self.config)

    @property
    def blocks(self) -> int:
        """Blocks that have not ended."""
        return 0 if self._blocks is None else self._blocks.count

    @property
    def reason(self) -> str:
        """Why no worker runs; '' while some do."""
        if self.managers:
            return ""
        return self._reason or ("" if self._blocks is None else self._blocks.reason)

    @property
    def cancels_address(self) -> str:
        """Where workers hear cancels."""
        return self._cancels.address if self._cancels else ""

    @property
    def in_flight(self) -> int:
        """Packets submitted and not answered."""
        return len(self._numbers)

    def submit(self, number: int, payload: bytes) -> None:
        """Hand over a packet.  Without an interchange it is lost at once (the owner hears of it in the next turn of the loop)."""
        if self._executor is None:
            asyncio.get_running_loop().call_soon(self._owner.lost, self.name, number, "Its pool is starting again.")
            return
        self._numbers[self._executor.submit_packet(self._entry, payload)] = number

    def cancel(self, ids: list[bytes]) -> None:
        """Have running tasks ended; the report says which were."""
        if self._cancels is not None:
            self._cancels.say(ids)

    def ended(self, ids: list[bytes]) -> None:
        """These tasks run no more."""
        if self._cancels is not None:
            self._cancels.ended(ids)

    def wake(self) -> None:
        """There may be a need for another block."""
        if self._blocks is not None:
            self._blocks.wake(self._owner.demand(self.name))

    # -- supervision ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep an interchange, and as many blocks as are wanted.  Ends only by being cancelled."""
        wait = FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                await self._meet()
                await self._begin()
                await self._supervise()
            except EnvironmentMismatch as unfit:
                self._refuse(environment.said(unfit))
            except Exception as broken:  # Parsl raises what it likes; none of it may end the daemon
                log.exception("the pool %s cannot run", self.name, extra={"action": "pool_failed"})
                self._reason = f"its interchange does not start: {broken}"
            await self._end()
            wait = FIRST_WAIT_S if time.monotonic() - began > HEALTHY_S else min(wait * 2, LONGEST_WAIT_S)
            await asyncio.sleep(wait - FIRST_WAIT_S)

    async def _meet(self) -> None:
        """Ask the interpreter what it is.

        :raises EnvironmentMismatch: it cannot work for this daemon.
        """
        try:
            self.versions = await self._control(lambda: environment.ask(self.config, without_secrets()))
            environment.check(self.config, self.versions, environment.own())
        except EnvironmentMismatch:
            self.broken = True
            raise
        else:
            self.broken = False
        finally:
            self.asked.set()
            self._owner.workers_changed(self.name)

    def _refuse(self, why: str) -> None:
        if why != self._reason:
            log.error("the pool %s is not started: %s", self.name, why, extra={"action": "pool_unfit"})
        self._reason = why

    async def _begin(self) -> None:
        executor = make(self.config, self._place, self.certificates, self.versions["python"])
        await self._control(executor.start)
        self._executor = executor
        self.interchange = executor.interchange_pid
        self._reason = ""
        self._blocks = Blocks(self.config, self._place, executor, lambda: self._owner.demand(self.name), self._control)
        self._reading = executor.results_fd
        asyncio.get_running_loop().add_reader(self._reading, self._drain, executor)
        self._drain(executor)
        log.info("the pool %s has an interchange, pid %d", self.name, self.interchange, extra={"action": "pool_up"})

    async def _supervise(self) -> None:
        assert self._blocks is not None, "after _begin"
        scaling = asyncio.create_task(self._blocks.run(), name=f"scale {self.name}")
        ending = asyncio.create_task(gone(self.interchange), name=f"watch {self.name}")
        try:
            done, _ = await asyncio.wait({scaling, ending}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            log.error("the interchange of the pool %s has died", self.name, extra={"action": "interchange_died"})
        finally:
            for task in (scaling, ending):
                task.cancel()
            await asyncio.gather(scaling, ending, return_exceptions=True)

    async def _end(self) -> None:
        executor, self._executor = self._executor, None
        if executor is None:
            return
        asyncio.get_running_loop().remove_reader(self._reading)
        self.interchange, self._blocks = 0, None
        if self.managers:
            self.managers = []
            self._owner.workers_changed(self.name)
        try:
            await asyncio.shield(self._control(lambda: self._shut(executor)))
        finally:
            numbers, self._numbers = self._numbers, {}
            for number in numbers.values():
                self._owner.lost(self.name, number, "The interchange of its pool died.")

    def _shut(self, executor: Executor) -> None:
        with contextlib.suppress(Exception):  # whatever Parsl finds missing while it ends is ended all the same
            executor.end()
        leftovers.end(self._place.mark)

    async def _control(self, call: Callable[[], T]) -> T:
        assert self._thread is not None, "a Pool is used with `async with`"
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    # -- results --------------------------------------------------------------------------------------------------------

    def _drain(self, executor: Executor) -> None:
        for _ in range(TURN):
            if executor is not self._executor:
                return
            data = executor.receive()
            if data is None:
                return
            try:
                self._take(frames.read(data))
            except InvalidRequest as refused:
                log.error("the pool %s: %s", self.name, refused.message, extra={"action": "frame_refused"})
        asyncio.get_running_loop().call_soon(self._drain, executor)  # the descriptor tells of an edge only

    def _take(self, frame: frames.Frame) -> None:
        match frame:
            case frames.Answered(task, payload):
                if (number := self._numbers.pop(task, None)) is not None:
                    self._owner.answered(self.name, number, payload)
            case frames.Lost(task, reason):
                if (number := self._numbers.pop(task, None)) is not None:
                    self._owner.lost(self.name, number, reason)
            case frames.Managers(managers):
                self.managers = managers
                self._owner.workers_changed(self.name)
            case frames.Broken(reason):
                log.error("the interchange of the pool %s ends: %s", self.name, reason, extra={"action": "interchange_broken"})
                self._reason = reason
