"""One no-op awaited after another: p50 and p99, beside raw HTEX."""

from __future__ import annotations

import statistics
import time

from bench.htex import raw_htex
from bench.htex import roundtrips as htex_roundtrips
from bench.machine import Spread
from bench.work import noop
from funcmq import Client

CALLS = 300
REPEATS = 5
WARM_UP = 100


async def run(workers: int) -> dict[str, Spread]:
    """Milliseconds: p50 and p99 of both, and the ratio of the p50s, over alternating repeats."""
    rows: dict[str, list[float]] = {"funcmq p50": [], "funcmq p99": [], "raw HTEX p50": [], "raw HTEX p99": [], "ratio of p50": []}
    with raw_htex(workers) as executor:
        async with Client() as fx:
            await _roundtrips(fx, WARM_UP)
            for _ in range(REPEATS):
                ours, theirs = await _roundtrips(fx, CALLS), htex_roundtrips(executor, CALLS)
                for name, taken in (("funcmq", ours), ("raw HTEX", theirs)):
                    rows[f"{name} p50"].append(statistics.median(taken) * 1000)
                    rows[f"{name} p99"].append(statistics.quantiles(taken, n=100)[98] * 1000)
                rows["ratio of p50"].append(statistics.median(ours) / statistics.median(theirs))
    return {name: Spread.of(values) for name, values in rows.items()}


async def _roundtrips(fx: Client, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        await fx.submit(noop)
        taken.append(time.perf_counter() - start)
    return taken
