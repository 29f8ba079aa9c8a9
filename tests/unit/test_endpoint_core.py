"""Laws of what the daemon does with tasks."""

import itertools

from funcmq.broker.errors import NotFound
from funcmq.broker.ids import new_id
from funcmq.broker.messages import Failure, FunctionRef, Inline, Options, Work
from funcmq.broker.messages import Task as Call
from funcmq.endpoint.core import Core
from funcmq.endpoint.tasks import MAX_INFRA, Bundle, State, Task
from funcmq.endpoint.todo import Launch
from funcmq.endpoint.worker.packet import Done

FUNCTION = "f" * 64
NOW = 1_000_000
LATER = NOW + 60_000
NUMBERS = itertools.count()


class Rig:
    """A core with one pool of two workers."""

    def __init__(self, workers: int = 2) -> None:
        self.core = Core({"local": {"workers": 2.0, "gpus": 1.0}}, "here")
        self.core.pools["local"].workers = workers
        self.trusted = True

    def accept(self, count: int = 1, user: str = "a", ready: bool = True, state: State = State.WAITING, **options: object) -> list[Task]:
        options.setdefault("not_after", LATER)
        calls = [Call(new_id(), 0, 0, Inline("msgpack", b"")) for _ in range(count)]
        work = Work(
            1,
            user * 32,
            "0" * 64,
            "",
            "0" * 32,
            "0" * 32,
            NOW,
            [FunctionRef(FUNCTION, "f")],
            [Options(**options)],
            calls,  # type: ignore[arg-type]
        )
        bundle = Bundle(f"bundle {next(NUMBERS)}", work, NOW, 100)
        tasks = [Task(call.id, bundle, index, state) for index, call in enumerate(calls)]
        missing = self.core.accept(bundle, tasks, lambda _: ready, NOW)
        assert missing == ([] if ready else [FUNCTION])
        return tasks

    def launch(self, now: int = NOW) -> list[Launch]:
        return self.core.launch(self.core.pools["local"], lambda _: self.trusted, now)

    def report(self, launch: Launch, state: str = "succeeded", seconds: float = 0.001) -> None:
        value = Inline("msgpack", b"\x01") if state == "succeeded" else None
        failure = None if state == "succeeded" else Failure("TaskFailed", "no")
        done = [Done(task.id, state, value, failure, NOW, NOW + 1, seconds) for task in launch.tasks]  # type: ignore[arg-type]
        self.core.report(launch.number, "there", done, NOW)

    def ends(self) -> list[tuple[str, str]]:
        """State and code of what has ended since the last call."""
        todo = self.core.take_todo()
        return [(outcome.state, outcome.failure.code if outcome.failure else "") for _, outcome in todo.ended]

    def once(self, state: str) -> list[tuple[str, str]]:
        """Launch what may be launched, answer it so, and say what ended."""
        for launch in self.launch():
            self.report(launch, state)
        return self.ends()

    def lose(self) -> list[tuple[str, str]]:
        for launch in self.launch():
            self.core.lost(launch.number, "A node is gone.", NOW)
        return self.ends()


def test_a_task_runs_and_its_bundle_closes() -> None:
    """When the last task of a bundle has ended, nothing of it is left open."""
    rig = Rig()
    rig.accept(3)
    ended = [end for _ in range(3) for end in rig.once("succeeded")]
    assert ended == [("succeeded", "")] * 3
    assert rig.core.idle
    assert rig.core.bundles == {}
    assert rig.core.weight == 0


def test_user_errors_are_final_unless_a_number_was_asked_for() -> None:
    """retry=2 runs a failing function three times; the default runs it once."""
    rig = Rig()
    rig.accept()
    assert rig.once("failed") == [("failed", "TaskFailed")]
    rig.accept(retry=2)
    assert [rig.once("failed") for _ in range(3)] == [[], [], [("failed", "TaskFailed")]]


def test_a_death_is_tried_once_more() -> None:
    """After its own process died a task runs once more, and then its death is its end."""
    rig = Rig()
    rig.accept()
    assert [rig.once("died") for _ in range(2)] == [[], [("failed", "TaskFailed")]]


