"""Laws of functions that are submitted by name."""

from collections.abc import Callable

import pytest

from funcmq import Client, errors
from funcmq.broker.ids import new_hex
from tests.client_rig import double

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


def times(factor: int) -> Callable[[int], int]:
    """A function whose content differs for each factor."""
    return lambda number: factor * number


async def new_name(fx: Client) -> str:
    return f"{(await fx._connection.ready()).identity.name}/f{new_hex()[-8:]}"


async def test_a_named_function_runs_by_its_name(fx: Client) -> None:
    """submit and map take the name: its latest version, or the one that is named; the future is called so."""
    name = await new_name(fx)
    first = await fx.register(times(2), name=name)
    assert first == await fx.register(times(2), name=name)
    task = fx.submit(name, 21)
    assert (await task, task.name) == (42, name)
    second = await fx.register(times(3), name=name)
    assert second != first
    assert await fx.gather([fx.submit(name, 5), fx.submit(f"{name}@1", 5), fx.submit(f"{name}@2", 5), fx.submit(first, 5)]) == [
        15,
        10,
        15,
        10,
    ]
    assert [one async for one in fx.map(name, range(4))] == [0, 3, 6, 9]
    async with Client() as other:
        assert await other.submit(name, 1) == 3
        assert {view.id for view in await other.tasks(function=f"{name}@2", limit=5)} <= {view.id for view in await fx.tasks(function=name)}


async def test_a_name_that_is_not_there_harms_no_neighbour(fx: Client) -> None:
    """Its task ends as NotFound, those in the same bundle go on; a name of somebody else, or none at all, is refused."""
    name = await new_name(fx)
    lost, good = fx.submit(name, 1), fx.submit(double, 1)
    wrong = fx.submit(f"{name}@7", 1)
    assert await good == 2
    for task in (lost, wrong):
        with pytest.raises(errors.NotFound, match=name):
            await task
    with pytest.raises(errors.NotAllowed, match="not yours"):
        await fx.register(double, name="somebody-else/f")
    with pytest.raises(errors.InvalidRequest):
        await fx.register(double, name="no-owner")
    with pytest.raises(TypeError, match="ada/recon"):
        fx.submit("no-owner", 1)
    cancelled = fx.submit(name, 1)
    assert cancelled.cancel()
    assert cancelled.cancelled()
