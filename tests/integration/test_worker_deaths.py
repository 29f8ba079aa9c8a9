"""Children and workers that die, and what they leave: nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funcmq.broker import codec
from funcmq.endpoint.worker.entry import Worker
from funcmq.endpoint.worker.packet import Report
from tests.worker_rig import LONG, Pool, add, crash, ends, failure, leave, opened, process, sleep


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with opened(tmp_path) as made:
        yield made


@pytest.mark.parametrize(("deadly", "how"), [((leave, 3), "exit status 3"), ((leave, 0), "exit status 0"), ((crash,), "signal SIGSEGV")])
def test_a_death_hits_one_member(pool: Pool, deadly: tuple[Any, ...], how: str) -> None:
    """A child that dies takes the member that ran, with its status and last words; the others have their results."""
    began = time.monotonic()
    dones = pool.run(pool.member(process), pool.member(*deadly), pool.member(process))
    assert time.monotonic() - began < 5
    assert [done.state for done in dones] == ["succeeded", "died", "succeeded"]
    told = failure(dones[1])
    assert told.code == "WorkerDied"
    assert how in told.message
    assert ("last words" if deadly[0] is leave else "Segmentation fault") in told.message
    assert pool.value(dones[0]) != pool.value(dones[2])


def test_a_result_that_kills_is_a_death(pool: Pool) -> None:
    """A value whose pickling ends the process is `died`, like any other way to end it."""

    class Kills:
        def __reduce__(self) -> Any:
            os._exit(9)

    dones = pool.run(pool.member(Kills), pool.member(add, 1))
    assert [done.state for done in dones] == ["died", "succeeded"]


def test_a_process_left_behind_hangs_nobody(pool: Pool) -> None:
    """A program that a task started and left, and that keeps all descriptors, does not delay a report, and ends with the child."""

    def start(die: bool) -> int:
        pid = os.fork()
        if not pid:
            time.sleep(LONG)
        if die:
            os._exit(1)
        return pid

    left = pool.value(pool.call(start, False))
    began = time.monotonic()
    assert pool.call(start, True).state == "died"
    assert time.monotonic() - began < 5
    assert ends(left)


def test_the_other_half_of_a_fork_ends(pool: Pool) -> None:
    """A task that forks and returns in both halves has one result, and one process goes on."""

    def fork() -> int:
        return os.fork()

    dones = pool.run(pool.member(fork), pool.member(process), pool.member(process))
    assert pool.value(dones[0]) != 0
    assert pool.value(dones[1]) == pool.value(dones[2])


def test_a_task_that_closes_everything_is_a_death(pool: Pool) -> None:
    """A task that closes all descriptors loses its result and nothing else."""

    def close() -> None:
        os.closerange(0, 256)
        time.sleep(LONG)

    dones = pool.run(pool.member(close), pool.member(add, 1))
    assert [done.state for done in dones] == ["died", "succeeded"]


def test_a_packet_that_cannot_be_read_is_reported(pool: Pool) -> None:
    """Garbage, and packets of another version, give a report without members that says why."""
    for wrong in (b"", b"garbage", codec.encode([2, [], "", "", "", 0])):
        report = pool.worker.run(wrong)
        assert report.members == []
        assert "cannot read" in report.trouble


def test_an_empty_packet_starts_the_child(pool: Pool) -> None:
    """A packet without members prepares the worker for the next."""
    assert pool.run() == []
    assert pool.value(pool.call(add, 1)) == 2


def test_many_values_over_a_small_pipe(pool: Pool) -> None:
    """Arguments and results that do not fit into the pipes at once arrive whole and in order."""
    texts = [str(index) * 30_000 for index in range(10, 40)]
    assert [pool.value(done) for done in pool.run(*(pool.member(str.upper, text) for text in texts))] == texts


def test_a_child_that_died_between_packets_costs_nothing(pool: Pool) -> None:
    """A child that is gone when a packet comes is replaced."""
    pid = pool.value(pool.call(process))
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)
    assert pool.value(pool.call(add, 1)) == 2


# Processes


_HOST = """
import sys
from funcmq.endpoint.worker import entry
for line in sys.stdin:
    sys.stdout.write(entry.run(bytes.fromhex(line)).hex() + "\\n")
    sys.stdout.flush()
"""


@contextlib.contextmanager
def _host() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", _HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as host:
        try:
            yield host
        finally:
            host.kill()


def _ask(host: subprocess.Popen[str], packet: bytes) -> Report:
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write(packet.hex() + "\n")
    host.stdin.flush()
    return codec.decode(Report, bytes.fromhex(host.stdout.readline()))


def test_the_child_ends_with_a_killed_worker(pool: Pool) -> None:
    """kill -9 of the worker ends its child, and the next worker removes the folder that it left."""

    def look() -> tuple[int, str]:
        return os.getpid(), str(Path.cwd())

    with _host() as host:
        report = _ask(host, pool.packet(pool.member(look)))
        assert report.pid == host.pid
        child, folder = pool.value(report.members[0])
        host.kill()
        host.wait()
        assert ends(child)
    assert Path(folder).exists()
    Worker().close()
    assert not Path(folder).exists()


def test_a_terminated_worker_leaves_nothing(pool: Pool) -> None:
    """SIGTERM, which is how HTEX ends its workers, takes along the running child, what that had started, and the folder."""

    def start() -> tuple[int, int, str]:
        return os.getpid(), subprocess.Popen(["sleep", "600"]).pid, str(Path.cwd())

    with _host() as host:
        child, program, folder = pool.value(_ask(host, pool.packet(pool.member(start))).members[0])
        assert host.stdin is not None
        host.stdin.write(pool.packet(pool.member(sleep)).hex() + "\n")
        host.stdin.flush()
        host.terminate()
        assert host.wait() == -signal.SIGTERM
        assert ends(child)
        assert ends(program)
    assert not Path(folder).exists()


def test_nothing_is_left_after_an_orderly_end(pool: Pool) -> None:
    """A worker that ends takes its child and its folder along."""

    def look() -> tuple[int, str]:
        return os.getpid(), str(Path.cwd())

    with _host() as host:
        child, folder = pool.value(_ask(host, pool.packet(pool.member(look))).members[0])
        assert host.stdin is not None
        host.stdin.close()
        assert host.wait() == 0
        assert ends(child)
    assert not Path(folder).exists()
