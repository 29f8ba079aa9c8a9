"""Values too large for HTEX, as files in the pool's shared folder: arguments on their way to a worker, results on their way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from funcmq.broker.errors import NotSerializable
from funcmq.broker.messages import Failure, Inline
from funcmq.endpoint.functions import write_whole
from funcmq.endpoint.tasks import Task
from funcmq.endpoint.worker.packet import SPILL, Done, Member, Spill

FOLDER = "spill"


def is_large(task: Task) -> bool:
    """Whether the arguments of this task pass as a file."""
    args = task.call.args
    return isinstance(args, Inline) and len(args.data) > SPILL


def member(task: Task, args: Inline | Spill | None = None) -> Member:
    """The task as a packet carries it; `args` replaces arguments that pass as a file."""
    call, options, function = task.call, task.options, task.function
    if args is None:
        assert isinstance(call.args, Inline), "checked when the bundle came"
        args = call.args
    return Member(task.id, function.id, function.name, function.places, options.kind, args, options.walltime_s, task.attempts)


def arguments(shared: Path, task: Task) -> Path:
    """Where the arguments of this attempt are."""
    return shared / FOLDER / f"{task.id.hex()}.{task.attempts}.args"


def remove(paths: Iterable[Path]) -> None:
    """Remove files that may be gone already.  Blocks."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def spilled_members(shared: Path, tasks: list[Task]) -> list[Member]:
    """The tasks of a packet, those with large arguments written to files.  Blocks."""
    return [member(task, _spill(shared, task) if is_large(task) else None) for task in tasks]


def _spill(shared: Path, task: Task) -> Spill:
    args = task.call.args
    assert isinstance(args, Inline), "checked when the bundle came"
    path = arguments(shared, task)
    write_whole(path, args.data)
    return Spill(args.encoding, str(path.relative_to(shared)), len(args.data))


def bring_back(shared: Path, done: Done) -> Done:
    """The same with its value in memory; the file is removed.  Blocks."""
    value = done.value
    if not isinstance(value, Spill):
        return done
    path = shared / FOLDER / Path(value.path).name  # a worker's word is not taken for where to read
    try:
        data = path.read_bytes()
    except OSError as missing:
        error = NotSerializable(
            f"Its result could not be read back from {path}: {missing.strerror}.",
            hint="Is the endpoint's shared run_dir mounted, and not full?",
        )
        failure = Failure(code=error.code, message=error.message, hint=error.hint)
        return Done(done.id, "failed", None, failure, done.started, done.ended, done.run_s, done.stdout, done.stderr)
    remove([path])
    return Done(done.id, done.state, Inline(value.encoding, data), None, done.started, done.ended, done.run_s, done.stdout, done.stderr)


def clear(shared: Path) -> None:
    """Remove what an earlier daemon left: no worker of it lives any more.  Blocks."""
    remove((shared / FOLDER).glob("*"))