def test_losses_are_tried_three_more_times() -> None:
    """What is lost with a node runs again three times, then ends as lost."""
    rig = Rig()
    rig.accept()
    assert [rig.lose() for _ in range(MAX_INFRA + 1)] == [[]] * MAX_INFRA + [[("lost", "TaskLost")]]


def test_never_means_never() -> None:
    """retry='never' ends at the first loss as lost, at the first death as died, and is not run again."""
    rig = Rig()
    rig.accept(retry="never")
    assert rig.lose() == [("lost", "TaskLost")]
    rig.accept(retry="never")
    assert rig.once("died") == [("failed", "TaskFailed")]
    assert rig.core.idle


def test_what_was_launched_at_a_crash_counts_as_lost() -> None:
    """At the start a launched task is queued again, or ends as lost if it must not run twice; waiting ones wait."""
    rig = Rig()
    tasks = [*rig.accept(state=State.LAUNCHED), *rig.accept(state=State.LAUNCHED, retry="never"), *rig.accept()]
    assert rig.ends() == [("lost", "TaskLost")]
    assert [task.state for task in tasks] == [State.WAITING, State.DONE, State.WAITING]
    assert len(rig.launch()) == 2
    assert rig.launch() == []


def test_an_answer_counts_once() -> None:
    """A second report about a packet, or a report about one given up, changes nothing."""
    rig = Rig()
    rig.accept()
    launch = rig.launch()[0]
    rig.core.lost(launch.number, "gone", NOW)
    rig.report(launch)
    assert rig.ends() == []
    assert rig.once("succeeded") == [("succeeded", "")]


def test_a_member_without_account_is_lost() -> None:
    """A report that leaves a member out loses that member only."""
    rig = Rig()
    rig.accept(4)
    for launch in rig.launch():
        rig.report(launch, seconds=0.0)
    rig.ends()
    launch = rig.launch()[0]
    assert len(launch.tasks) == 2
    rig.core.report(launch.number, "there", [Done(launch.tasks[0].id, "succeeded", None, None, NOW, NOW, 0.0)], NOW)
    assert rig.ends() == [("succeeded", "")]
    assert launch.tasks[1].state is State.WAITING


def test_cancel_ends_what_waits_and_asks_for_what_runs() -> None:
    """A waiting task ends at once, a running one is named for its pool, an unknown one leaves a tombstone."""
    rig = Rig(workers=1)
    running, waiting = rig.accept()[0], rig.accept()[0]
    rig.launch()
    unknown = new_id()
    assert rig.core.cancel([running.id, waiting.id, unknown], NOW) == ([running.id], [unknown])
    assert rig.ends() == [("cancelled", "TaskCancelled")]
    assert rig.core.tombstones == {unknown}


def test_a_cancelled_task_does_not_run_again() -> None:
    """A task that was cancelled while it ran, and then lost its worker, ends as cancelled."""
    rig = Rig()
    task = rig.accept()[0]
    launch = rig.launch()[0]
    rig.core.cancel([task.id], NOW)
    rig.core.lost(launch.number, "gone", NOW)
    assert rig.ends() == [("cancelled", "TaskCancelled")]


def test_a_tombstone_waits_for_its_task() -> None:
    """A task that was cancelled before it came ends when it comes."""
    rig = Rig()
    calls = [Call(new_id(), 0, 0, Inline("msgpack", b""))]
    rig.core.cancel([calls[0].id], NOW)
    work = Work(1, "a" * 32, "0" * 64, "", "0" * 32, "0" * 32, NOW, [FunctionRef(FUNCTION, "f")], [Options(not_after=LATER)], calls)
    bundle = Bundle("late", work, NOW, 1)
    rig.core.accept(bundle, [Task(calls[0].id, bundle, 0)], lambda _: True, NOW)
    assert rig.ends() == [("cancelled", "TaskCancelled")]
    assert rig.launch() == []
    assert rig.core.tombstones == set()


