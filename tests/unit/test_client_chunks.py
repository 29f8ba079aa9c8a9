"""Laws of map's core: every call goes out once and comes back in its place, whatever the sizes and failures."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funcmq.broker import values
from funcmq.broker.errors import NotSerializable, WorkerDied
from funcmq.broker.ids import new_id
from funcmq.broker.messages import Outcome
from funcmq.client import chunks
from funcmq.client.bundler import Sent
from funcmq.client.chunks import Chunk, Mapping, Plan, Sizer
from funcmq.client.futures import TaskFuture
from tests.unit.test_client_futures import Owner


def plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {"star": False, "total": None, "workers": 2, "chunksize": None, "most": 0, "ordered": True, "errors": "return"}
    return Plan(**fields | changes)


class Fabric:
    """Runs chunks when told to: an item n gives 2 n, a negative one fails, 13 kills its process, "bad" cannot be sent."""

    def __init__(self) -> None:
        self.waiting: list[tuple[TaskFuture[Any], list[Any]]] = []
        self.ended: list[Chunk] = []
        self.sizes: list[int] = []

    def submit(self, value: list[Any]) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture(Owner(), new_id(), "f", None, ("", values.pack(value)))
        items = list(value[1])
        if "bad" in items:
            future.finish("failed", error=NotSerializable("bad"))
            return future
        future.sent = Sent()
        self.sizes.append(len(items))
        self.waiting.append((future, items))
        return future

    def run(self, at: int, took_ms: int = 1) -> None:
        future, items = self.waiting.pop(at)
        if 13 in items:
            future.finish("failed", error=WorkerDied())
            return
        failures = {index: ["TaskFailed", "neg", "ValueError", "", None, ""] for index, item in enumerate(items) if item < 0}
        found = [None if item < 0 else 2 * item for item in items]
        slot = values.pack((failures, found))
        outcome = Outcome(future.task_id, "succeeded", slot, None, 1, 0, 0, took_ms)
        future.finish("succeeded", (failures, found), outcome=outcome)


def drive(items: Any, how: Plan, order: Any = lambda waiting: 0) -> tuple[list[Any], Fabric]:
    """Run a mapping to its end; `order` chooses which chunk ends next."""
    fabric = Fabric()
    mapping = Mapping(items, how, fabric.submit, fabric.ended.append)
    given: list[Any] = []
    mapping.top_up()
    while not mapping.finished:
        assert fabric.waiting or fabric.ended, "stuck"
        if not fabric.ended:
            fabric.run(order(fabric.waiting) % len(fabric.waiting))
        while fabric.ended:
            mapping.settle(fabric.ended.pop())
        mapping.top_up()
        for block in mapping.take():
            given += chunks.flatten(block, how.errors)[0]
        mapping.top_up()
    return given, fabric


@settings(max_examples=100, deadline=None)
@given(
    items=st.lists(st.one_of(st.integers(-3, 20), st.just("bad")), max_size=120),
    order=st.lists(st.integers(0, 10), min_size=1),
    chunksize=st.one_of(st.none(), st.integers(1, 9)),
    most=st.integers(0, 20),
    known=st.booleans(),
)
def test_every_call_comes_back_in_its_place(items: list[Any], order: list[int], chunksize: int | None, most: int, known: bool) -> None:
    """In whatever order chunks end, and whatever fails, dies or cannot be sent: one outcome per call, in the order of the inputs."""
    picks = iter(order * 1000)
    how = plan(chunksize=chunksize, most=most, total=len(items) if known else None)
    given, _ = drive(items, how, lambda waiting: next(picks))
    assert len(given) == len(items)
    for item, outcome in zip(items, given, strict=True):
        if item == "bad":
            assert isinstance(outcome, NotSerializable)
        elif item == 13:
            assert isinstance(outcome, WorkerDied)
        elif item < 0:
            assert isinstance(outcome, ValueError)
        else:
            assert outcome == 2 * item


def test_unordered_gives_all_of_them() -> None:
    """Without order nothing is lost and nothing comes twice."""
    given, _ = drive(range(100, 600), plan(ordered=False), lambda waiting: -1)
    assert sorted(given) == [2 * item for item in range(100, 600)]


def test_never_means_never() -> None:
    """With retry="never" a chunk whose process died does not run again in pieces."""
    given, fabric = drive([1, 13, 2], plan(chunksize=3, rerun=False))
    assert all(isinstance(outcome, WorkerDied) for outcome in given)
    assert fabric.sizes == [3]


def test_chunks_grow_from_one() -> None:
    """Short calls soon travel by thousands, and the first ones alone."""
    _, fabric = drive(range(100_000), plan())
    assert fabric.sizes[0] == 1
    assert len(fabric.sizes) < 1000
    assert max(fabric.sizes) > 900


def test_the_last_chunks_spread_over_the_workers() -> None:
    """Where the number of calls is known, no worker ends up with all that is left."""
    _, fabric = drive(range(1000), plan(total=1000, workers=4))
    assert max(fabric.sizes) <= 125


def test_a_chunk_is_about_a_second() -> None:
    """Calls of 100 ms go out ten at a time, calls of 2 s alone."""
    for call_s, expected in ((0.1, 10), (2.0, 1), (0.001, 1000)):
        sizer = Sizer(plan())
        sizer.measure(1000, 1000 * call_s, 10)
        assert sizer.size(None) == expected


def test_large_arguments_make_small_chunks() -> None:
    """A chunk stays well below the size limit of a slot."""
    sizer = Sizer(plan())
    sizer.measure(100, 0.1, 100 * 1024 * 1024)
    assert sizer.size(None) == 4


@pytest.mark.parametrize("most", [1, 2, 7])
def test_the_bound_holds(most: int) -> None:
    """Never more calls than max_inflight are submitted and not yet taken."""
    fabric = Fabric()
    mapping = Mapping(range(100), plan(most=most), fabric.submit, fabric.ended.append)
    mapping.top_up()
    assert sum(fabric.sizes) <= most + 1
    assert len(list(mapping.take())) == 0


@pytest.mark.parametrize(("errors", "expected"), [("skip", [2, 6]), ("return", [2, None, 6])])
def test_errors_as_wished(errors: Any, expected: list[Any]) -> None:
    """ "skip" leaves them out, "return" keeps their places."""
    given, _ = drive([1, -1, 3], plan(errors=errors, chunksize=3))
    assert [None if isinstance(one, Exception) else one for one in given] == expected


def test_raise_gives_what_came_before() -> None:
    """With "raise" the values before the failed call are given, then its error."""
    block = chunks.Block(0, [1, None, 3], {1: ValueError("x")})
    before, error = chunks.flatten(block, "raise")
    assert before == [1]
    assert isinstance(error, ValueError)


def test_shapes() -> None:
    """One iterable gives items, several give tuples, as long as the shortest; none is a TypeError."""
    assert chunks.zipped(([1, 2],)) == ([1, 2], False, 2)
    items, star, total = chunks.zipped(([1, 2, 3], "ab"))
    assert (list(items), star, total) == ([(1, "a"), (2, "b")], True, 2)
    assert chunks.zipped((iter([1]), [1]))[2] is None
    with pytest.raises(TypeError):
        chunks.zipped(())


@pytest.mark.parametrize("wrong", [(0, None, "raise"), (None, 0, "raise"), (None, None, "x"), (1.5, None, "raise"), (True, None, "raise")])
def test_wrong_options_of_map(wrong: tuple[Any, ...]) -> None:
    """They are refused before anything is sent."""
    with pytest.raises((TypeError, ValueError)):
        chunks.check(*wrong)
