"""Functions as programs: what they hold is enough, what cannot be one says why, and what comes back does the same."""

from __future__ import annotations

import asyncio
import calendar
import importlib.util
import json
import linecache
import logging
import math
import re
import sys
import textwrap
import traceback
import xml.etree.ElementTree
from base64 import b64encode as common
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from funcmq.broker import codec
from funcmq.broker.errors import EnvironmentMismatch, NotSerializable
from funcmq.broker.functions import make_record
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.broker.values import PYTHON
from funcmq.client.functions import Functions
from funcmq.endpoint.worker.load import load

FACTOR = 3
SEEN = {"b", "a", 3}, frozenset({(1, 2)}), set[int](), re.compile("x+", re.IGNORECASE), logging.getLogger("far"), Path("/x")
LIMITS = {"low": (1, 2.5), "high": [b"x", None, float("inf")]}
renamed = math.floor


def by_source(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a worker with another Python gets it."""
    recorded = make_record(function, strategy="source")
    return load(recorded.record, recorded.id, recorded.places)


def cell(source: str) -> dict[str, Any]:
    """What a notebook's cell defines; its source can be found."""
    name = f"<cell {sha256(source.encode())[:8]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec", dont_inherit=True), names)
    return names


def module(folder: Path, name: str, source: str) -> ModuleType:
    """A module of this source."""
    (folder / f"{name}.py").write_text(source)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def halve(x: float) -> float:
    return x / 2


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


def busy(x: float, by: int = FACTOR, *more: int, unit: tuple[Any, ...] = (LIMITS["low"][1], math.pi), **rest: Any) -> Any:
    """Uses a bit of everything."""

    def inner(y: float) -> float:
        return halve(y) + sum(value for value in more if value > FACTOR)

    node = xml.etree.ElementTree.fromstring("<a b='1'/>")
    imported = calendar.monthrange(2024, 2), bisect([1, 2], 1), common(b"ab"), SEEN[3].findall("XX")
    return SEEN, imported, renamed(inner(x)) * by, unit, json.dumps(rest), node.get("b"), LIMITS, OrderedDict(a=1)


async def later(x: int) -> int:
    await asyncio.sleep(0)
    return x + FACTOR


def test_a_program_does_the_same() -> None:
    """Imports, plain globals, defaults, other functions, nested ones, recursion and coroutines: all are there."""
    assert by_source(busy)(7, 2, 5, z=1) == busy(7, 2, 5, z=1)
    assert by_source(busy)(7) == busy(7)
    assert by_source(even)(7) is False
    assert asyncio.run(by_source(later)(1)) == 4
    assert by_source(busy).__defaults__ == busy.__defaults__


def test_a_program_has_the_same_id_in_every_python() -> None:
    """With strategy='source' nothing in a record depends on the Python that made it; with 'auto' it says which."""
    made = codec.decode(FunctionRecord, make_record(busy, strategy="source").record)
    assert (made.kind, made.python, made.code, made.needs) == ("source", "", b"", "")
    both = codec.decode(FunctionRecord, make_record(busy).record)
    assert (both.kind, both.python, both.needs, both.source) == ("source", PYTHON, "", made.source)
    assert both.code
    pickled = make_record(busy, strategy="pickle")
    assert (codec.decode(FunctionRecord, pickled.record).needs, pickled.needs) == (PYTHON, PYTHON)


def test_a_record_of_another_python_runs_by_its_source() -> None:
    """What a worker cannot unpickle it runs from source; what has none is refused with both versions and what to do."""
    mine = codec.decode(FunctionRecord, make_record(busy).record)
    other = codec.encode(FunctionRecord(1, "source", "busy", "3.7", b"never looked at", mine.source))
    assert load(other, sha256(other))(7) == busy(7)
    pickled = codec.encode(FunctionRecord(1, "pickle", "busy", "3.7", b"never looked at", mine.source))
    with pytest.raises(EnvironmentMismatch, match=rf"busy was made by Python 3\.7 .* this worker has Python {PYTHON}") as refused:
        load(pickled, sha256(pickled))
    assert f"conda create -n funcmq-{PYTHON} python={PYTHON}" in refused.value.hint
    newer = codec.encode(FunctionRecord(1, "source", "f", "3.99", b"", "def f():\n    return 1 +* 2\n"))
    with pytest.raises(EnvironmentMismatch, match=r"f was made by Python 3\.99 and travels as source, which Python .* not understand"):
        load(newer, sha256(newer))


def test_what_is_imported_needs_no_python() -> None:
    """A function that the worker imports crosses versions as it is."""
    assert make_record(json.dumps).needs == ""
    assert make_record(halve, by_value=False).needs == ""


