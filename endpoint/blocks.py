"""How many blocks a pool has: as many as its open tasks want, between `min_blocks` and `max_blocks`; what ends is replaced, ever more
slowly if it ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from funcmq.broker.waiting import ago
from funcmq.endpoint import leftovers
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import Executor, Place, workers_per_node

log = logging.getLogger("funcmq.blocks")

T = TypeVar("T")

LOOK_S = 5.0
"""Between looks at the blocks: a scheduler does not tell, it has to be asked."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
HEALTHY_S = 60.0
"""A block that has lived this long was not at fault from the start."""
TAIL = 400
"""Characters of a block's stderr that are told."""


class Control(Protocol):
    """Runs a call that may block in the pool's own thread."""

    def __call__(self, call: Callable[[], T]) -> Awaitable[T]: ...


def per_block(config: PoolConfig) -> int:
    """Workers of one block."""
    return workers_per_node(config) * config.nodes_per_block


def wanted(config: PoolConfig, demand: int) -> int:
    """Blocks for so many open tasks."""
    return max(config.min_blocks, min(config.max_blocks, math.ceil(demand / per_block(config))))


class Blocks:
    """The blocks of one executor; `run` looks after them."""

    def __init__(self, config: PoolConfig, place: Place, executor: Executor, demand: Callable[[], int], control: Control) -> None:
        self.count = 0
        """Blocks that have not ended, as last seen."""
        self._config, self._place, self._executor, self._demand, self._control = config, place, executor, demand, control
        self._started: dict[str, float] = {}
        self._said = ""
        """The last words of the block that ended last by itself, or of the oldest that lives."""
        self._wait, self._not_before = FIRST_WAIT_S, 0.0
        self._wake = asyncio.Event()

    @property
    def reason(self) -> str:
        """Why there are blocks and no workers, or no blocks: of use only to a pool that has no worker."""
        if not self._started:
            return self._said
        began = ago(time.monotonic() - min(self._started.values()))
        return f"block started {began} ago, no worker yet" + (f": {self._said}" if self._said else "")

    def wake(self, demand: int) -> None:
        """So many tasks are open now: look at once if that asks for another block."""
        if self.count < wanted(self._config, demand):
            self._wake.set()

    async def run(self) -> None:
        """Look, start, give back; ends only by being cancelled."""
        while True:
            self._wake.clear()
            living = await self._control(self._look)
            for block in self._started.keys() - set(living):
                await self._ended(block)
            missing = wanted(self._config, self._demand()) - len(living)
            if missing > 0 and time.monotonic() >= self._not_before:
                await self._control(partial(self._grow, missing))
            elif missing < 0:
                await self._control(partial(self._shrink, -missing))
            self.count = len(await self._control(self._executor.living_blocks))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wake.wait()

    def _look(self) -> list[str]:
        self._executor.poll_facade()
        living = self._executor.living_blocks()
        if oldest := next((block for block in self._started if block in living), ""):
            self._said = _last_words(self._place.blocks, self._config.name, oldest) or self._said
        return living

    def _grow(self, count: int) -> None:
        self._started |= dict.fromkeys(self._executor.scale_out_facade(count), time.monotonic())

    def _shrink(self, count: int) -> None:
        for block in self._executor.scale_in_facade(count, max_idletime=self._config.idle):
            self._started.pop(block, None)
            leftovers.end(self._place.mark, f"{self._config.name}-{block}")

    async def _ended(self, block: str) -> None:
        """A block has ended by itself: end what it left, and keep its last words for whoever asks why nothing runs."""
        age = time.monotonic() - self._started.pop(block)
        self._wait = FIRST_WAIT_S if age > HEALTHY_S else min(self._wait * 2, LONGEST_WAIT_S)
        self._not_before = time.monotonic() + self._wait - 2 * FIRST_WAIT_S  # the first time at once
        await self._control(lambda: leftovers.end(self._place.mark, f"{self._config.name}-{block}"))
        said = await self._control(lambda: _last_words(self._place.blocks, self._config.name, block))
        self._said = f"block {block} ended" + (f": {said}" if said else "")
        log.warning("the pool %s: %s", self._config.name, self._said, extra={"action": "block_ended"})


def _last_words(folder: Path, pool: str, block: str) -> str:
    """The end of a block's stderr, on one line."""
    for path in sorted(folder.glob(f"parsl.{pool}.block-{block}.*.err"), reverse=True)[:1]:
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return " ".join(file.read().decode(errors="replace").split())
    return ""
