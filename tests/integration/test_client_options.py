"""Laws of the options of `on()`, each as the interface words it."""

import time

import pytest

from funcmq import Client
from funcmq.broker.ids import new_hex

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


async def test_a_key_names_one_task(fx: Client) -> None:
    """Two submissions with one key are one task, in one burst, later, and from another client."""
    view = fx.on(key="run-" + new_hex())
    first, second = view.submit(time.time_ns), view.submit(time.time_ns)
    assert await first == await second
    assert first.id == second.id
    third = view.submit(time.time_ns)
    assert await third == await first
    async with Client() as other:
        again = other.on(key=view.scope.key).submit(time.time_ns)
        assert await again == await first
        assert again.group == first.group != other.group
