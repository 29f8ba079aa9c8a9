"""`strategy`, and functions of a Python that no pool has, on a whole fabric; tests/integration/test_pythons.py has two real Pythons."""

from __future__ import annotations

import platform

import pytest

from funcmq import Client, errors
from funcmq.broker import codec
from funcmq.broker.api import FunctionAnswer
from funcmq.broker.functions import Recorded
from funcmq.broker.http import Api
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.dev.stack import Stack

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]
FACTOR = 3
OLD = codec.encode(FunctionRecord(1, "pickle", "ancient", "3.7", b"never looked at", None))


def times(x: int) -> int:
    return x * FACTOR


async def test_every_strategy_gives_the_same_result(fx: Client) -> None:
    """Pickle, source or both: the function does the same, and source says at once why a function cannot be."""
    for strategy in ("auto", "pickle", "source"):
        assert await fx.on(strategy=strategy).submit(times, 2) == 6  # type: ignore[typeddict-item]
    kept = FACTOR
    task = fx.on(strategy="source").submit(lambda: kept)
    assert task.done()
    with pytest.raises(errors.NotSerializable, match=r"cannot be sent as source: .* uses 'kept' of the function around it"):
        await task


async def test_a_function_of_another_python_is_refused_before_it_is_sent(fx: Client) -> None:
    """The client knows what it needs and what the pools have: both versions and the remedy, its neighbours go on, nothing was accepted."""
    old = Recorded(sha256(OLD), OLD, "ancient", [], "3.7", "it is a lambda")
    refused, neighbour = fx.submit(old), fx.submit(times, 1)  # type: ignore[call-overload, arg-type, var-annotated]
    with pytest.raises(errors.EnvironmentMismatch) as told:
        await refused
    assert f"the pool local of dev has Python {platform.python_version()}" in told.value.message
    assert "ancient was made by Python 3.7 and cannot travel as source, because it is a lambda" in told.value.message
    assert "conda create" in told.value.hint
    assert await neighbour == 3
    assert refused.id not in {task.id for task in await fx.tasks()}


async def test_the_front_door_refuses_what_the_client_does_not_know(fx: Client, stack: Stack) -> None:
    """A function by its id: the front door has the record and the last heartbeat, and says the same."""
    async with Api(stack.environment["FUNCMQ_URL"], stack.environment["FUNCMQ_TOKEN"]) as front:
        identifier = (await front.send_raw("/functions", OLD, FunctionAnswer)).id
    with pytest.raises(errors.EnvironmentMismatch, match=r"was made by Python 3\.7 .* the pool local of dev has Python"):
        await fx.submit(identifier)
    views = await fx.endpoints()
    assert {"python", "parsl", "funcmq", "cloudpickle"} <= views[0].pools[0].versions.keys()
