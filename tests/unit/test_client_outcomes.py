"""Laws of failures: the waiting side sees the original type where it can, the words always, and building an exception never raises."""

import pickle
import subprocess
import sys
import traceback
import types
from typing import Any

import pytest

from funcmq.broker import errors
from funcmq.broker.codec import pack_plain
from funcmq.broker.messages import Failure
from funcmq.client.outcomes import Where, chunk_failure, failure_to_error, find_type

WHERE = Where("ab" * 16, "f", "cd" * 16, "polaris", "nid0012")


def failed(type_name: str, *args: Any, message: str = "words", code: str = "TaskFailed") -> errors.FuncmqError:
    packed = pack_plain(list(args)) if args else None
    return failure_to_error("failed", Failure(code, message, type_name, "Traceback…\nremote line\n", packed), WHERE)


class OddError(Exception):
    """Wants more arguments than it passes on, and has attributes of its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.number = code


class RaisingError(Exception):
    def __new__(cls, *args: Any) -> Any:
        raise RuntimeError("no")


class SlottedError(Exception):
    __slots__ = ("x",)


class NoSubclassError(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("no subclasses")


def test_a_builtin_is_caught_as_itself() -> None:
    """`except ValueError` works, the message is the original's, and all that is known of the remote side is on it."""
    error = failed("ValueError", "words")
    with pytest.raises(ValueError, match="words"):
        raise error
    assert isinstance(error, errors.TaskFailed)
    assert (error.task, error.endpoint, error.host) == (WHERE.task, WHERE.endpoint, "nid0012")
    assert error.remote_traceback == "Traceback…\nremote line\n"
    assert error.args == ("words",)
    assert type(error) is type(failed("ValueError", "other"))
    assert error.code == "TaskFailed"


def test_it_prints_the_remote_side() -> None:
    """A printed traceback contains the remote one, the task, the endpoint's name and the host."""
    text = "".join(traceback.format_exception(failed("KeyError", "k", message="'k'")))
    for part in ("remote line", "polaris", "nid0012", WHERE.task, "KeyError: 'k'"):
        assert part in text


@pytest.mark.parametrize(
    ("type_name", "args", "check"),
    [
        ("OSError", (2, "No such file", "/x"), lambda e: (e.errno, e.filename) == (2, "/x")),
        ("FileNotFoundError", (2, "No such file"), lambda e: e.errno == 2),
        ("UnicodeDecodeError", ("utf-8", b"\xff", 0, 1, "bad"), lambda e: e.reason == "bad"),
        ("ImportError", ("x",), lambda e: e.msg == "x"),
        ("KeyError", ("k",), lambda e: e.args == ("k",)),
        ("TimeoutError", (), lambda e: isinstance(e, OSError)),
        ("subprocess.CalledProcessError", (3, ["ls"]), lambda e: e.returncode == 3),
        ("json.decoder.JSONDecodeError", ("msg",), lambda e: isinstance(e, ValueError)),
    ],
)
def test_attributes_of_known_types_are_there(type_name: str, args: tuple[Any, ...], check: Any) -> None:
    """Where an exception's own arguments are plain data, its attributes are what they were."""
    assert subprocess is not None
    error: Any = failed(type_name, *args)
    assert isinstance(error, errors.TaskFailed)
    assert isinstance(error, find_type(type_name) or Exception)
    assert check(error)


@pytest.mark.parametrize("cls", [OddError, RaisingError, SlottedError, NoSubclassError])
def test_odd_types_never_break_the_waiting_side(cls: type[Exception]) -> None:
    """Whatever the original type does when it is made, what comes out is a TaskFailed with the words."""
    error = failed(f"{__name__}.{cls.__name__}", "only one")
    assert isinstance(error, errors.TaskFailed)
    assert "words" in str(error)
    assert isinstance(error, cls) == (cls in (OddError, SlottedError))


@pytest.mark.parametrize(
    "type_name", ["StopIteration", "StopAsyncIteration", "SystemExit", "KeyboardInterrupt", "GeneratorExit", "nosuch.Error", "int", "print"]
)
def test_what_is_no_proper_exception_is_plain(type_name: str) -> None:
    """Types that mean something to Python itself, are unknown here or are no exceptions become TaskFailed, which names them."""
    error = failed(type_name)
    assert type(error) is errors.TaskFailed
    assert error.type_name == type_name
    assert str(error).startswith(f"{type_name}: words")


def test_types_are_looked_up_and_never_imported() -> None:
    """Naming a module that is not imported imports nothing, and a module's __getattr__ is not run."""
    assert find_type("xmlrpc.client.Fault") is None or "xmlrpc.client" in sys.modules
    before = set(sys.modules)
    find_type("antigravity.Error")
    assert set(sys.modules) == before
    lazy = types.ModuleType("lazy_module_of_test")
    lazy.__getattr__ = pytest.fail  # type: ignore[method-assign]
    sys.modules["lazy_module_of_test"] = lazy
    try:
        assert find_type("lazy_module_of_test.Error") is None
    finally:
        del sys.modules["lazy_module_of_test"]


def test_a_remote_task_error_does_not_look_like_our_own() -> None:
    """A function that itself met a cancelled task has failed; it was not cancelled."""
    error = failed("funcmq.broker.errors.TaskCancelled")
    assert type(error) is errors.TaskFailed
    assert isinstance(failed("funcmq.broker.errors.NotFound"), errors.NotFound)


@pytest.mark.parametrize("code", [code for code, cls in errors.TABLE.items() if issubclass(cls, errors.TaskError) and code != "TaskFailed"])
def test_other_ends_have_their_names(code: str) -> None:
    """Every other end of a task is the error of the table, with its hint."""
    error = failed("", code=code)
    assert type(error) is errors.TABLE[code]
    assert error.message == "words"


@pytest.mark.parametrize(
    ("state", "cls"), [("cancelled", errors.TaskCancelled), ("expired", errors.TaskExpired), ("lost", errors.TaskLost)]
)
def test_an_end_without_a_reason_has_one(state: Any, cls: type[Exception]) -> None:
    """Where nobody said why, the state says it."""
    assert type(failure_to_error(state, None, WHERE)) is cls


def test_it_survives_pickling() -> None:
    """An exception that crosses a process pool keeps type, words and where it happened."""
    again = pickle.loads(pickle.dumps(failed("OSError", 2, "words")))
    assert isinstance(again, OSError)
    assert isinstance(again, errors.TaskFailed)
    assert (again.errno, again.task, again.host) == (2, WHERE.task, "nid0012")
    assert again.__notes__


@pytest.mark.parametrize("said", [[], None, ["Nonsense", 3], ["ValueError"] * 9, ["TaskFailed", "m", "ValueError", "", "not bytes", ""]])
def test_malformed_chunk_failures_are_failures(said: Any) -> None:
    """Whatever an endpoint says of a call in a chunk, it is a TaskFailed or an error of the table."""
    assert isinstance(failure_to_error("failed", chunk_failure(said), WHERE), errors.FuncmqError)
