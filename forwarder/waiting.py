"""Why is it not running?  One sentence."""

from __future__ import annotations

from datetime import UTC, datetime

from funcmq.broker import api
from funcmq.forwarder.live import ONLINE_MS, Sign


def waiting_for(state: api.State, sign: Sign | None, running_since: int, now: int) -> str:
    """What an open task waits for, given its endpoint's last heartbeat."""
    if sign is None or now - sign.seen > ONLINE_MS:
        return _offline(sign)
    if state == "running":
        return f"running since {_clock(running_since)} ({sign.heartbeat.host})"
    if sign.heartbeat.reason:
        return sign.heartbeat.reason
    reasons = [f"pool {pool.name}: {pool.reason}" for pool in sign.heartbeat.pools if pool.reason]
    if reasons:
        return "; ".join(reasons)
    return _queue(state, sum(sign.heartbeat.queued.values()))


def _offline(sign: Sign | None) -> str:
    if sign is None:
        return "endpoint offline (not seen yet)"
    return f"endpoint offline since {_clock(sign.seen)} ({sign.heartbeat.host})"


def _queue(state: api.State, queued: int) -> str:
    if state == "accepted":
        return "the broker to confirm it"
    if state == "published":
        return "the endpoint to take it from its queue"
    return f"{queued:,} tasks wait at the endpoint" if queued else "a worker"


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M UTC")