def test_decorators_are_left_here(tmp_path: Path) -> None:
    """A function under decorators travels without them, and tracebacks have its lines."""
    made = module(
        tmp_path,
        "decorated",
        textwrap.dedent("""
        from funcmq import function
        def register(*names):
            return lambda f: f
        @register(
            "a",
            "b",
        )
        @function
        # a comment
        def f(x,
              y=[
                  1, 2], *, z=register):
            if x:
                return f(x - 1) + y
            return x / 0
        """),
    )
    plain = made.f.__funcmq_function__
    plain.__kwdefaults__ = {"z": "plain now"}
    back = by_source(plain)
    recorded = make_record(plain, strategy="source")
    source = codec.decode(FunctionRecord, recorded.record).source or ""
    assert source.startswith('# @register(\n#     "a",\n')
    with pytest.raises(ZeroDivisionError) as there:
        back(0)
    with pytest.raises(ZeroDivisionError) as here:
        plain(0)
    assert traceback.format_tb(there.value.__traceback__)[1:] == traceback.format_tb(here.value.__traceback__)[1:]
    (tmp_path / "decorated.py").unlink()
    linecache.clearcache()
    with pytest.raises(ZeroDivisionError) as gone:
        by_source(plain)(0)
    assert traceback.format_tb(gone.value.__traceback__)[1:] == traceback.format_tb(here.value.__traceback__)[1:]
    del sys.modules["decorated"]


def test_annotations_are_not_evaluated() -> None:
    """A program needs nothing of what stands in annotations only."""
    names = cell("class Point: pass\ndef f(p: Point = None) -> 'list[Point]':\n    def g(q: Point) -> Point: return q\n    return g(4)\n")
    assert by_source(names["f"])() == 4
    later = cell("from __future__ import annotations\nclass Point: pass\ndef f(p: Point) -> Point:\n    return p\n")
    assert by_source(later["f"])(3) == 3


def test_helpers_of_local_modules_come_along(tmp_path: Path) -> None:
    """Functions of modules that travel by value are in the program, under every name they are used by; the modules themselves cannot be."""
    helper = module(tmp_path, "helper", "import math\nLIMIT = 2\ndef cut(x):\n    return min(math.floor(x), LIMIT)\n")
    names = cell("def f(x):\n    return trim(x)\ndef g(x):\n    return helper.cut(x)\ndef h(x):\n    return trim(x) + LIMIT\n")
    names |= {"trim": helper.cut, "helper": helper, "LIMIT": 7}
    assert by_source(names["f"])(7.5) == 2
    with pytest.raises(NotSerializable, match="it uses the module 'helper', which is not installed"):
        make_record(names["g"], strategy="source")
    with pytest.raises(NotSerializable, match="different things by 'LIMIT'"):
        make_record(names["h"], strategy="source")
    recorded = make_record(names["g"], strategy="source", by_value=False)
    assert load(recorded.record, recorded.id)(7.5) == 2
    del sys.modules["helper"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("def make():\n    n = 1\n    def f(): return n\n    return f\nf = make()", "uses 'n' of the function around it"),
        ("f = lambda: 1", "it is a lambda"),
        ("class C:\n    def f(self): return self.__x\nf = C.f", "cannot be found"),
        ("import functools\nf = functools.partial(print, 1)", "no plain function but a partial"),
        ("from decimal import *\nD = Decimal(1)\ndef f(): return D", "'D', which is no plain data but a decimal.Decimal"),
        ("from decimal import *\ndef f(x=Decimal(1)): return x", r"has a default \(Decimal\(1\)\) that is no plain data"),
        ("class C: pass\ndef f(): return C()", "'C', a class that is defined here"),
        ("def g(): return 1\ng.note = 1\ndef f(): return g()", "g has attributes"),
        ("def f(x=1): return x\nf.__defaults__ = (1, 2)", "defaults of f were changed"),
        ("def f(x): return x\nf.__code__ = (lambda x: 2).__code__", "a lambda|cannot be found"),
    ],
)
def test_what_cannot_be_a_program_says_why(source: str, why: str) -> None:
    """With strategy='source' it is refused, with what is in the way and what to do; with 'auto' the record keeps the reason."""
    function = cell(source + "\n")["f"]
    with pytest.raises(NotSerializable, match=why) as refused:
        make_record(function, strategy="source")
    assert "strategy at 'auto'" in refused.value.hint
    recorded = make_record(function)
    assert (recorded.needs, recorded.why != "") == ((PYTHON, True) if recorded.places else ("", False))


def test_an_edited_file_is_not_what_runs(tmp_path: Path) -> None:
    """Source that was changed since the function was made, even by a constant alone, is not sent."""
    made = module(tmp_path, "edited", "def f():\n    return 1\n")
    (tmp_path / "edited.py").write_text("def f():\n    return 2\n")
    linecache.clearcache()
    with pytest.raises(NotSerializable, match="cannot be found, or is not what runs"):
        make_record(made.f, strategy="source")
    del sys.modules["edited"]


def test_a_client_knows_what_its_functions_need() -> None:
    """Each strategy has records of its own, and what needs one Python says why."""
    functions = Functions(lambda ref: None)
    auto, pickled = functions.ref(halve, "auto"), functions.ref(halve, "auto", "pickle")
    assert functions.needs(auto.id) == ("", "")
    assert functions.needs(pickled.id) == (PYTHON, 'it was submitted with strategy="pickle"')
    assert functions.ref(halve, "auto", "source").id not in (auto.id, pickled.id)
