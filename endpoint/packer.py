"""Packets: several short tasks handed to a pool as one submission (design §4).

Only functions known to be short are packed.  A packet is worth 2 to 30 ms of expected work, less where workers are idle, so that no worker
gets a big packet while another has none.  Packing may therefore delay a task by a packet's budget plus one mispredicted member, no more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from funcmq.broker.messages import Inline
from funcmq.endpoint.queue import Queue
from funcmq.endpoint.tasks import Task

SHORT_S = 0.030
"""A function is short when a run of it is expected to take less."""
LEAST_S = 0.002
MOST_S = 0.030
"""Expected work in a packet."""
MEMBERS = 512
BYTES = 256 * 1024
"""Most members and bytes of arguments of a packet."""
OVERHEAD_S = 0.000_04
"""What a member costs beside its own run, about."""
OVERRUN = 3.0
OVERRUN_FLOOR_S = 0.020
"""A run that takes this many times its estimate, and more than this, is an overrun; below it is the noise of a busy machine."""
ALONE_RUNS = 8
"""Runs that a function makes alone after an overrun."""
MEMORY = 4096
"""Functions remembered."""
_KEEP = 0.9


@dataclass(slots=True)
class _Known:
    seconds: float
    alone: int = 0


class Estimates:
    """How long a run of each function takes: an exponentially weighted mean of what was measured."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def learn(self, function: str, seconds: Sequence[float]) -> None:
        """These runs took so long."""
        known = self._known.get(function)
        mean, longest = sum(seconds) / len(seconds), max(seconds)
        if known is None:
            self._known[function] = _Known(mean)
            if len(self._known) > MEMORY:
                self._known.popitem(last=False)
            return
        self._known.move_to_end(function)
        overran = longest > max(OVERRUN * known.seconds, OVERRUN_FLOOR_S)
        known.alone = ALONE_RUNS if overran else max(0, known.alone - len(seconds))
        weight = _KEEP ** len(seconds)
        known.seconds = weight * known.seconds + (1 - weight) * mean

    def cost(self, task: Task) -> float | None:
        """Seconds that the task is expected to take in a packet; None: it may not be packed."""
        known = self._known.get(task.function.id)
        if known is None or known.alone or known.seconds >= SHORT_S or task.alone or task.options.resources:
            return None
        return known.seconds + OVERHEAD_S

    def guess(self, task: Task) -> float:
        """Seconds of work to charge for the task, known or not."""
        known = self._known.get(task.function.id)
        return OVERHEAD_S + (known.seconds if known else SHORT_S)


@dataclass(slots=True, frozen=True)
class Load:
    """What a pool has: registered workers, packets in it, and how many of those are known to be short."""

    workers: int
    packets: int
    short: int

    @property
    def idle(self) -> int:
        """Workers without a packet."""
        return max(0, self.workers - self.packets)

    def takes(self, short: bool) -> bool:
        """Whether one more packet may go in: one for each worker, and for those that run short ones, one more in advance."""
        if self.packets < self.workers:
            return True
        long = self.packets - self.short
        return short and self.packets < 2 * self.workers - long


def pack(queue: Queue, estimates: Estimates, load: Load) -> tuple[list[Task], bool] | None:
    """The next packet and whether it is known to be short, taken out of the queue; None: nothing may run now.

    The head of the queue decides: when it has to wait for a worker, nothing shorter overtakes it.
    """
    first = queue.peek()
    if first is None:
        return None
    cost = estimates.cost(first)
    if not load.takes(cost is not None):
        return None
    if cost is None:
        queue.take(first, estimates.guess(first))
        return [first], False
    budget = min(MOST_S, max(LEAST_S, len(queue) * cost / max(1, load.idle)))
    return _fill(queue, estimates, first, cost, budget), True


def _fill(queue: Queue, estimates: Estimates, first: Task, cost: float, budget: float) -> list[Task]:
    members: list[Task] = []
    size = 0
    task: Task | None = first
    while task is not None:
        queue.take(task, cost)
        members.append(task)
        budget -= cost
        size += _size(task)
        task = queue.more(first.user)
        if task is None or len(members) >= MEMBERS or size + _size(task) > BYTES:
            break
        next_cost = estimates.cost(task)
        if next_cost is None or next_cost > budget:
            break
        cost = next_cost
    return members


def _size(task: Task) -> int:
    args = task.call.args
    return len(args.data) if isinstance(args, Inline) else 0
