"""Laws of calls: what goes out comes back, one by one and mapped."""

import asyncio
import functools
import os
from pathlib import Path
from typing import Any

import pytest

from funcmq import Client, errors, function
from tests.client_rig import add, double

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


async def test_a_call_goes_out_and_its_result_comes_back(fx: Client) -> None:
    """Arguments are the function's own, and the future tells where and when it ran."""
    task = fx.submit(add, 1, 2, plus=3)
    assert await task == 6
    assert (task.state, task.endpoint) == ("succeeded", "dev")
    stamps = task.timeline
    assert list(stamps) == ["submitted", "accepted", "received", "started", "ended"] or "accepted" not in stamps
    assert task.host


class Scale:
    """A callable object with a method."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def times(self, number: int) -> int:
        return self.factor * number

    __call__ = times


async def later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def enclose(factor: int) -> Any:
    def inner(number: int) -> int:
        return factor * double(number) // 2

    return inner


@function
def decorated(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize(
    "kind",
    [
        double,
        lambda n: 2 * n,
        enclose(2),
        functools.partial(add, plus=0),
        Scale(2),
        Scale(2).times,
        later,
        decorated,
        functools.partial(Scale(2).times),
    ],
    ids=["module", "lambda", "closure", "partial", "object", "method", "async", "decorated", "partial-method"],
)
async def test_every_kind_of_function(fx: Client, kind: Any) -> None:
    """Functions of local modules, lambdas, closures, partials, objects, methods and coroutine functions run far away as they do here."""
    expected = 8 if not isinstance(kind, functools.partial) or kind.func is not add else 4
    assert await fx.submit(kind, 4) == expected


async def test_plain_values_come_back_as_they_were(fx: Client) -> None:
    """Tuples stay tuples, bytes stay bytes, and objects are pickled."""
    for value in [
        None,
        (1, (2, [3])),
        b"\x00",
        {"k": 1.5, 2: "x"},
        {1, 2},
        Path("/x"),
        1 << 100,
        "ü\ud83d\ude00".encode("utf-16", "surrogatepass"),
    ]:
        assert await fx.submit(lambda x: x, value) == value
        assert type(await fx.submit(lambda x: x, value)) is type(value)


async def test_map_gives_all_in_order(fx: Client) -> None:
    """Thousands of calls, in order; unordered gives the same set; several iterables give several arguments."""
    assert [one async for one in fx.map(double, range(5000))] == [2 * n for n in range(5000)]
    assert {one async for one in fx.map(double, iter(range(300)), ordered=False)} == {2 * n for n in range(300)}
    assert [one async for one in fx.map(add, [1, 2], [3, 4], chunksize=1)] == [4, 6]
    assert [one async for one in fx.map(later, range(3))] == [0, 2, 4]


async def test_map_knows_three_ways_with_errors(fx: Client) -> None:
    """One failing call takes no neighbour along; "raise" gives what came before it, then its error."""
    numbers = [1, 0, 2]
    outcomes = [one async for one in fx.map(lambda n: 1 / n, numbers, errors="return", chunksize=3)]
    assert isinstance(outcomes[1], ZeroDivisionError)
    assert [one async for one in fx.map(lambda n: 1 / n, numbers, errors="skip")] == [1, 0.5]
    given = []
    with pytest.raises(ZeroDivisionError) as raised:
        async for one in fx.map(lambda n: 1 / n, numbers, chunksize=3):
            given += [one]
    assert given == [1]
    assert isinstance(raised.value, errors.TaskFailed)
    assert "ZeroDivisionError" in raised.value.remote_traceback


async def test_a_dying_call_takes_no_neighbour_along(fx: Client) -> None:
    """In a chunk one call ends its process: only that call is WorkerDied."""
    outcomes = [one async for one in fx.map(lambda n: os._exit(3) if n == 5 else n, range(10), chunksize=10, errors="return")]
    assert isinstance(outcomes[5], errors.WorkerDied)
    assert [one for one in outcomes if isinstance(one, int)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_registered_function_runs_by_its_id(fx: Client) -> None:
    """register() gives an id that submit and map take; the same source has the same id."""
    identifier = await fx.register(double)
    assert identifier == await fx.register(double)
    assert await fx.submit(identifier, 4) == 8
    assert [one async for one in fx.map(identifier, [1, 2])] == [2, 4]
