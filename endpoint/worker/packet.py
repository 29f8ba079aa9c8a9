"""What the daemon and a worker say to each other: one packet in, one report out.

A packet is several short tasks, or one.  Both travel as bytes through HTEX (`funcmq.endpoint.worker.entry.run`); values over `SPILL` bytes
pass as files in the pool's shared folder instead, because HTEX copies what it carries about five times.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from funcmq.broker.messages import Failure, Inline, Kind

SPILL = 64 * 1024
"""Bytes above which a value passes as a file."""
TAIL = 8 * 1024
"""Bytes of stdout and of stderr that are kept, from the end."""


class Spill(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A value in a file under the shared folder; `path` is relative to it.  Whoever reads it for good removes it."""

    encoding: Literal["msgpack", "pickle"]
    path: str
    size: int


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One task of a packet.  The function record lies in `<shared>/functions/<function>`."""

    id: bytes
    function: str
    name: str
    places: list[tuple[str, int]]
    kind: Kind
    args: Inline | Spill
    walltime_s: float
    attempt: int


class Packet(msgspec.Struct, frozen=True, array_like=True):
    """Tasks to run one after another in one child.  Without members it only makes the worker start its child.

    :param shared: the pool's shared folder, absolute: `functions/`, `spill/`, `results/` (results too large to send).
    :param cancels: ZeroMQ address of the daemon's PUB socket, which says task ids to end; '' for none.
    :param certificates: folder of the CURVE keys of pool and daemon (Parsl's layout).
    """

    VERSION: ClassVar[int] = 1

    v: int
    members: list[Member]
    shared: str
    cancels: str
    certificates: str
    max_inline: int


class Done(msgspec.Struct, frozen=True, array_like=True):
    """What became of one member.

    `died`: its own process died while it ran.  `walltime`, `cancelled`: it was ended.  For all but `succeeded` there is a failure.
    Times are milliseconds since the epoch; `run_s` is the seconds the call itself took.
    """

    id: bytes
    state: Literal["succeeded", "failed", "cancelled", "walltime", "died"]
    value: Inline | Spill | None
    failure: Failure | None
    started: int
    ended: int
    run_s: float
    stdout: str = ""
    stderr: str = ""


class Report(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a packet: one `Done` per member, in the order of the packet.

    `trouble` is '' or what is wrong with the worker itself: with members it worked nevertheless (it cannot hear cancels, for instance),
    without it could not read the packet.
    """

    VERSION: ClassVar[int] = 1

    v: int
    host: str
    pid: int
    members: list[Done]
    trouble: str = ""
