"""Function records: the same source gives the same id, what changes gives another, and what comes back runs."""

from __future__ import annotations

import functools
import json
import linecache
import math
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import cloudpickle
import pytest

from funcmq.broker import codec, values
from funcmq.broker.errors import EnvironmentMismatch, InvalidRequest, NotSerializable, PayloadTooLarge
from funcmq.broker.functions import make_record, pack
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.broker.modules import is_local
from funcmq.endpoint.worker.load import load

FACTOR = 3


def scale(x: int, by: int = 2) -> int:
    """Multiply."""
    return x * by * FACTOR


def again(function: Callable[..., Any], **how: Any) -> Any:
    """The function as a worker gets it."""
    recorded = make_record(function, **how)
    return load(recorded.record, recorded.id, recorded.places)


def record(function: Callable[..., Any]) -> FunctionRecord:
    return codec.decode(FunctionRecord, make_record(function).record)


# The same source, the same id

SCRIPT = '''
import helper
NAMES = {"alpha", "beta", "gamma", "delta"}
def f(x, y=("a", "b")):
    """Look it up."""
    if x in {"one", "two", "three", "four", ("five", "six")}:
        return x
    def inner(z):
        return z in NAMES or [n for n in NAMES if n == z]
    return inner(x), helper.look(x)
from funcmq.broker.functions import make_record
print(make_record(f).id, make_record(lambda a: a in {"x", "y", b"z", 1, None}).id, make_record(helper.look).id)
'''
HELPER = """
KNOWN = frozenset({"red", "green", "blue"})
def look(x):
    return x in KNOWN or x in {"cyan", "magenta", "yellow"}
"""


def ids(folder: Path, name: str, seed: str, before: str = "") -> list[str]:
    """What a script with this name says, run in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "helper.py").write_text(HELPER)
    (folder / name).write_text(before + SCRIPT)
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, str(folder / name)], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_same_source_has_the_same_id_everywhere(tmp_path: Path) -> None:
    """Hash seed, file name, folder, line offset and whether helpers come from a .pyc change no id."""
    first = ids(tmp_path / "a", "one.py", "1")
    assert len(set(first)) == 3
    assert ids(tmp_path / "a", "one.py", "2") == first
    assert ids(tmp_path / "b", "two.py", "3") == first
    assert ids(tmp_path / "a", "three.py", "4", before="import json, os\n# a comment\nused = ['alpha', 'f', 'cyan']\n\n\n") == first


def test_what_a_function_refers_to_is_part_of_its_id() -> None:
    """Another closure value, default, constant or global gives another id."""

    def make(value: int) -> Callable[[], int]:
        return lambda: value

    def one(x: int = 1) -> int:
        return x + 1

    def other(x: int = 2) -> int:
        return x + 1

    def constant(x: int = 1) -> int:
        return x + 2

    other.__name__ = constant.__name__ = one.__name__
    other.__qualname__ = constant.__qualname__ = one.__qualname__
    assert make_record(make(1)).id == make_record(make(1)).id != make_record(make(2)).id
    assert len({make_record(function).id for function in (one, other, constant)}) == 3
    before = make_record(scale).id
    changed = FunctionType(scale.__code__, {**scale.__globals__, "FACTOR": 4}, "scale", scale.__defaults__)
    assert make_record(changed).id != before


def test_an_id_is_the_hash_of_the_record() -> None:
    """The id is the SHA-256 of the bytes, which name the function, its Python and its source."""
    recorded = make_record(scale)
    assert recorded.id == sha256(recorded.record)
    assert recorded.ref.name == recorded.name
    found = record(scale)
    assert (found.python, found.source) == (
        f"{sys.version_info.major}.{sys.version_info.minor}",
        "FACTOR = 3\n\n\n" + textwrap.dedent(_source_here("def scale")),
    )
    assert str(Path(__file__).parent).encode() not in recorded.record


def _source_here(start: str) -> str:
    lines = Path(__file__).read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    last = next(index for index in range(first + 1, len(lines)) if not lines[index].strip())
    return "".join(lines[first:last])


# What can be sent


class Adder:
    def __init__(self, to: int) -> None:
        self.to = to

    def add(self, x: int) -> int:
        return self.to + x

    def __call__(self, x: int) -> int:
        return self.add(x)


async def later(x: int) -> int:
    return x + 1


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (scale, 5),
        (lambda x: x + FACTOR, 1),
        (functools.partial(scale, by=7), 2),
        (Adder(3).add, 4),
        (Adder(3), 4),
        (math.sqrt, 2.0),
        (json.dumps, [1]),
        (str.upper, "x"),
        (int, "7"),
    ],
)
def test_what_comes_back_does_the_same(function: Callable[..., Any], argument: Any) -> None:
    """Functions, lambdas, partials, methods, callable objects, builtins and types give the same result after the way."""
    assert again(function)(argument) == function(argument)


def test_local_functions_travel_without_their_module(tmp_path: Path) -> None:
    """Functions of local modules and of `__main__`, of a dataclass too, run in a process that has neither; imported ones go by name."""
    (tmp_path / "nearby.py").write_text("import math\nLIMIT = 2\ndef cut(x):\n    return min(math.floor(x), LIMIT)\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import dataclasses, sys, nearby
        from nearby import cut
        @dataclasses.dataclass
        class Point:
            x: float
        def f(x):
            return Point(cut(x) + nearby.LIMIT).x
        from funcmq.broker.functions import make_record
        made = make_record(f)
        sys.stdout.write(made.record.hex() + " " + made.id)
        """)
    )
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=True)
    data, expected = done.stdout.split()
    assert load(bytes.fromhex(data), expected)(7.5) == 4
    assert b"dumps" in make_record(json.dumps).record
    assert len(make_record(json.dumps).record) < 200


