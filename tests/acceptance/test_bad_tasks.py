"""Tasks that cannot travel or end badly get a named error that says what happened and what to do next; their neighbours go on."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from funcmq import Client, errors
from funcmq.broker import codec
from funcmq.broker.messages import MAX_INLINE
from tests.acceptance.neighbours import NEIGHBOURS, Neighbours, act, error_of

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def test_an_argument_that_cannot_be_pickled_is_not_serializable(fx: Client) -> None:
    """It fails here, at once, and names what cannot travel."""
    neighbours = Neighbours(fx)
    with neighbours:
        wrong = fx.submit(act, "good", threading.Lock())  # type: ignore[arg-type]
        assert wrong.done()
    await error_of(wrong, errors.NotSerializable, "arguments", "lock")
    await neighbours.check()


async def test_tasks_that_end_badly_leave_their_packet_alone(fx: Client) -> None:
    """Short tasks share packets, bundles and a process with one that ends badly in each way there is: only that one has an error."""
    assert await fx.gather([fx.submit(act, "good", number) for number in range(NEIGHBOURS)]) == [n * 3 for n in range(NEIGHBOURS)]
    around = [Neighbours(fx) for _ in range(5)]
    bad = {}
    for what, number, neighbours in zip(
        ("os._exit", "sys.exit", "lock", "large", "import"), (3, 4, 0, MAX_INLINE + 1, 0), around, strict=True
    ):
        with neighbours:
            bad[what] = fx.submit(act, what, number)
    died = await error_of(bad["os._exit"], errors.WorkerDied, "3")
    await error_of(bad["lock"], errors.NotSerializable, "result", "lock")
    await error_of(bad["import"], errors.ImportFailed, "'no_such_module_here'", "by_value")
    large = await error_of(bad["large"], errors.PayloadTooLarge, f"{MAX_INLINE:,}", "path")
    with pytest.raises(errors.TaskFailed) as left:
        await bad["sys.exit"]
    assert not isinstance(left.value, SystemExit)
    assert (left.value.code, left.value.type_name) == ("TaskFailed", "SystemExit")
    assert "sys.exit(number)" in left.value.remote_traceback
    for neighbours in around:
        await neighbours.check()
    assert bad["os._exit"].id in "".join(died.__notes__)
    kept = Path(next(word for word in large.message.split() if word.startswith("/")).rstrip("."))
    assert codec.unpack_plain(kept.read_bytes()) == bytes(MAX_INLINE + 1), "nothing computed is thrown away"


LONELY = """
class Point:
    def __init__(self, x): self.x = x

def triple(number): return number * 3

def of_point(point): return point.x

def moved(point): return Point(point.x + 1)
"""


@pytest.fixture
def lonely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that only this process can import."""
    (tmp_path / "lonely_module.py").write_text(LONELY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lonely_module", raising=False)
    return importlib.import_module("lonely_module")


async def test_a_module_missing_on_the_worker_is_import_failed(fx: Client, lonely: ModuleType) -> None:
    """Of the function or of an argument, by reference: the error names the module, and what its hint says works."""
    neighbours = Neighbours(fx)
    by_reference = fx.on(by_value=False)
    with neighbours:
        wrong = [by_reference.submit(lonely.triple, 2), by_reference.submit(len, [lonely.Point(1)])]
    for task in wrong:
        await error_of(task, errors.ImportFailed, "'lonely_module'", "by_value=[module]")
    await neighbours.check()
    by_value = fx.on(by_value=[lonely])
    assert await by_value.submit(lonely.triple, 2) == 6
    assert await by_value.submit(lonely.of_point, lonely.Point(7)) == 7
    moved = await fx.submit(lonely.moved, lonely.Point(7))  # as by default with modules outside site-packages
    assert (type(moved), moved.x) == (lonely.Point, 8)
