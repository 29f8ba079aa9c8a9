"""A pool without workers says why, for whoever waits for it."""

import asyncio
import re
from pathlib import Path

import pytest

from funcmq.broker.ids import new_hex
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import Place
from funcmq.endpoint.pool import Pool
from tests.integration.test_pool import Owner

SAID = r"block started \d+ s ago, no worker yet: .*ModuleNotFoundError: No module named .lattice."


@pytest.mark.asyncio
async def test_a_block_without_workers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that has started, and whose worker has not come, is told with the end of what it wrote to its stderr."""
    monkeypatch.setattr("funcmq.endpoint.blocks.LOOK_S", 0.3)
    owner = Owner()
    init = "python3 -c 'import lattice'; sleep 5"
    config = PoolConfig("local", workers_per_node=1, min_blocks=1, worker_init=init)
    async with Pool(config, Place(tmp_path / "run", "127.0.0.1", new_hex()), owner) as pool:
        owner.pool = pool
        running = asyncio.create_task(pool.run())
        try:
            async with asyncio.timeout(50):
                while not re.fullmatch(SAID, pool.reason):
                    await asyncio.sleep(0.05)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
