"""Laws of bundling: what waits leaves together, within the limits, and exactly once."""

import itertools
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcmq.broker import codec
from funcmq.broker.ids import new_hex, new_id, sha256
from funcmq.broker.messages import MAX_BUNDLE, MAX_TASKS, FunctionRef, Inline, Signed, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.client.bundler import Address, Bundler
from funcmq.client.futures import TaskFuture
from funcmq.client.options import Given, Scope, narrow

KEY = PrivateKey.generate()
FUNCTIONS = [FunctionRef(sha256(bytes([number])), f"f{number}", [("file.py", 1)]) for number in range(3)]


class Nobody:
    """An owner that is never asked."""

    thread = pid = 0
    guard = threading.Lock()

    def cancel_task(self, future: TaskFuture[Any]) -> bool:
        raise NotImplementedError

    explain = endpoint_name = cancel_task


class Bench:
    """A bundler, and a count of its wakes."""

    def __init__(self) -> None:
        self.woken = 0
        self.bundler = Bundler(self._wake)
        for ref in FUNCTIONS:
            self.bundler.know(ref)

    def _wake(self) -> None:
        self.woken += 1

    def add(self, scope: Scope, data: bytes = b"\x90", function: int = 0) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture(Nobody(), new_id(), "f", scope, (FUNCTIONS[function].id, Inline("msgpack", data)))
        self.bundler.add(future, scope)
        return future

    def work(self) -> Work | None:
        bundle = self.bundler.take()
        if bundle is None:
            return None
        sealed = self.bundler.seal(bundle, Address(new_hex(), KEY, new_hex(), new_hex()), 1_700_000_000.0)
        signed = codec.decode(Signed, sealed.data)
        KEY.public.verify(BUNDLE, signed)
        assert sealed.id == sha256(signed.body)
        if len(bundle.futures) > 1:
            assert len(sealed.data) <= MAX_BUNDLE
        return codec.decode(Work, signed.body)


def test_what_waits_leaves_together() -> None:
    """Tasks of one view that wait are one bundle, in the order of submission, with one set of options."""
    bench, scope = Bench(), Scope()
    futures = [bench.add(scope) for _ in range(10)]
    work = bench.work()
    assert work is not None
    assert [task.id for task in work.tasks] == [future.task_id for future in futures]
    assert (len(work.options), len(work.functions)) == (1, 1)
    assert bench.work() is None
    assert bench.woken == 1


def test_a_bundle_has_one_group_and_endpoint() -> None:
    """Views that differ in group or endpoint never share a bundle; those that differ in other options do."""
    bench, scope = Bench(), Scope()
    views = [narrow(scope, Given(**given)) for given in ({"endpoint": "a"}, {"endpoint": "b"}, {"group": "g"})]  # type: ignore[arg-type]
    for view in [scope, *views, narrow(scope, Given(walltime=3)), narrow(scope, Given(retry="never"))]:
        bench.add(view)
    sizes = []
    while (work := bench.work()) is not None:
        sizes.append((len(work.tasks), len(work.options)))
    assert sizes == [(3, 3), (1, 1), (1, 1), (1, 1)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400_000), max_size=30), st.integers(0, 3))
def test_bundles_keep_the_limits(sizes: list[int], spread: int) -> None:
    """Whatever the sizes: all tasks leave, once, in order, and a bundle of several tasks is at most 1 MiB."""
    bench, scope = Bench(), Scope()
    futures = [bench.add(scope, bytes(size), index % (spread + 1) % 3) for index, size in enumerate(sizes)]
    left: list[bytes] = []
    while (work := bench.work()) is not None:
        left += [task.id for task in work.tasks]
    assert left == [future.task_id for future in futures]


def test_a_bundle_holds_at_most_1024_tasks() -> None:
    """What is beyond leaves in the next bundle."""
    bench, scope = Bench(), Scope()
    for _ in range(MAX_TASKS + 1):
        bench.add(scope)
    assert [len(work.tasks) for work in iter(bench.work, None) if work] == [MAX_TASKS, 1]


def test_one_larger_task_leaves_alone() -> None:
    """A task over 1 MiB is a bundle of its own, and its neighbours are not held up."""
    bench, scope = Bench(), Scope()
    for size in (10, 2 * MAX_BUNDLE, 10):
        bench.add(scope, bytes(size))
    assert [len(work.tasks) for work in iter(bench.work, None) if work] == [1, 1, 1]


def test_withdrawn_tasks_never_leave() -> None:
    """A task that was withdrawn is in no bundle; once taken it cannot be withdrawn."""
    bench, scope = Bench(), Scope()
    first, second = bench.add(scope), bench.add(scope)
    assert bench.bundler.withdraw(first)
    assert not bench.bundler.withdraw(first)
    work = bench.work()
    assert work is not None
    assert [task.id for task in work.tasks] == [second.task_id]
    assert not bench.bundler.withdraw(second)


def test_lanes_take_turns() -> None:
    """A view with much to send does not hold up another one."""
    bench = Bench()
    busy, other = narrow(Scope(), Given(endpoint="busy")), narrow(Scope(), Given(endpoint="other"))
    for _ in range(3 * MAX_TASKS):
        bench.add(busy)
    bench.add(other)
    assert [len(work.tasks) for work in itertools.islice(iter(bench.work, None), 2) if work] == [MAX_TASKS, 1]


def test_time_to_start_counts_from_the_signature() -> None:
    """`not_after` is the signing time plus `expires`, 7 days by default; the sealed bundle knows the earliest."""
    bench, scope = Bench(), Scope()
    bench.add(scope)
    bench.add(narrow(scope, Given(expires="10s")))
    bundle = bench.bundler.take()
    assert bundle is not None
    sealed = bench.bundler.seal(bundle, Address(new_hex(), KEY, new_hex(), new_hex()), 1000.0)
    assert sealed.not_after == 1_010_000


@pytest.mark.parametrize("key", ["", "run-17"])
def test_keys_travel(key: str) -> None:
    """The key of a task is in its bundle."""
    bench, scope = Bench(), Scope()
    bench.add(scope).key = key
    work = bench.work()
    assert work is not None
    assert work.tasks[0].key == key