def test_expiry_before_the_first_start_only() -> None:
    """A task that has not started by `not_after` expires; one that started in time may start again later."""
    rig = Rig(workers=1)
    rig.accept()
    late = rig.accept()
    launch = rig.launch()[0]
    assert rig.core.next_due() == LATER
    rig.core.tick(LATER)
    assert rig.ends() == [("expired", "TaskExpired")]
    assert late[0].state is State.DONE
    rig.core.lost(launch.number, "gone", LATER)
    rig.core.tick(LATER + 1)
    assert len(rig.launch(LATER + 1)) == 1


def test_tasks_wait_for_their_function() -> None:
    """Nothing is launched before its function record is at hand; if it cannot be had, its tasks fail."""
    rig = Rig()
    rig.accept(ready=False)
    assert rig.launch() == []
    rig.core.function_ready(FUNCTION, NOW)
    assert rig.once("succeeded") == [("succeeded", "")]
    rig.accept(ready=False)
    rig.core.function_missing(FUNCTION, NotFound("There is no such function."), NOW)
    assert rig.ends() == [("failed", "NotFound")]


def test_a_blocked_task_can_be_cancelled_and_expires() -> None:
    """Waiting for a function is waiting: cancel and expiry work there too."""
    rig = Rig()
    first, _ = rig.accept(2, ready=False)
    rig.core.cancel([first.id], NOW)
    rig.core.tick(LATER)
    assert rig.ends() == [("cancelled", "TaskCancelled"), ("expired", "TaskExpired")]
    rig.core.function_ready(FUNCTION, LATER)
    assert rig.core.idle


def test_no_pool_is_said_at_once() -> None:
    """A task that names an unknown pool, or wants what no pool has, fails with a hint; what fits is taken."""
    rig = Rig()
    rig.accept(pool="gpu")
    rig.accept(resources={"gpus": 2})
    rig.accept(resources={"gpus": 1})
    assert rig.ends() == [("failed", "EnvironmentMismatch")] * 2
    assert rig.once("succeeded") == [("succeeded", "")]


def test_trust_is_checked_at_launch() -> None:
    """A task whose key was taken out of trusted_keys while it waited never starts."""
    rig = Rig()
    rig.accept(3)
    rig.trusted = False
    assert rig.launch() == []
    assert rig.ends() == [("failed", "NotAllowed")] * 3


def test_a_discarded_task_is_as_if_it_never_came() -> None:
    """What the journal knew from long ago is neither run nor ended, wherever it was by then."""
    rig = Rig(workers=1)
    launched, waiting = rig.accept(2)
    launch = rig.launch()[0]
    for task in (launched, waiting):
        rig.core.discard(task)
    assert launch.tasks == []
    assert rig.ends() == []
    assert rig.core.idle
    rig.core.lost(launch.number, "", NOW)
    rig.accept()
    assert len(rig.launch()) == 1


def test_what_a_gone_journal_may_have_run_is_not_run_again() -> None:
    """Signed before a takeover, retry="never" ends as lost at once, whether its function is here or not; anything else waits its turn."""
    rig = Rig()
    never, fetched = rig.accept(2, retry="never"), rig.accept(1, ready=False, retry="never")
    usual = rig.accept(1)
    rig.core.disown([*never, *fetched, *usual], NOW)
    assert rig.ends() == [("lost", "TaskLost")] * 3
    assert [launch.tasks for launch in rig.launch()] == [usual]


def test_a_task_without_a_pool_takes_one_whose_python_suits_it() -> None:
    """The first pool that is not broken and has the function's Python; a broken one of that Python before a working one of another."""
    rig = Rig()
    rig.core = Core({"new": {}, "broken": {}, "old": {}}, "here", lambda _: "3.11")
    new, broken, old = rig.core.pools.values()
    new.python, broken.python, old.python, broken.broken = "3.12", "3.11", "3.11", True
    rig.accept()
    rig.accept(pool="new")
    assert [len(pool.queue) for pool in (new, broken, old)] == [1, 0, 1]
    old.python = "3.13"
    (waiting,) = rig.accept()
    assert [len(pool.queue) for pool in (new, broken, old)] == [1, 1, 1]
    broken.python, broken.broken = "", False
    rig.core.cancel([waiting.id], NOW)
    assert len(broken.queue) == 0
