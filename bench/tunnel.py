"""Round trip and tasks a second with daemon and client going through the front door's WebSocket, beside the broker's own port.

The direct figures are of the fabric that is configured, the others of a second one like it, which idles meanwhile and the other way round.
"""

from __future__ import annotations

import os
import statistics
import time

from bench.machine import Spread
from bench.work import noop
from funcmq import Client
from funcmq.broker.transport import VARIABLE
from funcmq.dev.stack import Options, Stack

CALLS = 300
COUNT = 10_000
REPEATS = 5
WARM_UP = 2_000


async def run(workers: int) -> dict[str, Spread]:
    """Milliseconds (p50) and tasks/s of both ways, and how many times the direct one is faster, over alternating repeats."""
    rows: dict[str, list[float]] = {}
    os.environ[VARIABLE] = "websocket"
    async with Stack(Options(workers=workers)) as stack, _client(stack) as tunnelled:
        await _rate(tunnelled, WARM_UP)
        os.environ[VARIABLE] = "amqp"
        async with Client() as direct:
            await _rate(direct, WARM_UP)
            for _ in range(REPEATS):
                trips = [await _roundtrip(fx) for fx in (direct, tunnelled)]
                rates = [await _rate(fx, COUNT) for fx in (direct, tunnelled)]
                names = ("p50 ms: direct", "p50 ms: WebSocket", "tasks/s: direct", "tasks/s: WebSocket", "p50: times", "tasks/s: times")
                for name, value in zip(names, [*trips, *rates, trips[1] / trips[0], rates[0] / rates[1]], strict=True):
                    rows.setdefault(name, []).append(value)
    return {name: Spread.of(values) for name, values in rows.items()}


def _client(stack: Stack) -> Client:
    return Client("dev", url=stack.url, token=stack.token, key=stack.folder.key)


async def _roundtrip(fx: Client) -> float:
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        await fx.submit(noop)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


async def _rate(fx: Client, count: int) -> float:
    start = time.perf_counter()
    await fx.gather([fx.submit(noop) for _ in range(count)])
    return count / (time.perf_counter() - start)
