"""A real process acts as a notebook: cells define, submit, edit and submit again, and no task ever sees what a cell has replaced."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from funcmq.dev.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(90)]

NOTEBOOK = '''
import json, linecache
numbers = iter(range(1000))
def cell(source):
    name = f"<ipython-input-{next(numbers)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), globals())
told = []
def run(source):
    cell(source)
    told.append([ex.submit(f, 2).result(60), *ex.map(f, [3]), g.submit(1).result(60)])
cell("from funcmq import Executor, function")
cell("ex = Executor()")
run("""
FACTOR, TABLE, LABELS = 10, {"a": 1}, ["x"]
class Box:
    size = 1
def scale(x): return x * FACTOR
def f(x, shift=5): return [scale(x) + shift, dict(TABLE), list(LABELS), Box.size, len({"one", "two"} & {"one"})]
@function
def g(x): return x + FACTOR
""")
run("FACTOR = 100")
run("TABLE['a'] = 2")
run("LABELS.append('y')")
run("Box.size = 3")
run("def scale(x): return -x * FACTOR")
run("f.__defaults__ = (0,)")
run("def f(x, shift=7): return 'new'")
run("pass")
print(json.dumps(told))
ex.shutdown()
'''


async def test_an_edited_notebook_is_never_stale(stack: Stack) -> None:
    """A global that is rebound or changed in place, a class, a helper, a default and the function itself: the next task has it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NOTEBOOK, env=os.environ | stack.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()

    def made(factor: int, shift: int, a: int, labels: str, size: int) -> list[object]:
        return [[x * factor + shift, {"a": a}, list(labels), size, 1] for x in (2, 3)]

    assert json.loads(said) == [
        [*made(10, 5, 1, "x", 1), 11],
        [*made(100, 5, 1, "x", 1), 101],
        [*made(100, 5, 2, "x", 1), 101],
        [*made(100, 5, 2, "xy", 1), 101],
        [*made(100, 5, 2, "xy", 3), 101],
        [*made(-100, 5, 2, "xy", 3), 101],
        [*made(-100, 0, 2, "xy", 3), 101],
        ["new", "new", 101],
        ["new", "new", 101],
    ]
