"""Two real Pythons of different minor versions: what crosses between them does the same, what cannot is refused with both versions."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from funcmq.broker import codec, values
from funcmq.broker.errors import EnvironmentMismatch
from funcmq.broker.functions import make_record, pack
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import Inline
from funcmq.dev.stack import Stack
from funcmq.endpoint import leftovers
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import Place
from funcmq.endpoint.pool import Pool
from funcmq.endpoint.worker.packet import Done, Member, Packet, Report
from tests import pythons

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240), pytest.mark.long]
OFFSET = 40


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another Python with what workers and clients need."""
    return pythons.environment(tmp_path_factory.mktemp("other") / "env")


class Owner:
    """Submits to pools and waits for what they say."""

    def __init__(self, shared: Path) -> None:
        self.pools: list[Pool] = []
        self.shared = shared
        self.answers: dict[int, asyncio.Future[Report | str]] = {}
        self.changed = asyncio.Event()

    def answered(self, pool: str, number: int, payload: bytes) -> None:
        self.answers[number].set_result(codec.decode(Report, payload))

    def lost(self, pool: str, number: int, reason: str) -> None:
        self.answers[number].set_result(reason)

    def workers_changed(self, pool: str) -> None:
        self.changed.set()

    def demand(self, pool: str) -> int:
        return 1

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(120):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def call(self, function: Callable[..., Any], *args: Any, strategy: Any = "auto") -> Done:
        recorded = make_record(function, strategy=strategy)
        (self.shared / "functions").mkdir(exist_ok=True)
        (self.shared / "functions" / recorded.id).write_bytes(recorded.record)
        member = Member(new_id(), recorded.id, recorded.name, recorded.places, "call", pack((args, {})), 0.0, 1)
        number = len(self.answers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        self.pools[0].submit(number, codec.encode(Packet(1, [member], str(self.shared), "", "", 1 << 23)))
        async with asyncio.timeout(120):
            report = await self.answers[number]
        assert isinstance(report, Report), report
        return report.members[0]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def owner(other: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    """A pool whose workers have the other Python, beside one whose interpreter has nothing."""
    folder = tmp_path_factory.mktemp("pythons")
    mark = new_hex()
    owner = Owner(folder)
    bare = PoolConfig("bare", python=str(pythons.one()), worker_init="export PYTHONNOUSERSITE=1")
    configs = (PoolConfig("other", workers_per_node=1, min_blocks=1, python=str(other)), bare)
    place = Place(folder / "run", "127.0.0.1", mark)
    async with Pool(configs[0], place, owner) as good, Pool(configs[1], place, owner) as bad:
        owner.pools = [good, bad]
        running = [asyncio.create_task(pool.run()) for pool in owner.pools]
        await owner.until(lambda: good.workers)
        yield owner
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert leftovers.find(mark) == []


def double(x: float) -> float:
    return x * 2


def by_source(x: float, *, unit: str = f"m{OFFSET}") -> tuple[Any, ...]:
    """Uses what differs between Pythons: the version."""
    return platform.python_version(), math.floor(double(x)) + OFFSET, unit, {"nested": [b"x", (1, None)]}


def fail() -> None:
    raise ValueError("over there")


class Local:
    def __init__(self, value: int) -> None:
        self.value = value

    def get(self) -> int:
        return self.value


def make_local(value: int) -> Any:
    class Far:
        def __init__(self) -> None:
            self.value = value

    return Far()


def closure() -> Callable[[], int]:
    kept = OFFSET
    return lambda: kept


async def test_a_pool_tells_the_versions_of_its_own_interpreter(owner: Owner) -> None:
    """They are not the daemon's; a pool whose interpreter does not fit is not started, says the pip line, and the other one works."""
    good, bad = owner.pools
    await owner.until(bad.asked.is_set)
    assert good.versions["python"].startswith(".".join(map(str, min(pythons.others()))))
    assert good.versions["parsl"] == sys.modules["parsl"].__version__
    assert good.reason == ""
    await owner.until(lambda: bad.broken)
    assert f"{pythons.one()} -m pip install 'funcmq[worker]==" in bad.reason
    assert bad.interchange == 0


async def test_source_and_plain_data_cross(owner: Owner) -> None:
    """A function whose globals are imports, plain data and functions runs there with the same result; so does one that is imported."""
    done = await owner.call(by_source, 1.5)
    assert done.failure is None
    assert isinstance(done.value, Inline)
    version, *rest = values.unpack(done.value)
    assert (version, *rest) == (owner.pools[0].versions["python"], *by_source(1.5)[1:])
    assert version != platform.python_version()
    imported = await owner.call(json.dumps, [1])
    assert isinstance(imported.value, Inline)
    assert values.unpack(imported.value) == "[1]"


async def test_tracebacks_of_source_have_its_places(owner: Owner) -> None:
    """An error over there names the file and line over here."""
    done = await owner.call(fail)
    assert done.failure is not None
    place = f'File "{__file__}", line {fail.__code__.co_firstlineno + 1}, in fail'
    assert f'{place}\n    raise ValueError("over there")' in done.failure.traceback


@pytest.mark.parametrize(("function", "strategy"), [(closure(), "auto"), (double, "pickle")])
async def test_bytecode_does_not_cross(owner: Owner, function: Callable[..., Any], strategy: str) -> None:
    """A worker refuses a pickled function of another Python with both versions, and what to do."""
    done = await owner.call(function, strategy=strategy)
    assert done.failure is not None
    assert done.failure.code == "EnvironmentMismatch"
    assert f"made by Python {values.PYTHON}" in done.failure.message
    assert f"this worker has Python {owner.pools[0].versions['python']}" in done.failure.message
    assert "conda create" in done.failure.hint


async def test_code_inside_values_does_not_cross(owner: Owner) -> None:
    """Arguments and results that carry classes by value are refused as such, in both directions; objects of installed classes cross."""
    done = await owner.call(by_source, Local(3))
    assert done.failure is not None
    assert (done.failure.code, f"code of Python {values.PYTHON}" in done.failure.message) == ("EnvironmentMismatch", True)
    back = await owner.call(make_local, 3, strategy="source")
    assert isinstance(back.value, Inline)
    with pytest.raises(EnvironmentMismatch, match=f"this is Python {values.PYTHON}"):
        values.unpack(back.value)
    path = await owner.call(os.fspath, Path("/x"))
    assert isinstance(path.value, Inline)
    assert values.unpack(path.value) == "/x"


CLIENT = """
import asyncio, json, platform, sys
from funcmq import Client, errors
sys.path.insert(0, sys.argv[1])
import far

async def main():
    async with Client() as fx:
        here, there = platform.python_version(), await fx.submit(far.version)
        assert here != there
        assert [r async for r in fx.map(far.double, range(5))] == [0, 2, 4, 6, 8]
        kept = here
        waiting = fx.submit(lambda: kept)
        try:
            await waiting
        except errors.EnvironmentMismatch as refused:
            told = [str(refused)]
        identifier = await fx.on(strategy="pickle").register(far.double)
        try:
            await fx.submit(identifier, 1)
        except errors.EnvironmentMismatch as refused:
            told.append(str(refused))
        seen = [task.id for task in await fx.tasks()]
        print(json.dumps([here, there, told, waiting.id in seen]))

asyncio.run(main())
"""
FAR = """
import platform
def version(): return platform.python_version()
def double(x): return x * 2
"""


async def test_a_client_of_another_python_is_told_before_it_sends(other: Path, stack: Stack, tmp_path: Path) -> None:
    """Source runs; what has none is refused by the client, and by the front door where the client does not know it: nothing is accepted."""
    (tmp_path / "far.py").write_text(FAR)
    said = await asyncio.to_thread(pythons.run, other, CLIENT, str(tmp_path), **stack.environment)
    here, there, told, accepted = json.loads(said)
    assert there == platform.python_version()
    assert not accepted
    minor = here.rpartition(".")[0]
    assert [f"made by Python {minor}" in text and f"has Python {there}" in text and "conda create" in text for text in told] == [True, True]
    assert "uses 'kept' of the function around it" in told[0]
