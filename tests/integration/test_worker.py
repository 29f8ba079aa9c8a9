"""What a worker makes of tasks that end by themselves: values, failures, chunks; with real children."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funcmq.broker import codec, values
from funcmq.broker.ids import new_id
from funcmq.broker.messages import Inline
from funcmq.endpoint.worker.context import current_task
from funcmq.endpoint.worker.packet import SPILL, Member, Spill
from tests.worker_rig import Pool, add, failure, opened, process


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with opened(tmp_path) as made:
        yield made


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
