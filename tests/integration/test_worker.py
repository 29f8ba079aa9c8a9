"""The worker with real children, real signals and a real CurveZMQ publisher."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from parsl.curvezmq import ServerContext, create_certificates

from funcmq.broker import codec, values
from funcmq.broker.functions import make_record
from funcmq.broker.ids import new_id
from funcmq.broker.messages import Failure, Inline, Kind
from funcmq.endpoint.worker.context import current_task
from funcmq.endpoint.worker.entry import Worker
from funcmq.endpoint.worker.packet import SPILL, Done, Member, Packet, Report, Spill

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


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    made = Pool(tmp_path)
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


def fail(text: str) -> None:
    raise ValueError(text, 7)


# What runs well


def test_members_run_in_one_child_which_is_kept(pool: Pool) -> None:
    """All members of a packet, and those of the next, run in one process that is not the worker's."""
    first = [pool.value(done) for done in pool.run(*(pool.member(process) for _ in range(3)))]
    again = pool.value(pool.call(process))
    assert {*first, again} == {again}
    assert again != os.getpid()


def test_arguments_arrive_and_times_are_told(pool: Pool) -> None:
    """Positional and keyword arguments arrive, and a `Done` has times in their order."""
    done = pool.run(pool.member(add, given=((1,), {"b": 5})))[0]
    assert pool.value(done) == 6
    assert time.time() * 1000 - 60_000 < done.started <= done.ended
    assert 0 <= done.run_s < 1


def test_async_functions_are_awaited(pool: Pool) -> None:
    """A coroutine function gives its result, called alone or in a chunk."""

    async def double(x: int) -> int:
        return 2 * x

    assert pool.value(pool.call(double, 4)) == 8
    chunk = pool.run(pool.member(double, kind="chunk", given=(False, [1, 2, 3])))[0]
    assert pool.value(chunk) == ({}, [2, 4, 6])


def test_stdout_and_stderr_belong_to_their_member(pool: Pool) -> None:
    """What a member prints is in its own `Done`, from C as well, and only the last 8 KiB of it."""

    def say(text: str, times: int) -> None:
        sys.stdout.write(text * times + "\n")
        sys.stderr.write("err " + text + "\n")

    def say_in_c() -> None:
        ctypes.CDLL(None).puts(b"from C")

    dones = pool.run(pool.member(say, "a", 3), pool.member(add, 1), pool.member(say, "bc", 8192), pool.member(say_in_c))
    assert [done.stderr for done in dones] == ["err a\n", "", "err bc\n", ""]
    assert [dones[0].stdout, dones[1].stdout, dones[3].stdout] == ["aaa\n", "", "from C\n"]
    assert len(dones[2].stdout) == 8192
    assert dones[2].stdout.endswith("bcbc\n")


def test_current_task_knows_itself(pool: Pool) -> None:
    """A task knows its id and attempt, has a scratch folder that ends with it, and sees its walltime shrink."""

    def look() -> tuple[str, int, str, float | None]:
        task = current_task()
        (task.scratch / "x").write_text("x")
        return task.id, task.attempt, str(task.scratch), task.walltime_left

    member = pool.member(look, walltime=50.0)
    task, attempt, scratch, left = pool.value(pool.run(member)[0])
    assert (task, attempt) == (member.id.hex(), 1)
    assert not Path(scratch).exists()
    assert 0 < left <= 50


def test_tasks_run_in_the_scratch_folder(pool: Pool) -> None:
    """A task starts in a folder of the node's own disk, whatever its neighbour did, without stdin, and imports nothing from there."""

    def move() -> None:
        os.chdir("/")

    def look() -> tuple[str, str, bool]:
        return str(Path.cwd()), sys.stdin.read(), "" in sys.path

    dones = pool.run(pool.member(look), pool.member(move), pool.member(look))
    assert pool.value(dones[0]) == pool.value(dones[2])
    where, stdin, imports = pool.value(dones[0])
    assert Path(where).is_dir()
    assert not Path(where).is_relative_to(pool.shared)
    assert (stdin, imports) == ("", False)


# Failures that a task can have


def test_an_exception_is_described(pool: Pool) -> None:
    """Type, text, arguments and a traceback that begins at the user's function, with real file, line and source, with cause and notes."""

    def outer() -> None:
        try:
            fail("first")
        except ValueError as broken:
            raised = KeyError("second")
            raised.add_note("look here")
            raise raised from broken

    told = failure(pool.call(outer))
    assert (told.code, told.type_name, told.message) == ("TaskFailed", "KeyError", "'second'")
    assert codec.unpack_plain(told.args or b"") == ["second"]
    assert "raise ValueError(text, 7)\nValueError: ('first', 7)\n" in told.traceback
    assert told.traceback.endswith("KeyError: 'second'\nlook here\n")
    files = re.findall(r'File "(.*)", line (\d+), in (\w+)', told.traceback)
    assert {file for file, _, _ in files} == {__file__}
    assert files[0][1] == str(fail.__code__.co_firstlineno + 1) or files[0][2] == "outer"