def test_a_notebook_cell_is_like_main() -> None:
    """A function made by exec under a name that is no file travels by value, and its source with it where linecache knows it."""
    cell, name = "def f(x):\n    return x + OFFSET\n", "<ipython-input-7-aa>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "__main__", "OFFSET": 10}
    exec(compile(cell, name, "exec"), names)
    assert again(names["f"])(1) == 11
    assert make_record(names["f"]).name == "f"
    assert record(names["f"]).source == "OFFSET = 10\n\n\n" + cell


def test_by_value_is_chosen() -> None:
    """Modules outside the installed ones go by value, unless it is declined; a module of the standard library goes by value when named."""
    assert is_local(sys.modules[__name__])
    assert not any(is_local(module) for module in (json, pytest, cloudpickle, sys.modules["funcmq.broker.ids"], ModuleType("x"), 3))
    assert len(make_record(scale, by_value=False).record) < len(make_record(scale).record)
    assert make_record(scale, by_value=True).id == make_record(scale).id
    assert len(make_record(textwrap.dedent, by_value=[textwrap]).record) > 1000
    assert again(textwrap.dedent, by_value=[textwrap])("  x") == "x"
    with pytest.raises(InvalidRequest, match="by_value"):
        make_record(scale, by_value=["textwrap"])  # type: ignore[list-item]


def test_arguments_of_local_classes_travel_without_their_module() -> None:
    """Arguments go as their function does: an object of a local class by value, unless that is declined, and plain data as msgpack."""
    by_value, by_name = pack(Adder(3)), pack(Adder(3), by_value=False)
    assert values.unpack(by_value).add(4) == 7
    assert (by_value.encoding, by_name.encoding, pack([1]).encoding) == ("pickle", "pickle", "msgpack")
    assert len(by_value.data) > len(by_name.data)
    with pytest.raises(PayloadTooLarge):
        pack(b"x" * 100, limit=50)


def test_the_registry_of_cloudpickle_is_left_as_it_was() -> None:
    """Modules that the user registered stay, ours go, after a failure too."""
    cloudpickle.register_pickle_by_value(json)
    try:
        make_record(scale)
        with pytest.raises(NotSerializable):
            make_record(functools.partial(isinstance, threading.Lock()))
        assert cloudpickle.list_registry_pickle_by_value() == {"json"}
    finally:
        cloudpickle.unregister_pickle_by_value(json)


def test_what_cannot_be_sent_is_named() -> None:
    """The error names the function, the variable and the type of what is in the way."""
    lock = threading.Lock()

    def locked() -> bool:
        return lock.locked()

    with pytest.raises(NotSerializable, match=r"locked cannot be sent: its closure variable 'lock' holds a _thread.lock"):
        make_record(locked)
    with pytest.raises(NotSerializable, match=r"argument 0 of the partial holds a _thread.lock"):
        make_record(functools.partial(isinstance, lock))
    with pytest.raises(InvalidRequest, match="int cannot be called"):
        make_record(3)  # type: ignore[arg-type]


def test_source_travels_only_where_it_stands_alone(tmp_path: Path) -> None:
    """No source for closures and lambdas, none that is no longer what runs, and none over the limit."""
    value = 3

    def closure() -> int:
        return value

    assert record(closure).source is None
    assert record(lambda: 1).source is None
    file = tmp_path / "edited.py"
    file.write_text("def f():\n    return 1\n")
    names: dict[str, Any] = {"__name__": "edited"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    file.write_text("def f():\n    return g()\n")
    assert record(names["f"]).source is None


# Loading


def test_a_record_is_checked() -> None:
    """Other bytes than the id says, and a record of another Python, are refused before anything is loaded."""
    recorded = make_record(scale)
    with pytest.raises(InvalidRequest):
        load(recorded.record + b"x", recorded.id)
    other = codec.encode(FunctionRecord(1, "pickle", "f", "2.7", b"garbage", None))
    with pytest.raises(EnvironmentMismatch, match=r"2\.7"):
        load(other, sha256(other))


def failing(x: int) -> float:
    def inner(y: int) -> float:
        divide: Callable[[int], float] = lambda z: z / 0  # noqa: E731 (a code object of its own, on a line of its own)
        return divide(y)

    return inner(x)


def test_tracebacks_have_places_again() -> None:
    """Every code object gets its own file and first line back, and nothing else of it changes."""

    def trace(function: Callable[..., Any]) -> list[str]:
        try:
            function(1)
        except ZeroDivisionError as broken:
            return traceback.format_tb(broken.__traceback__)[1:]
        return []

    assert trace(again(failing)) == trace(failing)
    assert len(trace(failing)) == 3
    recorded = make_record(failing)
    assert 'File "", line' in trace(load(recorded.record, recorded.id))[0]


def test_source_of_a_file_that_is_not_here_is_shown(tmp_path: Path) -> None:
    """A traceback shows lines of a file that only the client has, and marks the right place in them."""
    file = tmp_path / "gone.py"
    file.write_text("\n\nif True:\n    def f(x):\n        y = 1\n        return y + x / 0\n")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    recorded = make_record(names["f"])

    def last(function: Callable[..., Any]) -> str:
        try:
            function(1)
        except ZeroDivisionError as broken:
            return traceback.format_tb(broken.__traceback__)[-1]
        return ""

    here = last(names["f"])
    file.unlink()
    linecache.clearcache()
    shown = last(load(recorded.record, recorded.id, recorded.places))
    assert shown == here
    assert "return y + x / 0\n" in shown
    assert "line 6, in f" in shown
