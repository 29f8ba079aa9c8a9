"""Laws of `funcmq run`, `funcmq task` and `funcmq function`, as typed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from funcmq import Executor
from funcmq.broker.ids import new_hex
from funcmq.cli import status
from tests.client_rig import double, nap

pytestmark = pytest.mark.usefixtures("configured")

MODULE = """
import sys
def add(a, b=1):
    print("adding")
    print("a warning", file=sys.stderr)
    return a + b
def divide(a):
    return 1 / a
"""


class Shell:
    """Types commands, and reads what they answer."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: str, exit: int = 0) -> tuple[str, str]:  # noqa: A002  the word for it
        self._capfd.readouterr()
        got = status(list(words))
        out, err = self._capfd.readouterr()
        assert got == exit, f"{words}: {got}\n{out}{err}"
        return out, err

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "-o", "json")[0])


@pytest.fixture
def funcmq(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / f"m{new_hex()}.py"
    path.write_text(MODULE)
    return str(path)


def test_run(funcmq: Shell, module: str) -> None:
    """Its result on stdout, the task's output on stderr; a failure shows type and traceback; a keyword given twice is refused."""
    out, err = funcmq("run", f"{module}:add", "1", "b=2")
    assert out == "3\n"
    assert "adding\na warning" in err
    _, err = funcmq("run", f"{module}:divide", "0", exit=1)
    assert "Error: ZeroDivisionError: division by zero" in err
    assert "in divide" in err
    _, err = funcmq("run", f"{module}:add", "1", "b=2", "b=3", exit=2)
    assert "b is given twice" in err


def test_what_became_of_tasks(funcmq: Shell, module: str) -> None:
    """list, show, wait, result, logs and retry find a task by its last digits, and name the exception's type."""
    funcmq("run", f"{module}:add", "20", "b=1")
    funcmq("run", f"{module}:divide", "0", exit=1)
    name = Path(module).stem
    rows = {row["function_name"]: row for row in funcmq.json("task", "list", "--since", "10m", "--limit", "2")}
    good, bad = (rows[f"{name}.{function}"]["id"][-8:] for function in ("add", "divide"))
    funcmq("task", "wait", good)
    _, err = funcmq("task", "wait", bad, exit=1)
    assert "ZeroDivisionError" in err
    out, _ = funcmq("task", "list", "--state", "failed", "--limit", "5")
    assert re.search(rf"{bad} +{name}\.divide +failed +dev +\d+ \w+ ago +\d.* ZeroDivisionError: division by zero", out)
    shown, _ = funcmq("task", "show", bad)
    assert re.search(r"ended +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(\d+ \w+ ago\)", shown)
    assert "failure        ZeroDivisionError: division by zero" in shown
    assert "in divide" in shown
    assert funcmq("task", "result", good)[0] == "21\n"
    assert funcmq("task", "logs", good) == ("adding\n", "a warning\n")
    assert funcmq.json("task", "logs", good)["stdout"] == "adding\n"
    again = funcmq("task", "retry", good)[0].strip()
    assert funcmq.json("task", "result", again) == 21
    assert funcmq.json("task", "list", "--function", f"{name}.add", "--limit", "1")[0]["id"] == again
    for words, code in ((("show", "deadbeef"), 6), (("show", ""), 2), (("list", "--since", "soon"), 2), (("list", "--group", "none"), 6)):
        funcmq("task", *words, exit=code)


def test_waiting_and_cancelling(funcmq: Shell) -> None:
    """wait gives up with 5 and says what the task waits for; cancel takes ids and groups."""
    with Executor() as ex:
        view = ex.on(group=f"shell/{new_hex()}")
        task, other = view.submit(nap, 60), view.submit(nap, 60)
        ex.flush()
        _, err = funcmq("task", "wait", task.id, "--timeout", "3", exit=5)
        assert "it goes on" in err
        assert re.search(r"running on \S+|waiting for a worker", err)
        funcmq("task", "cancel", task.id[-8:])
        _, err = funcmq("task", "cancel", "--group", other.group)
        assert "of them had not ended" in err or "ended already" in err
        for future in (task, other):
            assert future.exception(60) is not None
            assert future.cancelled()
        funcmq("task", "cancel", exit=2)


def test_named_functions(funcmq: Shell) -> None:
    """list, show, share and delete know functions by name and by the first digits of their id."""
    with Executor() as ex:
        me = funcmq.json("whoami")["name"]
        name = f"{me}/f{new_hex()[-8:]}"
        identifier = ex.register(double, name=name)
        row = next(row for row in funcmq.json("function", "list") if row["id"] == identifier)
        assert f"{name}@1" in row["names"]
        assert identifier in funcmq("function", "show", name)[0]
        assert "return 2 * number" in funcmq("function", "show", identifier[:16])[0]
        _, err = funcmq("function", "share", name, "nobody-here", exit=6)
        assert "nobody-here" in err
        funcmq("function", "delete", name)
        funcmq("function", "show", name, exit=6)
        assert ex.submit(identifier, 4).result(60) == 8
