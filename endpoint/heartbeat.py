"""What a heartbeat says: how the endpoint is, and why it does not run more."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import funcmq
from funcmq.broker.messages import Heartbeat, PoolStatus
from funcmq.endpoint.clock import now_ms
from funcmq.endpoint.core import Core
from funcmq.endpoint.pool import Pool


@dataclass(frozen=True, slots=True)
class Condition:
    """What only the daemon knows of itself."""

    epoch: int
    unstored: int
    reason: str


def heartbeat(endpoint: str, journal: str, core: Core, pools: Iterable[Pool], condition: Condition) -> Heartbeat:
    """The endpoint now."""
    queued: Counter[str] = Counter()
    for state in core.pools.values():
        queued.update(state.queue.waiting)
    return Heartbeat(
        v=Heartbeat.VERSION,
        endpoint=endpoint,
        epoch=condition.epoch,
        journal=journal,
        at=now_ms(),
        host=socket.gethostname(),
        pid=os.getpid(),
        release=funcmq.__version__,
        pools=[_status(pool, core) for pool in pools],
        queued=dict(queued),
        running=core.launched,
        unstored=condition.unstored,
        reason=condition.reason,
    )


def _status(pool: Pool, core: Core) -> PoolStatus:
    busy = min(pool.workers, len(core.pools[pool.name].flights))
    return PoolStatus(pool.name, pool.config.provider, pool.workers, busy, pool.capacity, pool.blocks, pool.versions, pool.reason)
