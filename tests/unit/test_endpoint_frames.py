"""Laws of reading an interchange's frames: what is known is told apart, and nothing else is ever made of the bytes."""

import contextlib
import os
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsl.app.errors import RemoteExceptionWrapper
from parsl.executors.high_throughput.errors import ManagerLost, VersionMismatch, WorkerLost
from parsl.serialize import serialize

from funcmq.broker.errors import InvalidRequest
from funcmq.endpoint import frames, interchange


def raised(error: Exception) -> bytes:
    try:
        raise error
    except Exception:
        return bytes(serialize(RemoteExceptionWrapper(*sys.exc_info())))  # type: ignore[arg-type]


def frame(**fields: Any) -> frames.Frame:
    return frames.read(pickle.dumps({"type": "result", **fields}))


def test_bytes_come_through() -> None:
    """What a worker function returned is in the frame, as Parsl packs it."""
    assert frame(task_id=7, result=serialize(b"report")) == frames.Answered(7, b"report")


def test_losses_are_told_apart() -> None:
    """Parsl's own errors become a reason that names node or worker."""
    assert frame(task_id=1, exception=raised(ManagerLost(b"m", "nid0012"))) == frames.Lost(1, "The node nid0012 stopped answering.")
    lost = frame(task_id=2, exception=raised(WorkerLost(3, "nid0012")))
    assert lost == frames.Lost(2, "The worker process 3 on nid0012 died.")
    broken = frame(task_id=-1, exception=raised(VersionMismatch("py3.11", "py3.13")))
    assert broken == frames.Broken("A node came with py3.13, the daemon has py3.11.")


def test_managers_are_listed() -> None:
    """The message of our own interchange gives every node with its workers."""
    told = pickle.dumps({"type": interchange.MANAGERS, "managers": [("id", "0", "host", 4)]})
    assert frames.read(told) == frames.Managers([frames.Manager("id", "0", "host", 4)])


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/evil",)


@pytest.mark.parametrize("place", ["message", "result", "exception"])
def test_nothing_else_is_made(place: str) -> None:
    """A pickle that names any other class or function is refused before it does anything, wherever it stands."""
    evil = pickle.dumps(Evil())
    if place == "message":
        with pytest.raises(InvalidRequest, match="not taken"):
            frames.read(evil)
    else:
        found = frame(task_id=1, **{place: b"02\n" + evil})
        assert isinstance(found, frames.Lost)
        assert "not taken" in found.reason


def test_a_result_that_is_no_report_is_a_loss() -> None:
    """Something else than bytes, or under another header, is never an answer."""
    assert isinstance(frame(task_id=1, result=serialize("text")), frames.Lost)
    assert isinstance(frame(task_id=1, result=b"01\n" + pickle.dumps(b"x")), frames.Lost)


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    """No bytes make the reader raise anything but InvalidRequest."""
    with contextlib.suppress(InvalidRequest):
        frames.read(data)
