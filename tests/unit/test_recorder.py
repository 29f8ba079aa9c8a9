"""A recorder makes a record once, and never gives out a stale one."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from funcmq.broker.functions import make_record
from funcmq.client.recorder import Recorder
from tests.unit.test_functions import scale


def globals_of(source: str) -> dict[str, Any]:
    """What a cell of a notebook defines."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(source, names)
    return names


def test_an_unchanged_function_is_not_pickled_again() -> None:
    """A function whose variables are all immutable keeps its record, the very object."""
    recorder = Recorder()
    names = globals_of("import math, re, logging\nN = 3\nP = re.compile('x')\nL = logging.getLogger('x')\ndef g(x): return x\n")
    exec("def f(x): return math.floor(g(x)) + N, P, L", names)
    assert recorder.record(names["f"]) is recorder.record(names["f"])
    assert recorder.record(scale) is recorder.record(scale)
    assert recorder.record(math.sqrt) is recorder.record(math.sqrt)
    assert isinstance(names["P"], re.Pattern)
    assert isinstance(names["L"], logging.Logger)


@pytest.mark.parametrize(
    "change",
    [
        "N = 4",
        "T = (1, 3)",
        "D[1] = 2",
        "C.x = 2",
        "f.__defaults__ = (5,)",
        "f.__kwdefaults__['k'] = 8",
        "f.__code__ = (lambda x, *, k: 9).__code__",
        "g.__defaults__ = (6,)",
        "def g(): return 7",
        "def h(): return 1",
        "f.note = 1",
    ],
)
def test_a_changed_function_is_never_stale(change: str) -> None:
    """Whatever is edited, rebound or changed in place, in the function or in what it calls, the next record has it."""
    recorder = Recorder()
    uses = "D" if change.startswith("D") else "C" if change.startswith("C") else "h" if "h()" in change else "N"
    names = globals_of(
        f"N = 3\nT = (1, 2)\nD = {{}}\nclass C: x = 1\ndef g(y=1): return y\ndef f(x=1, *, k=2): return N + T[0] + g() + {uses}"
    )
    before = recorder.record(names["f"])
    exec(change, names)
    after = recorder.record(names["f"])
    assert after.id != before.id
    assert after.id == make_record(names["f"]).id or uses == "C"


def test_a_changed_closure_is_never_stale() -> None:
    """A closure variable that is rebound, or changed in place, is in the next record."""

    def make() -> tuple[Callable[[], Any], Callable[[], None], list[int]]:
        value, inside = 1, [1]

        def read() -> Any:
            return value, inside

        def change() -> None:
            nonlocal value
            value += 1

        return read, change, inside

    recorder = Recorder()
    read, change, inside = make()
    first = recorder.record(read).id
    change()
    second = recorder.record(read).id
    inside.append(2)
    assert len({first, second, recorder.record(read).id}) == 3


def test_the_memory_of_a_recorder_is_bounded() -> None:
    """Only the last functions are remembered; the others are pickled again, with the same id."""
    recorder = Recorder(size=2)
    functions = [globals_of(f"def f(): return {index}")["f"] for index in range(3)]
    made = [recorder.record(function) for function in functions]
    assert recorder.record(functions[2]) is made[2]
    assert recorder.record(functions[0]) is not made[0]
    assert recorder.record(functions[0]).id == made[0].id
