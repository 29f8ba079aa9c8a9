"""Laws of the daemon's queue and of packets."""

from funcmq.broker.messages import FunctionRef, Inline, Options, Work
from funcmq.broker.messages import Task as Call
from funcmq.endpoint.packer import ALONE_RUNS, LEAST_S, MEMBERS, MOST_S, OVERHEAD_S, Estimates, Load, pack
from funcmq.endpoint.queue import Queue
from funcmq.endpoint.tasks import Bundle, Event, State, Task

FUNCTION = "f" * 64
LONG_FUNCTION = "e" * 64
NOW = 1_000_000
LATER = NOW + 60_000


def tasks(count: int, user: str = "a", function: str = FUNCTION, **options: object) -> list[Task]:
    options.setdefault("not_after", LATER)
    calls = [Call(number.to_bytes(16, "big"), 0, 0, Inline("msgpack", b"")) for number in range(count)]
    work = Work(1, user * 32, "0" * 64, "", "0" * 32, "0" * 32, NOW, [FunctionRef(function, "f")], [Options(**options)], calls)  # type: ignore[arg-type]
    bundle = Bundle("b", work, NOW, 0)
    return [Task(call.id, bundle, index) for index, call in enumerate(calls)]


def drain(queue: Queue, cost: float = 1.0) -> list[Task]:
    order = []
    while (task := queue.peek()) is not None:
        queue.take(task, cost)
        order.append(task)
    return order


def known(seconds: float, function: str = FUNCTION) -> Estimates:
    estimates = Estimates()
    estimates.learn(function, [seconds])
    return estimates


def packed(queue: Queue, estimates: Estimates, load: Load) -> tuple[list[Task], bool]:
    found = pack(queue, estimates, load)
    assert found is not None
    return found


def test_users_are_served_by_recent_use() -> None:
    """Two users with equal tasks alternate, however many the first had queued before."""
    queue = Queue()
    queue.add(tasks(10), NOW)
    queue.add(tasks(3, "b"), NOW)
    users = [task.user[0] for task in drain(queue)[:6]]
    assert sorted(users) == ["a", "a", "a", "b", "b", "b"]


def test_idleness_earns_no_credit() -> None:
    """Who comes after another has used the workers alone for long is not owed that time."""
    queue = Queue()
    queue.add(tasks(100), NOW)
    for _ in range(90):
        task = queue.peek()
        assert task is not None
        queue.take(task, 100.0)
    queue.add(tasks(10, "b"), NOW)
    assert {task.user[0] for task in drain(queue, 100.0)[:4]} == {"a", "b"}


def test_priority_orders_one_users_own_tasks_then_age() -> None:
    """Within a user a higher priority goes first, and among equals the older."""
    queue = Queue()
    low, high, late = tasks(1), tasks(1, priority=5), tasks(1)
    for some in (low, high, late):
        queue.add(some, NOW)
    assert drain(queue) == [*high, *low, *late]


def test_not_before_holds_a_task_back() -> None:
    """A task is not given out before its time, and `next_due` says when that is."""
    queue = Queue()
    queue.add(tasks(1, not_before=NOW + 500), NOW)
    assert queue.peek() is None
    assert queue.next_due() == NOW + 500
    queue.release(NOW + 500)
    assert queue.peek() is not None


def test_only_a_first_start_expires() -> None:
    """What waits past `not_after` is reported expired once; what had started in time is not."""
    queue = Queue()
    fresh, again = tasks(2), tasks(1)
    again[0].attempts = 1
    queue.add(fresh, NOW)
    queue.add(again, NOW)
    assert queue.expired(LATER - 1) == []
    assert queue.expired(LATER) == fresh
    assert queue.expired(LATER) == []


def test_a_task_that_ended_is_skipped() -> None:
    """What ended while it waited is never given out, and is not counted."""
    queue = Queue()
    some = tasks(3)
    queue.add(some, NOW)
    some[1].step(Event.END)
    queue.drop(some[1])
    assert len(queue) == 2
    assert drain(queue) == [some[0], some[2]]
    assert len(queue) == 0


