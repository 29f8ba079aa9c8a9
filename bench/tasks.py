"""No-ops submitted one by one, each answered: tasks a second through Client and Executor, beside raw HTEX; CPU per task, hop by hop."""

from __future__ import annotations

import os
import time

from bench.htex import raw_htex
from bench.htex import tasks_per_second as htex_rate
from bench.machine import Spread, cpu_seconds, memory
from bench.work import noop
from funcmq import Client, Executor

COUNT = 20_000
PEER_COUNT = 3_000
REPEATS = 5
WARM_UP = 2_000


async def run(workers: int) -> dict[str, Spread]:
    """Tasks a second of each, the ratios, and microseconds of CPU per task of each process on the way."""
    rows: dict[str, list[float]] = {}
    stack = os.getppid()
    for role, megabytes in memory(stack).items():
        rows[f"MB at rest: {role}"] = [megabytes]
    with raw_htex(workers) as peer, Executor() as executor:
        async with Client() as fx:
            await _client(fx, WARM_UP)
            _executor(executor, WARM_UP)
            for _ in range(REPEATS):
                before = cpu_seconds(stack)
                ours = await _client(fx, COUNT)
                after = cpu_seconds(stack)
                theirs, threaded = htex_rate(peer, PEER_COUNT), _executor(executor, COUNT)
                found = {"Client": ours, "Executor": threaded, "raw HTEX": theirs, "Client / raw HTEX": ours / theirs}
                found |= {f"µs CPU: {role}": (after[role] - before[role]) / COUNT * 1e6 for role in after}
                for name, value in found.items():
                    rows.setdefault(name, []).append(value)
            for role, megabytes in memory(stack).items():
                rows[f"MB under load: {role}"] = [megabytes]
    return {name: Spread.of(values) for name, values in rows.items()}


async def _client(fx: Client, count: int) -> float:
    start = time.perf_counter()
    await fx.gather([fx.submit(noop) for _ in range(count)])
    return count / (time.perf_counter() - start)


def _executor(executor: Executor, count: int) -> float:
    start = time.perf_counter()
    for future in [executor.submit(noop) for _ in range(count)]:
        future.result()
    return count / (time.perf_counter() - start)
