"""Between core and journal, without I/O: what one flush writes, what its answer means, and how open work comes back after a crash."""

from __future__ import annotations

from funcmq.broker import codec
from funcmq.broker.messages import Signed, Work
from funcmq.endpoint.core import Core
from funcmq.endpoint.results import Formed
from funcmq.endpoint.tasks import Bundle, Task
from funcmq.endpoint.todo import Launch
from funcmq.endpoint.writes import Accept, Again, Closed, Ended, Launched, OpenBundle, Write


def changes(arrivals: list[Accept], again: list[Task], launches: list[Launch], formed: list[Formed], closed: list[Bundle]) -> list[Write]:
    """What a flush writes, in the order in which it happened to any one task: it comes, goes back to the queue, is launched, ends.

    What is launched here is submitted after this, so that it can end in a later flush only.
    """
    writes: list[Write] = list(arrivals)
    writes += [Again(task.id, task.attempts, task.infra, task.deaths, task.errors) for task in again]
    if launches:
        writes.append(Launched(b"".join([task.id for launch in launches for task in launch.tasks])))
    writes += [Ended(piece.tasks, piece.id, piece.key, piece.data) for piece in formed]
    writes += [Closed(bundle.id) for bundle in closed]
    return writes


def confirm(core: Core, tasks: list[Task], fresh: list[int]) -> list[Task]:
    """The journal has these tasks, which the core accepted in advance; those whose index is not `fresh` it knew already: discarded, and
    returned.
    """
    new = set(fresh)
    stale = []
    for task in tasks:
        if task.index in new:
            task.known = True
        else:
            core.discard(task)
            stale.append(task)
    return stale


def restored(row: OpenBundle) -> tuple[Bundle, list[Task]]:
    """A bundle of the journal with its open tasks, as they were."""
    work = codec.decode(Work, codec.decode(Signed, row.body).body)
    bundle = Bundle(row.id, work, row.received, len(row.body))
    return bundle, [
        Task(work.tasks[kept.index].id, bundle, kept.index, kept.state, kept.attempts, kept.infra, kept.deaths, kept.errors, known=True)
        for kept in row.tasks
    ]
