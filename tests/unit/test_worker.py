"""Pieces of the worker: frames, failures, the current task, the scratch folder, the death of a process."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from funcmq.broker import codec
from funcmq.broker.errors import InvalidRequest
from funcmq.endpoint.worker import failures
from funcmq.endpoint.worker.context import CurrentTask, Slot, current_task
from funcmq.endpoint.worker.packet import Done, Member, Packet, Report
from funcmq.endpoint.worker.process import death_of
from funcmq.endpoint.worker.scratch import Scratch
from funcmq.endpoint.worker.wire import MOST, Frames, Run, Skip, frame, read_order


@given(some.lists(some.binary(max_size=40), max_size=6), some.lists(some.integers(0, 300), max_size=6))
def test_frames_come_back_however_they_were_cut(bodies: list[bytes], cuts: list[int]) -> None:
    """Bodies arrive whole and in order, whatever the pieces in which they were read."""
    data, frames, found = b"".join(len(body).to_bytes(4, "big") + body for body in bodies), Frames(), list[bytes]()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        found += frames.feed(data[start:end])
    assert found == bodies


def test_nonsense_is_no_frame() -> None:
    """A length that nobody sends is refused instead of waited for."""
    with pytest.raises(ValueError, match="announced"):
        Frames().feed((MOST + 1).to_bytes(4, "big"))


@pytest.mark.parametrize("order", [Run(1.5, [0, 2], b"packet"), Skip(b"t" * 16)])
def test_orders_come_back(order: Run | Skip) -> None:
    """What the worker says is what the child reads."""
    assert [read_order(body) for body in Frames().feed(frame(order))] == [order]


def test_packets_and_reports_are_versioned() -> None:
    """Both come back as they were, and a neighbouring release that knows fewer fields of a report understands it."""
    packet = Packet(1, [], "/shared", "tcp://127.0.0.1:1", "/keys", 5)
    report = Report(1, "host", 7, [Done(b"t" * 16, "died", None, None, 1, 2, 0.5)])
    assert codec.decode(Packet, codec.encode(packet)) == packet
    assert codec.decode(Report, codec.encode(report)) == report
    assert codec.decode(Report, codec.encode([1, "host", 7, []])).trouble == ""
    assert Member.__struct_fields__[:2] == ("id", "function")


class Nasty(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_any_exception_can_be_described() -> None:
    """One whose text raises, one with text that is not valid Unicode, one without plain arguments, and one with too much text."""
    nasty = failures.describe(raised(Nasty()))
    assert (nasty.code, nasty.type_name) == ("TaskFailed", f"{__name__}.Nasty")
    assert "__str__" in nasty.message
    odd = failures.describe(raised(ValueError("\ud800", object())))
    assert odd.args is None
    assert codec.decode(type(odd), codec.encode(odd)) == odd
    large = failures.describe(raised(ValueError("x" * 1_000_000)))
    assert len(large.message) < failures.MAX_TEXT + 100
    assert "characters left out" in large.message


def test_a_traceback_begins_with_the_users_code() -> None:
    """Frames of ours and of asyncio above the first frame of the user are left out; the exception's own text is last."""
    told = failures.describe(raised(KeyError("k")))
    assert told.traceback.startswith("Traceback (most recent call last):\n  File " + repr(__file__).replace("'", '"'))
    assert told.traceback.endswith("KeyError: 'k'\n")
    assert codec.unpack_plain(told.args or b"") == ["k"]


def test_there_is_a_current_task_only_in_a_task(tmp_path: Path) -> None:
    """Outside a worker the error says what to do; inside, without walltime, none is left."""
    with pytest.raises(InvalidRequest, match="does not run on a worker") as caught:
        current_task()
    assert "submitted" in caught.value.hint
    slot = Slot()
    slot.home = str(tmp_path)
    task = CurrentTask("ab" * 16, 2, None)
    slot.enter(task)
    assert slot.task is task
    assert task.walltime_left is None
    slot.leave()
    assert slot.task is None


def test_scratch_folders_of_the_living_stay() -> None:
    """A folder is private, stays while its worker lives, and goes when it closes."""
    first = Scratch()
    second = Scratch()
    assert first.path.is_dir()
    assert first.path.stat().st_mode & 0o777 == 0o700
    first.close()
    assert not first.path.exists()
    assert second.path.is_dir()
    second.close()


@pytest.mark.parametrize("use_pidfd", [True, False])
def test_a_death_is_seen(use_pidfd: bool) -> None:
    """The descriptor becomes readable when the process ends, not before, and the status is still there to be read; also without pidfds."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        gone = death_of(process.pid, use_pidfd)
        assert not select.select([gone], [], [], 0)[0]
        process.kill()
        assert select.select([gone], [], [], 10)[0]
        assert process.wait() == -signal.SIGKILL
    os.close(gone)
