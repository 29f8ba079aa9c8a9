"""Good tasks around bad ones, and what every error has to say."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from funcmq import Client, TaskFuture, errors

NEIGHBOURS = 40


def act(what: str, number: int) -> Any:
    """One function for good and bad calls alike, so that they share a packet once it is known to be short."""
    match what:
        case "os._exit":
            os._exit(number)
        case "sys.exit":
            sys.exit(number)
        case "lock":
            return threading.Lock()
        case "large":
            return bytes(number)
        case "import":
            importlib.import_module("no_such_module_here")
    return number * 3


def noted(path: str, number: int) -> int:
    """Append a line to a file outside of the system: how often each number was run is counted there."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"%d\n" % number)
    os.close(file)
    return number * 3


def ran_once(path: Path, count: int) -> bool:
    """Whether each of the numbers below count was run exactly once."""
    return sorted(map(int, path.read_text().split())) == list(range(count))


class Neighbours:
    """Good tasks submitted before and after whatever is wrong, in one turn of the event loop: they share its bundle, where it has one."""

    def __init__(self, fx: Client, count: int = NEIGHBOURS) -> None:
        self._fx, self._count = fx, count
        self._tasks: list[TaskFuture[Any]] = []

    def __enter__(self) -> None:
        self._submit()

    def __exit__(self, *_: object) -> None:
        self._submit()

    def _submit(self) -> None:
        self._tasks += [self._fx.submit(act, "good", len(self._tasks) + number) for number in range(self._count // 2)]

    async def check(self) -> None:
        """Every one of them has its own result, from its first run."""
        assert await self._fx.gather(self._tasks) == [number * 3 for number in range(len(self._tasks))]
        assert {task.state for task in self._tasks} == {"succeeded"}
        assert {task.outcome.attempt for task in self._tasks if task.outcome} == {1}


async def error_of(task: TaskFuture[Any], kind: type[errors.FuncmqError], *words: str) -> errors.FuncmqError:
    """The error of a task: exactly this one, with these words and with a hint."""
    with pytest.raises(kind) as raised:
        await task
    well_said(raised.value, kind, *words)
    return raised.value


def well_said(error: errors.FuncmqError, kind: type[errors.FuncmqError], *words: str) -> None:
    """It has the name of the interface, says these words, and what to do next."""
    assert error.code == kind.__name__
    assert error.message
    assert error.hint
    assert not [word for word in words if word not in str(error)], str(error)