def test_unknown_functions_run_alone() -> None:
    """Before a run of it has been measured, a function gets a packet of its own, and an idle worker."""
    queue = Queue()
    queue.add(tasks(5), NOW)
    members, short = packed(queue, Estimates(), Load(2, 0, 0))
    assert len(members) == 1
    assert not short
    assert pack(queue, Estimates(), Load(2, 2, 0)) is None


def test_a_packet_is_worth_its_budget() -> None:
    """Short tasks are packed up to the budget and no further."""
    queue = Queue()
    queue.add(tasks(1000), NOW)
    members, short = packed(queue, known(0.001), Load(1, 0, 0))
    assert short
    assert 0.8 * MOST_S / (0.001 + OVERHEAD_S) <= len(members) <= MOST_S / (0.001 + OVERHEAD_S) + 1


def test_packets_are_bounded_in_members() -> None:
    """However short a function is, a packet has a limit."""
    queue = Queue()
    queue.add(tasks(1024), NOW)
    assert len(packed(queue, known(0.0), Load(1, 0, 0))[0]) == MEMBERS


def test_idle_workers_share() -> None:
    """While workers are idle the waiting work is spread over them."""
    queue = Queue()
    queue.add(tasks(16), NOW)
    assert len(packed(queue, known(0.01), Load(8, 0, 0))[0]) == 2


def test_a_little_work_is_one_packet() -> None:
    """Work below the least budget is not torn apart, even if workers are idle."""
    queue = Queue()
    count = int(LEAST_S / (2 * OVERHEAD_S)) - 1
    queue.add(tasks(count), NOW)
    assert len(packed(queue, known(OVERHEAD_S), Load(64, 0, 0))[0]) == count


def test_some_tasks_are_never_packed() -> None:
    """retry='never', a walltime under a second, and a task whose process died run alone."""
    died = tasks(2)
    for task in died:
        task.deaths = 1
    for some in (tasks(2, retry="never"), tasks(2, walltime_s=0.5), died):
        queue = Queue()
        queue.add(some, NOW)
        assert len(packed(queue, known(0.0), Load(1, 0, 0))[0]) == 1


def test_an_overrun_runs_alone_for_a_while() -> None:
    """A function that overran three times its estimate is packed again only after some runs alone."""
    estimates = known(0.01)
    task = tasks(1)[0]
    estimates.learn(FUNCTION, [0.2])
    assert estimates.cost(task) is None
    for _ in range(ALONE_RUNS):
        estimates.learn(FUNCTION, [0.01])
    assert estimates.cost(task) is not None


def test_one_user_to_a_packet() -> None:
    """Tasks of two users never share a child process."""
    queue = Queue()
    queue.add(tasks(5), NOW)
    queue.add(tasks(5, "b"), NOW)
    assert len({task.user for task in packed(queue, known(0.0), Load(1, 0, 0))[0]}) == 1


def test_a_pool_holds_one_packet_for_each_worker_and_short_ones_ahead() -> None:
    """One more packet is sent in advance for each worker, but never behind a long one."""
    assert Load(2, 1, 0).takes(short=False)
    assert not Load(2, 2, 2).takes(short=False)
    assert Load(2, 2, 2).takes(short=True)
    assert not Load(2, 4, 4).takes(short=True)
    assert not Load(2, 2, 0).takes(short=True)
    assert not Load(0, 0, 0).takes(short=True)


def test_the_head_of_the_queue_is_not_overtaken() -> None:
    """When the next task has to wait for an idle worker, a shorter one behind it does not go first."""
    queue = Queue()
    queue.add(tasks(1, function=LONG_FUNCTION), NOW)
    queue.add(tasks(1), NOW)
    estimates = known(0.001)
    assert pack(queue, estimates, Load(1, 1, 1)) is None


def test_states_follow_the_table() -> None:
    """Every event that the table does not list for a state is refused."""
    for state in State:
        for event in Event:
            task = tasks(1)[0]
            task.state = state
            try:
                task.step(event)
            except KeyError:
                assert (state, event) not in {
                    (State.WAITING, Event.LAUNCH),
                    (State.WAITING, Event.END),
                    (State.LAUNCHED, Event.AGAIN),
                    (State.LAUNCHED, Event.END),
                }
