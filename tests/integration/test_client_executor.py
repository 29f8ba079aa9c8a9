"""Laws of the Executor: whatever works with the standard library's executors works with this one."""

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from funcmq import Executor, function
from tests.client_rig import double, nap

pytestmark = pytest.mark.usefixtures("configured")


@function
def halve(number: int) -> int:
    return number // 2


@pytest.fixture
def ex(configured: None) -> Iterator[Executor]:
    with Executor() as executor:
        yield executor


def script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(text), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_submit_and_map(ex: Executor) -> None:
    """It is a concurrent.futures.Executor; map gives results in order, whatever the chunk size."""
    assert isinstance(ex, concurrent.futures.Executor)
    assert ex.submit(double, 3).result(20) == 6
    assert list(ex.map(double, range(500))) == [2 * number for number in range(500)]
    assert list(ex.map(pow, [2, 3], [3, 2], chunksize=1, timeout=20)) == [8, 9]
    assert list(ex.map(double, [])) == []


def test_errors_and_time_outs(ex: Executor) -> None:
    """result() raises the original type; a time-out leaves the task alone; map's time-out is a TimeoutError."""
    with pytest.raises(ZeroDivisionError):
        ex.submit(lambda: 1 / 0).result(20)
    slow = ex.submit(nap, 1.0)
    with pytest.raises(TimeoutError):
        slow.result(0.01)
    with pytest.raises(TimeoutError):
        list(ex.map(nap, [30], timeout=0.2))
    assert slow.result(20) == 1.0


def test_after_shutdown_nothing_is_taken(ex: Executor) -> None:
    """submit and map raise RuntimeError; what was submitted has its result."""
    future = ex.submit(double, 8)
    ex.shutdown()
    ex.shutdown()
    assert future.result(0) == 16
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(double, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.map(double, [1])


def test_shutdown_can_cancel() -> None:
    """shutdown(cancel_futures=True) ends what runs far away too."""
    executor = Executor()
    futures = [executor.submit(nap, 60) for _ in range(5)]
    executor.flush()
    begun = time.monotonic()
    executor.shutdown(cancel_futures=True)
    assert time.monotonic() - begun < 20
    assert all(future.cancelled() for future in futures)


def test_decorated_functions(configured: None) -> None:
    """A decorated function stays local when called, and runs far away when asked to."""
    assert halve(4) == 2
    assert halve.submit(6).result(20) == 3
    assert list(halve.map([2, 4])) == [1, 2]
    assert asyncio.run(_aio()) == 5
    assert halve.on("dev", retry="never").submit(8).result(20) == 4


async def _aio() -> int:
    return await halve.aio(10)


def test_a_script_need_not_shut_down(configured: None) -> None:
    """A program that simply ends has sent what it submitted; a group attached later has the results."""
    ran = script("""
        from funcmq import Executor
        ex = Executor()
        print(ex.submit(abs, -3).result(), ex.group)
        ex.submit(abs, -4)
    """)
    assert ran.returncode == 0, ran.stderr
    value, group = ran.stdout.split()
    assert value == "3"
    with Executor() as ex:
        assert [task.result(20) for task in ex.attach(group)] == [3, 4]


def test_functions_of_main(configured: None) -> None:
    """Functions and classes that a script defines run far away, and its exceptions are caught as its own."""
    ran = script("""
        from funcmq import Executor
        FACTOR = 3
        class Odd(Exception): pass
        class Box:
            def __init__(self, n): self.n = n
            def twice(self): return Box(self.n * 2)
        def work(box):
            if box.n == 5: raise Odd("five")
            return Box(box.twice().n * FACTOR)
        with Executor() as ex:
            print(ex.submit(work, Box(2)).result().n)
            try: ex.submit(work, Box(5)).result()
            except Odd as error: print("caught", error)
    """)
    assert ran.stdout.split() == ["12", "caught", "five"], ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_connects_anew(configured: None) -> None:
    """In the child, submit works on a connection of its own, and a parent's future says whose it is."""
    ran = script("""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from funcmq import Executor
        import time
        with Executor() as ex:
            assert ex.submit(abs, -1).result() == 1
            mine = ex.submit(time.sleep, 1)
            child = os.fork()
            if child == 0:
                try: mine.result()
                except RuntimeError as error: print("parent" in str(error), ex.submit(abs, -2).result(), flush=True)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            print(ex.submit(abs, -3).result(), flush=True)
    """)
    assert ran.stdout.split() == ["True", "2", "3"], ran.stderr


def test_ctrl_c_says_how_to_attach(configured: None) -> None:
    """An interrupted program ends soon, its tasks go on, and the line it prints names the group."""
    program = """
        import time
        from funcmq import Executor
        with Executor() as ex:
            ex.submit(time.sleep, 3)
            ex.flush()
            print(ex.group, flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    group = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert f"attach({group!r})" in said
    with Executor() as ex:
        assert [task.result(20) for task in ex.attach(group)] == [None]


def test_open_tasks_are_bounded(ex: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """submit() blocks at the high-water mark until something ends."""
    monkeypatch.setattr("funcmq.client.executor.HIGH_WATER", 50)
    futures = []
    for number in range(400):
        futures.append(ex.submit(double, number))
        assert sum(not future.done() for future in futures) <= 51
    assert sum(future.result(20) for future in futures) == sum(range(0, 800, 2))
