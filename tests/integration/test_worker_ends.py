"""Ends that the worker makes, with real children, real signals and a real CurveZMQ publisher: walltime and cancels."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from parsl.curvezmq import ServerContext, create_certificates

from funcmq.broker.ids import new_id
from tests.worker_rig import LONG, Pool, add, backtrack, failure, hold_the_lock, ignore_sigterm, opened, process, sleep


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with opened(tmp_path) as made:
        yield made


@pytest.mark.parametrize("stubborn", [sleep, backtrack, hold_the_lock, ignore_sigterm])
def test_walltime_ends_whatever_runs(pool: Pool, stubborn: Callable[[], None]) -> None:
    """A sleep, a C call that holds the GIL and a process that ignores SIGTERM end within 2 s; neighbours keep their results."""
    pool.call(process)
    began = time.monotonic()
    dones = pool.run(pool.member(add, 1), pool.member(stubborn, walltime=0.2), pool.member(add, 2))
    assert time.monotonic() - began < 2.2
    assert [done.state for done in dones] == ["succeeded", "walltime", "succeeded"]
    assert failure(dones[1]).code == "WalltimeExceeded"
    assert [pool.value(dones[0]), pool.value(dones[2])] == [2, 3]


def test_what_was_printed_before_the_end_is_kept(pool: Pool) -> None:
    """Output of a task that is ended is not lost, and its neighbours' stays theirs."""

    def talk() -> None:
        sys.stdout.write("so far\n")
        time.sleep(LONG)

    dones = pool.run(pool.member(print, "mine"), pool.member(talk, walltime=0.3))
    assert [done.stdout for done in dones] == ["mine\n", "so far\n"]


def test_only_a_members_own_walltime_counts(pool: Pool) -> None:
    """A member that waited long behind its neighbour has its whole walltime, and one behind short ones is still ended in time."""
    dones = pool.run(pool.member(time.sleep, 0.6), pool.member(time.sleep, 0.2, walltime=0.5), pool.member(sleep, walltime=0.2))
    assert [done.state for done in dones] == ["succeeded", "succeeded", "walltime"]


class Daemon:
    """The publisher of a daemon: says a task id again and again until told to stop."""

    def __init__(self, folder: Path) -> None:
        self.certificates = str(create_certificates(folder))
        self._context = ServerContext(self.certificates)
        self._socket = self._context.socket(zmq.PUB)
        self.address = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._ended = threading.Event()

    @contextlib.contextmanager
    def cancelling(self, *tasks: bytes) -> Iterator[None]:
        thread = threading.Thread(target=self._repeat, args=(tasks,))
        self._ended.clear()
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _repeat(self, tasks: tuple[bytes, ...]) -> None:
        while not self._ended.wait(0.05):
            for task in tasks:
                self._socket.send(task)

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.destroy(linger=0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    made.close()


def test_cancel_ends_the_running_and_skips_the_waiting(pool: Pool, daemon: Daemon) -> None:
    """Over CurveZMQ: a running member is ended, a waiting one never starts, unknown ids change nothing, and the rest goes on."""
    pool.cancels, pool.certificates = daemon.address, daemon.certificates
    running, waiting = pool.member(sleep), pool.member(sleep)
    began = time.monotonic()
    with daemon.cancelling(new_id(), waiting.id, running.id):
        dones = pool.run(pool.member(add, 1), running, waiting, pool.member(add, 2))
    assert time.monotonic() - began < 3
    assert [done.state for done in dones] == ["succeeded", "cancelled", "cancelled", "succeeded"]
    assert {failure(done).code for done in dones[1:3]} == {"TaskCancelled"}


def test_cancel_of_a_waiting_member_spares_the_running_one(pool: Pool, daemon: Daemon) -> None:
    """A waiting member that is cancelled is skipped in the same child."""
    pool.cancels, pool.certificates = daemon.address, daemon.certificates
    pool.call(process)
    waiting = pool.member(sleep)
    with daemon.cancelling(waiting.id):
        dones = pool.run(pool.member(time.sleep, 0.5), pool.member(process), waiting, pool.member(process))
    assert [done.state for done in dones] == ["succeeded", "succeeded", "cancelled", "succeeded"]
    assert pool.value(dones[1]) == pool.value(dones[3])


def test_a_daemon_at_another_address_is_heard(pool: Pool, tmp_path: Path) -> None:
    """When the address of cancels changes, the worker listens there."""
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        daemon = Daemon(tmp_path / turn)
        pool.cancels, pool.certificates = daemon.address, daemon.certificates
        member = pool.member(sleep)
        with daemon.cancelling(member.id):
            assert pool.run(member)[0].state == "cancelled"
        daemon.close()


def test_a_worker_that_cannot_hear_cancels_says_so(pool: Pool) -> None:
    """Certificates that cannot be read are told in the report; the work is done."""
    pool.cancels, pool.certificates = "tcp://127.0.0.1:1", "/nowhere"
    report = pool.worker.run(pool.packet(pool.member(add, 1)))
    assert "cannot hear cancels" in report.trouble
    assert pool.value(report.members[0]) == 2
