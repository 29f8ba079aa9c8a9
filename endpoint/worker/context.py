"""What a task may know about itself while it runs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from funcmq.broker.errors import InvalidRequest


class CurrentTask:
    """The task that this process runs now: `id` (32 hex digits), `attempt` (1 for the first execution)."""

    __slots__ = ("_deadline", "_scratch", "attempt", "id")

    def __init__(self, task: str, attempt: int, deadline: float | None) -> None:
        self.id = task
        self.attempt = attempt
        self._deadline = deadline
        self._scratch: Path | None = None

    def __repr__(self) -> str:
        return f"<CurrentTask {self.id} attempt {self.attempt}>"

    @property
    def scratch(self) -> Path:
        """An empty folder on this node's own disk, made at first use and removed with everything in it when the task ends."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix=f"{self.id[-8:]}-", dir=_slot.home))
        return self._scratch

    @property
    def walltime_left(self) -> float | None:
        """Seconds until this task is ended; None where it has no walltime."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def close(self) -> None:
        """It has ended: remove what it made."""
        if self._scratch is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._scratch)


class Slot:
    """Where the child says which task it runs.  One per process: threads of a task are to see it too, so it is no context variable."""

    def __init__(self) -> None:
        self.home: str | None = None
        self.task: CurrentTask | None = None

    def enter(self, task: CurrentTask) -> None:
        """This task runs from now on."""
        self.task = task

    def leave(self) -> None:
        """It has ended."""
        if self.task is not None:
            self.task.close()
            self.task = None


_slot = Slot()


def slot() -> Slot:
    """The one of this process."""
    return _slot


def current_task() -> CurrentTask:
    """The task that calls this.

    :raises InvalidRequest: it is not called by a task on a worker.
    """
    if _slot.task is None:
        raise InvalidRequest(
            "There is no current task: this code does not run on a worker.",
            hint="Call current_task() inside a function that was submitted.",
        )
    return _slot.task
