"""A worker with a pool's shared folder, functions to run in it, and what tests of it ask."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from funcmq.broker import codec, values
from funcmq.broker.functions import make_record
from funcmq.broker.ids import new_id
from funcmq.broker.messages import Failure, Inline, Kind
from funcmq.endpoint.worker.entry import Worker
from funcmq.endpoint.worker.packet import Done, Member, Packet, Spill

LONG = 600.0


class Pool:
    """A pool's shared folder, one worker, and what a daemon does with them."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "shared"
        for name in ("functions", "spill", "results"):
            (self.shared / name).mkdir(parents=True)
        self.worker = Worker()
        self.cancels = ""
        self.certificates = ""

    def member(self, function: Callable[..., Any], *args: Any, walltime: float = 0.0, kind: Kind = "call", given: Any = None) -> Member:
        recorded = make_record(function)
        (self.shared / "functions" / recorded.id).write_bytes(recorded.record)
        slot = values.pack((args, {}) if given is None else given)
        return Member(new_id(), recorded.id, recorded.name, recorded.places, kind, slot, walltime, 1)

    def packet(self, *members: Member, max_inline: int = 8 << 20) -> bytes:
        return codec.encode(Packet(1, list(members), str(self.shared), self.cancels, self.certificates, max_inline))

    def run(self, *members: Member, max_inline: int = 8 << 20) -> list[Done]:
        report = self.worker.run(self.packet(*members, max_inline=max_inline))
        assert report.trouble == ""
        assert [done.id for done in report.members] == [member.id for member in members]
        return report.members

    def call(self, function: Callable[..., Any], *args: Any) -> Done:
        return self.run(self.member(function, *args))[0]

    def value(self, done: Done) -> Any:
        assert done.state == "succeeded", done.failure
        if isinstance(done.value, Spill):
            return values.unpack(Inline(done.value.encoding, (self.shared / done.value.path).read_bytes()))
        assert done.value is not None
        return values.unpack(done.value)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Pool]:
    """A pool whose worker ends afterwards."""
    made = Pool(folder)
    yield made
    made.worker.close()


def failure(done: Done) -> Failure:
    assert done.value is None
    assert done.failure is not None
    return done.failure


def ends(pid: int) -> bool:
    """Whether this process has ended, or does within 5 s; one that only waits to be reaped has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 5)[0])
    finally:
        os.close(handle)


# Functions for the worker


def add(a: int, b: int = 1) -> int:
    return a + b


def process() -> int:
    return os.getpid()


def sleep() -> None:
    time.sleep(LONG)


def backtrack() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def hold_the_lock() -> None:
    ctypes.PyDLL(None).sleep(600)


def ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(LONG)


def leave(status: int) -> None:
    sys.stderr.write("last words\n")
    os._exit(status)


def crash() -> None:
    ctypes.string_at(0)
