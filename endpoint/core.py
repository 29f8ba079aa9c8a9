"""What the daemon does with tasks: the whole of it, without I/O.

Events come in as calls (`accept`, `report`, `lost`, `cancel`, `tick`), with the time in milliseconds; what is to be done about them
collects in `Todo`, which the engine takes away with `take_todo`, writes to the journal and carries out.  `launch` hands out packets.
Nothing here waits, and nothing here knows how a pool or a journal works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from funcmq.broker.errors import EnvironmentMismatch, FuncmqError, NotAllowed, TaskCancelled, TaskExpired, TaskLost, WorkerDied
from funcmq.broker.messages import End, Failure, Inline, Outcome, Work
from funcmq.endpoint.packer import pack
from funcmq.endpoint.tasks import Bundle, Event, State, Task, again_after_death, again_after_error, again_after_loss
from funcmq.endpoint.todo import Launch, PoolState, Todo
from funcmq.endpoint.worker.packet import Done

TASK_WEIGHT = 700
"""Bytes of memory that an open task costs beside its part of the bundle, about."""


def _failure(error: FuncmqError) -> Failure:
    return Failure(code=error.code, message=error.message, hint=error.hint)


_CANCELLED_WAITING = _failure(TaskCancelled("The task was cancelled before it started."))


class Core:
    """All open tasks of an endpoint.

    :param pools: name → what one worker of it has (`cores`, `memory`, `gpus`, …), in the order of the endpoint file.
    :param host: name of this host, for outcomes that no worker reported.
    :param needs: the minor version of Python that a function at hand needs, '' any.
    """

    def __init__(self, pools: dict[str, dict[str, float]], host: str, needs: Callable[[str], str] = lambda _: "") -> None:
        self.pools = {name: PoolState(name, resources) for name, resources in pools.items()}
        self.bundles: dict[str, Bundle] = {}
        self.tasks: dict[bytes, Task] = {}
        self.tombstones: set[bytes] = set()
        """Cancelled before they came."""
        self.weight = 0
        self._host, self._needs = host, needs
        self._numbers = 0
        self._blocked: dict[str, list[Task]] = {}
        self._where: dict[bytes, int] = {}
        self._todo = Todo()

    # -- events ---------------------------------------------------------------------------------------------------------

    def accept(self, bundle: Bundle, tasks: Sequence[Task], ready: Callable[[str], bool], now: int) -> list[str]:
        """Tasks of one bundle that are on their way into the journal, or that it held at the start: what was launched then counts as lost.

        Returns the functions of theirs that are not `ready`; those tasks wait for `function_ready` or `function_missing`.
        """
        self.bundles[bundle.id] = bundle
        if not bundle.open:
            self.weight += bundle.size
        bundle.open += len(tasks)
        self.weight += TASK_WEIGHT * len(tasks)
        arriving: dict[tuple[int, int], list[Task]] = {}
        calls = bundle.work.tasks
        for task in tasks:
            self.tasks[task.id] = task
            if task.state is State.LAUNCHED and not self._survives(task, "The daemon of its endpoint died while it ran.", now):
                continue
            call = calls[task.index]
            arriving.setdefault((call.function, call.options), []).append(task)
        missing = []
        for (index, _), some in arriving.items():
            function = bundle.work.functions[index].id
            if ready(function):
                self._enqueue(some, now)
            else:
                missing.append(function)
                self._blocked.setdefault(function, []).extend(some)
        if self.tombstones:
            self._bury(tasks, now)
        return missing

    def disown(self, tasks: Iterable[Task], now: int) -> None:
        """These were signed before a journal of this endpoint went, which may have run them: what must not run twice is lost."""
        for task in tasks:
            if task.state is State.WAITING and task.options.retry == "never":
                self._end_waiting(task, "lost", _failure(TaskLost("It may have run under a journal of its endpoint that is gone.")), now)

    def discard(self, task: Task) -> None:
        """Forget a task that was just accepted, and has not been submitted: the journal knows its id from long ago."""
        if self.tasks.get(task.id) is not task:
            return  # it has ended already
        if task.state is State.LAUNCHED:
            number = self._where.pop(task.id)
            for pool in self.pools.values():
                if launch := pool.flights.get(number):
                    launch.tasks.remove(task)
        else:
            self._unqueue(task)
        task.state = State.DONE
        self._leave(task)

    def function_ready(self, function: str, now: int) -> None:
        """The record of this function is at hand."""
        self._enqueue([task for task in self._blocked.pop(function, []) if task.state is State.WAITING], now)

    def function_missing(self, function: str, error: FuncmqError, now: int) -> None:
        """The record of this function cannot be had: its tasks end."""
        for task in self._blocked.pop(function, []):
            if task.state is State.WAITING:
                self._end(task, "failed", _failure(error), now)

    def cancel(self, ids: Iterable[bytes], now: int) -> tuple[list[bytes], list[bytes]]:
        """End what waits.

        Returns the ids that run (a pool has to end them) and those that are not known (the journal decides whether they leave a
        tombstone).
        """
        running, unknown = [], []
        for identifier in ids:
            task = self.tasks.get(identifier)
            if task is None:
                unknown.append(identifier)
                self.tombstones.add(identifier)
            elif task.state is State.LAUNCHED:
                task.cancelled = True
                running.append(identifier)
            else:
                self._end_waiting(task, "cancelled", _CANCELLED_WAITING, now)
        return running, unknown

    def tick(self, now: int) -> None:
        """Time has passed: let in what was not to start before now, end what did not start in time."""
        for pool in self.pools.values():
            pool.queue.release(now)
            for task in pool.queue.expired(now):
                self._end_waiting(task, "expired", _failure(TaskExpired()), now)
        for tasks in list(self._blocked.values()):
            for task in [task for task in tasks if task.options.not_after <= now and not task.attempts]:
                tasks.remove(task)
                self._end(task, "expired", _failure(TaskExpired("Its function could not be fetched before the task's time was up.")), now)

    def next_due(self) -> int:
        """When `tick` is needed next; 0: not as things stand."""
        dues = [due for pool in self.pools.values() if (due := pool.queue.next_due())]
        dues += [task.options.not_after for tasks in self._blocked.values() for task in tasks[:1]]
        return min(dues, default=0)

    def report(self, number: int, host: str, members: Sequence[Done], now: int) -> None:
        """A pool has answered a packet.  A second answer, or one about a packet that was given up, changes nothing."""
        launch = self._land(number)
        if launch is None:
            return
        reported = {done.id: done for done in members}
        runs: dict[str, list[float]] = {}
        for task in launch.tasks:
            done = reported.get(task.id)
            if done is None:
                self._lose(task, "Its worker gave no account of it.", now)
                continue
            if done.state in {"succeeded", "failed"}:
                runs.setdefault(task.function.id, []).append(done.run_s)
            self._finish(task, done, host, now)
        for function, seconds in runs.items():
            self.pools[launch.pool].estimates.learn(function, seconds)

    def lost(self, number: int, reason: str, now: int) -> None:
        """A packet will not be answered: its worker, node or interchange is gone."""
        launch = self._land(number)
        for task in launch.tasks if launch else ():
            self._lose(task, reason, now)

    # -- instructions ---------------------------------------------------------------------------------------------------

    def launch(self, pool: PoolState, trusted: Callable[[Work], bool], now: int) -> list[Launch]:
        """Packets that go to this pool now.  Tasks of somebody who is not trusted any more end instead."""
        launches = []
        while (packed := pack(pool.queue, pool.estimates, pool.load)) is not None:
            tasks, short = packed
            if not all(trusted(work) for work in {id(task.bundle): task.bundle.work for task in tasks}.values()):
                tasks = self._only_trusted(tasks, trusted, now)
            if not tasks:
                continue
            for task in tasks:
                task.step(Event.LAUNCH)
                task.attempts += 1
                self._where[task.id] = self._numbers
            launch = Launch(self._numbers, pool.name, tasks, short, now)
            pool.flights[launch.number] = launch
            pool.short += short
            self._numbers += 1
            launches.append(launch)
        return launches

    def take_todo(self) -> Todo:
        """What has collected since the last call."""
        todo, self._todo = self._todo, Todo()
        return todo

    def running(self, before: int) -> list[Launch]:
        """Packets launched before this time, oldest first."""
        found = []
        for pool in self.pools.values():
            for launch in pool.flights.values():
                if launch.at > before:
                    break
                found.append(launch)
        return found

    @property
    def launched(self) -> int:
        """Tasks handed to pools."""
        return len(self._where)

    @property
    def idle(self) -> bool:
        """Whether nothing is open."""
        return not self.tasks

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _enqueue(self, tasks: list[Task], now: int) -> None:
        while tasks:
            first, rest = tasks[0], tasks[1:]
            pool = self._pool_for(first)
            same = [task for task in rest if task.options is first.options]
            if pool is None:
                for task in [first, *same]:
                    self._end(task, "failed", _failure(self._no_pool(task)), now)
            else:
                for task in (first, *same):
                    task.pool = pool.name
                pool.queue.add([first, *same], now)
            tasks = [task for task in rest if task.options is not first.options]

    def _pool_for(self, task: Task) -> PoolState | None:
        """The first that has what the task wants, and among several the one whose Python suits it: a worker refuses what it cannot run."""
        wanted, named = task.options.resources, task.options.pool
        fitting = [pool for pool in self.pools.values() if named in ("", pool.name) and pool.fits(wanted)]
        if len(fitting) < 2:
            return fitting[0] if fitting else None
        needs = self._needs(task.function.id)
        return max(fitting, key=lambda pool: pool.suits(needs))

    def _no_pool(self, task: Task) -> EnvironmentMismatch:
        known = ", ".join(self.pools)
        if task.options.pool and task.options.pool not in self.pools:
            return EnvironmentMismatch(f"This endpoint has no pool {task.options.pool!r}.", hint=f"Its pools: {known}.")
        return EnvironmentMismatch(f"No pool of this endpoint has {task.options.resources}.", hint=f"Its pools: {known}.")

    def _only_trusted(self, tasks: list[Task], trusted: Callable[[Work], bool], now: int) -> list[Task]:
        error = NotAllowed(
            "The key that signed this task is no longer trusted by the endpoint.", hint="On its host: `funcmq endpoint trust NAME KEY`."
        )
        for task in tasks:
            if not trusted(task.bundle.work):
                self._end(task, "failed", _failure(error), now)
        return [task for task in tasks if task.state is State.WAITING]

    def _bury(self, tasks: Iterable[Task], now: int) -> None:
        for task in tasks:
            if task.id in self.tombstones and task.state is State.WAITING:
                self.tombstones.discard(task.id)
                self._end_waiting(task, "cancelled", _CANCELLED_WAITING, now)

    def _land(self, number: int) -> Launch | None:
        for pool in self.pools.values():
            launch = pool.flights.pop(number, None)
            if launch is not None:
                pool.short -= launch.short
                for task in launch.tasks:
                    self._where.pop(task.id, None)
                return launch
        return None

    def _finish(self, task: Task, done: Done, host: str, now: int) -> None:
        value = done.value if isinstance(done.value, Inline) else None
        match done.state:
            case "succeeded":
                self._close(task, Outcome(task.id, "succeeded", value, None, *self._times(task, done), host, done.stdout, done.stderr))
                return
            case "failed" if again_after_error(task):
                self._again(task, now)
                return
            case "died" if again_after_death(task):
                self._again(task, now)
                return
        state: End = "cancelled" if done.state == "cancelled" else "failed"
        failure = done.failure or _failure(WorkerDied() if done.state == "died" else TaskCancelled())
        self._close(task, Outcome(task.id, state, None, failure, *self._times(task, done), host, done.stdout, done.stderr))

    @staticmethod
    def _times(task: Task, done: Done) -> tuple[int, int, int, int]:
        return task.attempts, task.bundle.received, done.started, done.ended

    def _lose(self, task: Task, reason: str, now: int) -> None:
        if self._survives(task, reason, now):
            self._enqueue([task], now)

    def _survives(self, task: Task, reason: str, now: int) -> bool:
        """Count a loss; whether the task is to be queued again.  If not, it has ended."""
        if again_after_loss(task):
            return self._goes_back(task, now)
        times = "" if task.infra <= 1 else f" This was the {task.infra}th time."
        self._end(task, "lost", _failure(TaskLost(f"{reason}{times}")), now)
        return False

    def _again(self, task: Task, now: int) -> None:
        if self._goes_back(task, now):
            self._enqueue([task], now)

    def _goes_back(self, task: Task, now: int) -> bool:
        if task.cancelled:
            self._end(task, "cancelled", _failure(TaskCancelled()), now)
            return False
        task.step(Event.AGAIN)
        self._todo.again.append(task)
        return True

    def _end_waiting(self, task: Task, state: End, failure: Failure, now: int) -> None:
        self._unqueue(task)
        self._end(task, state, failure, now)

    def _unqueue(self, task: Task) -> None:
        blocked = self._blocked.get(task.function.id, [])
        if task in blocked:
            blocked.remove(task)
        elif task.pool:
            self.pools[task.pool].queue.drop(task)

    def _end(self, task: Task, state: End, failure: Failure, now: int) -> None:
        self._close(task, Outcome(task.id, state, None, failure, task.attempts, task.bundle.received, 0, now, self._host))

    def _close(self, task: Task, outcome: Outcome) -> None:
        task.step(Event.END)
        self._todo.ended.append((task, outcome))
        self._leave(task)

    def _leave(self, task: Task) -> None:
        del self.tasks[task.id]
        bundle = task.bundle
        bundle.open -= 1
        self.weight -= TASK_WEIGHT
        if not bundle.open:
            del self.bundles[bundle.id]
            self.weight -= bundle.size
            self._todo.closed.append(bundle)
