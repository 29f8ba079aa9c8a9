"""The peer: Parsl's HighThroughputExecutor alone, with `submit()`, as its users run it (encrypted, its own defaults otherwise)."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from bench.work import noop


@contextlib.contextmanager
def raw_htex(workers: int) -> Iterator[HighThroughputExecutor]:
    """A running executor with all its workers connected."""
    paths = f"export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={Path.cwd()}"
    with tempfile.TemporaryDirectory() as folder:
        executor = HighThroughputExecutor(
            label="peer",
            address="127.0.0.1",
            max_workers_per_node=workers,
            cores_per_worker=1e-6,
            prefetch_capacity=workers,
            provider=LocalProvider(init_blocks=1, max_blocks=1, worker_init=paths),
        )
        executor.run_dir = folder
        scripts = Path(folder) / "scripts"
        scripts.mkdir()
        executor.provider.script_dir = str(scripts)
        executor.start()
        try:
            executor.scale_out_facade(1)
            executor.submit(noop, {}).result(timeout=60)
            yield executor
        finally:
            executor.scale_in_facade(1)
            executor.shutdown()


def roundtrips(executor: HighThroughputExecutor, count: int) -> list[float]:
    """Seconds of each of `count` calls, one awaited after another."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        executor.submit(noop, {}).result()
        taken.append(time.perf_counter() - start)
    return taken


def tasks_per_second(executor: HighThroughputExecutor, count: int) -> float:
    """Rate of `count` no-ops, submitted one by one, each answered."""
    start = time.perf_counter()
    for future in [executor.submit(noop, {}) for _ in range(count)]:
        future.result()
    return count / (time.perf_counter() - start)
