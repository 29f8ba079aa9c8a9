"""Why is it not running?  What the store and the endpoint's last heartbeat say of it."""

from __future__ import annotations

from dataclasses import dataclass

from funcmq.broker import api
from funcmq.broker.messages import PoolStatus
from funcmq.forwarder.live import ONLINE_MS, Sign


@dataclass(frozen=True, slots=True)
class Open:
    """A task that has not ended: the pool it names and its walltime ('' and 0 where none), since when it runs and on which host ('' where
    that is not known), and the number of tasks before it where somebody counted them.
    """

    state: api.State
    pool: str = ""
    walltime_s: float = 0.0
    since: int = 0
    host: str = ""
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """A task's endpoint as its row says: since when its lease is held or given back, when and on which host it was last seen (ms, 0 and ''
    for never).
    """

    name: str
    held: bool = True
    since: int = 0
    seen: int = 0
    host: str = ""


def why(task: Open, home: Home, sign: Sign | None, now: int) -> api.Waiting:
    """What an open task waits for; `sign` is the last heartbeat of its endpoint."""
    seen = max(home.seen, sign.seen if sign else 0)
    if not home.held or sign is None or now - seen > ONLINE_MS:
        return api.Waiting(kind="offline", since=seen if home.held else home.since, host=home.host)
    if task.state == "running":
        return api.Waiting(kind="running", since=task.since, host=task.host or home.name, walltime_s=task.walltime_s)
    if reason := sign.heartbeat.reason or _of_pools(task.pool, sign.heartbeat.pools):
        return api.Waiting(kind="reason", reason=reason)
    if task.state != "received":
        return api.Waiting(kind="broker" if task.state == "accepted" else "delivery")
    queued = sum(sign.heartbeat.queued.values())
    ahead = max(0, queued - 1) if task.before is None else max(0, min(task.before - sign.heartbeat.running, queued))
    return api.Waiting(kind="ahead", ahead=ahead) if ahead else api.Waiting(kind="worker")


def _of_pools(wanted: str, pools: list[PoolStatus]) -> str:
    """Why none of the pools that may take the task runs it; '' where one does."""
    able = [pool for pool in pools if not wanted or pool.name == wanted]
    if any(not pool.reason for pool in able):
        return ""
    return "; ".join(pool.reason if len(able) == 1 else f"pool {pool.name}: {pool.reason}" for pool in able)