def test_sys_exit_is_a_failure_and_the_child_goes_on(pool: Pool) -> None:
    """sys.exit and KeyboardInterrupt end the task, not the process."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    before = pool.value(pool.call(process))
    dones = pool.run(pool.member(sys.exit, 3), pool.member(interrupt), pool.member(process))
    assert [failure(done).type_name for done in dones[:2]] == ["SystemExit", "KeyboardInterrupt"]
    assert failure(dones[0]).message == "3"
    assert pool.value(dones[2]) == before


def test_a_missing_module_is_named(pool: Pool) -> None:
    """A module that the worker lacks is `ImportFailed`, whether the function, its arguments or its run wants it."""

    def late() -> None:
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401, PLC0415

    argument = Inline("pickle", b"cno_such_module\nthing\n.")
    member = pool.member(add, 1)
    record = codec.encode([1, "pickle", "x", f"{sys.version_info.major}.{sys.version_info.minor}", argument.data, None])
    lost = __import__("hashlib").sha256(record).hexdigest()
    (pool.shared / "functions" / lost).write_bytes(record)
    wrong = [
        Member(new_id(), lost, "x", [], "call", member.args, 0.0, 1),
        Member(new_id(), member.function, "add", [], "call", argument, 0.0, 1),
        pool.member(late),
    ]
    told = [failure(done) for done in pool.run(*wrong)]
    assert {one.code for one in told} == {"ImportFailed"}
    assert all("'no_such_module'" in one.message for one in told)


def test_bad_arguments_and_functions_are_failures(pool: Pool) -> None:
    """Arguments that cannot be unpickled or do not fit, and a record with other bytes than its id says, are failures of that member."""
    good = pool.member(add, 1)
    (pool.shared / "functions" / ("0" * 64)).write_bytes(b"other")
    garbage = Member(new_id(), good.function, "add", [], "call", Inline("pickle", b"garbage"), 0.0, 1)
    forged = Member(new_id(), "0" * 64, "add", [], "call", good.args, 0.0, 1)
    many = pool.member(add, 1, 2, 3)
    dones = pool.run(garbage, forged, many, good)
    assert [done.state for done in dones] == ["failed", "failed", "failed", "succeeded"]
    assert [failure(done).code for done in dones[:3]] == ["NotSerializable", "InvalidRequest", "TaskFailed"]
    assert "arguments of add" in failure(dones[0]).message
    assert failure(dones[2]).type_name == "TypeError"


def test_results_that_cannot_be_sent(pool: Pool) -> None:
    """A lock, a generator and a value whose pickling raises SystemExit are `NotSerializable`; the generator gets a hint of its own."""

    class Exits:
        def __reduce__(self) -> Any:
            raise SystemExit(1)

    def generate() -> Iterator[int]:
        yield 1

    dones = pool.run(pool.member(threading.Lock), pool.member(generate), pool.member(Exits), pool.member(add, 1))
    assert [failure(done).code for done in dones[:3]] == ["NotSerializable"] * 3
    assert "lock" in failure(dones[0]).message
    assert "list(" in failure(dones[1]).hint
    assert pool.value(dones[3]) == 2
    assert failure(dones[0]).traceback == ""
    assert "in __reduce__" in failure(dones[2]).traceback


def test_a_result_over_the_limit_is_kept(pool: Pool) -> None:
    """A result over the limit is `PayloadTooLarge`, and lies whole in the file that the message names."""
    done = pool.run(pool.member(bytes, 100_000), max_inline=50_000)[0]
    told = failure(done)
    assert told.code == "PayloadTooLarge"
    assert "50,000" in told.message
    kept = Path(told.message.rpartition(" as ")[2].rstrip("."))
    assert kept.parent == pool.shared / "results"
    assert codec.unpack_plain(kept.read_bytes()) == bytes(100_000)


def test_large_values_pass_as_files(pool: Pool) -> None:
    """Arguments and results over 64 KiB pass through the shared folder, and the argument stays there for a second run."""
    large = values.pack((("x" * SPILL,), {}))
    (pool.shared / "spill" / "argument").write_bytes(large.data)
    short = pool.member(str.upper, "")
    spilled = Member(short.id, short.function, "upper", [], "call", Spill(large.encoding, "spill/argument", len(large.data)), 0.0, 1)
    done = pool.run(spilled)[0]
    assert isinstance(done.value, Spill)
    assert done.value.path.startswith("spill/")
    assert pool.value(done) == "X" * SPILL
    assert (pool.shared / "spill" / "argument").exists()


def test_a_missing_file_is_the_fault_of_the_worker(pool: Pool) -> None:
    """A function record or an argument that cannot be read counts as a death of the worker, so that the task runs again elsewhere."""
    good = pool.member(add, 1)
    lost = Member(new_id(), "f" * 64, "add", [], "call", good.args, 0.0, 1)
    empty = Member(new_id(), good.function, "add", [], "call", Spill("msgpack", "spill/none", 1), 0.0, 1)
    dones = pool.run(lost, empty, good)
    assert [done.state for done in dones] == ["died", "died", "succeeded"]
    assert str(pool.shared / "spill" / "none") in failure(dones[1]).message


def test_a_chunk_has_an_outcome_for_each_call(pool: Pool) -> None:
    """A chunk succeeds when it ran; a call that raises and a value that cannot be sent fail alone."""

    def odd(x: int) -> Any:
        if x == 1:
            raise ValueError(x)
        return threading.Lock() if x == 2 else x

    plain, star = pool.run(
        pool.member(odd, kind="chunk", given=(False, [0, 1, 2, 3])), pool.member(add, kind="chunk", given=(True, [(1, 2), (3,)]))
    )
    failed, found = pool.value(plain)
    assert found == [0, None, None, 3]
    assert [(index, row[0], row[2]) for index, row in failed.items()] == [(1, "TaskFailed", "ValueError"), (2, "NotSerializable", "")]
    assert "raise ValueError(x)" in failed[1][3]
    assert pool.value(star) == ({}, [3, 4])


# Ends that the worker makes


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


# Deaths


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
