"""Laws of a running daemon among real parts: what it has acked it ends, once, and what it cannot verify it does not run."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from funcmq.broker import codec, messages
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import FunctionRef
from funcmq.broker.signing import BUNDLE, RESULTS, PrivateKey
from funcmq.dev.rabbitmq import Node
from tests.endpoint_rig import WORKERS, Rig, rig

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(rabbitmq: Node, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """One daemon for the module, with everything around it."""
    async with rig(rabbitmq.broker, tmp_path_factory.mktemp("endpoint")) as it:
        process = await it.start()
        yield it
        process.terminate()
        assert await process.wait() == 0
        it.assert_clean()


@pytest.fixture
def endpoint(running: Rig) -> Rig:
    """The same, with what earlier tests heard forgotten."""
    running.forget()
    return running


def double(x: int) -> int:
    return 2 * x


def slow(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail() -> None:
    raise ValueError("no")


def die() -> None:
    os._exit(3)


def note(path: str, name: int, seconds: float) -> int:
    with open(path, "a") as file:  # noqa: PTH123 (one append, whoever else writes)
        file.write(f"{name}\n")
    time.sleep(seconds)
    return name


def large(data: bytes) -> bytes:
    return data[::-1]


async def test_work_is_done_and_signed(endpoint: Rig) -> None:
    """Tasks of one bundle come back with their values, times and host, signed by the endpoint."""
    ids = await endpoint.submit(double, *[(number,) for number in range(100)])
    assert await endpoint.values(ids) == [2 * number for number in range(100)]
    outcome = endpoint.outcomes[ids[0]]
    assert outcome.received <= outcome.started <= outcome.ended
    assert (outcome.attempt, bool(outcome.host)) == (1, True)


async def test_neighbours_are_not_harmed(endpoint: Rig) -> None:
    """An error, a death of the process and good calls, at the same time, each end as what they are."""
    bad, dead = await endpoint.submit(fail, ()), await endpoint.submit(die, ())
    good = await endpoint.submit(double, (1,), (2,))
    assert await endpoint.values(good) == [2, 4]
    failed, died = (await endpoint.ends([*bad, *dead]))[:2]
    assert failed.failure is not None and died.failure is not None
    assert (failed.failure.code, failed.failure.type_name, failed.attempt) == ("TaskFailed", "ValueError", 1)
    assert (died.failure.code, died.attempt) == ("WorkerDied", 2)


async def test_large_values_pass_as_files(endpoint: Rig) -> None:
    """Arguments and results of a megabyte arrive whole, and no file of theirs stays."""
    data = os.urandom(1024 * 1024)
    assert await endpoint.values(await endpoint.submit(large, (data,))) == [data[::-1]]
    async with asyncio.timeout(5):
        while list((endpoint.config.run_dir / "spill").glob("*")):
            await asyncio.sleep(0.01)


async def test_a_duplicate_bundle_runs_once(endpoint: Rig, tmp_path: Path) -> None:
    """The same bundle three times, during and after its run, runs its tasks once, and is acked with a receipt."""
    work = endpoint.work(endpoint.door.register(note), [(str(tmp_path / "runs"), number, 0.2) for number in range(4)])
    await endpoint.send(work)
    name = await endpoint.send(work, dispatch=2)
    await endpoint.ends([task.id for task in work.tasks])
    await endpoint.send(work, dispatch=3)
    await endpoint.until(lambda: sum(name in receipt.bundles for receipt in endpoint.receipts) >= 2)
    assert sorted((tmp_path / "runs").read_text().split()) == ["0", "1", "2", "3"]


async def test_only_what_was_accepted_is_run(endpoint: Rig) -> None:
    """`only` withholds the other tasks of a bundle, and a later dispatch may bring them."""
    work = endpoint.work(endpoint.door.register(double), [(1,), (2,), (3,)])
    ids = [task.id for task in work.tasks]
    await endpoint.send(work, only=[1])
    await endpoint.ends([ids[1]])
    assert set(endpoint.outcomes) == {ids[1]}
    await endpoint.send(work, only=[0, 2])
    assert await endpoint.values(ids) == [2, 4, 6]


async def test_what_cannot_be_verified_is_refused(endpoint: Rig) -> None:
    """A bundle by an unknown key, for another user, endpoint or account, from the future, or under another domain is refused, signed, and
    not run.
    """
    function = endpoint.door.register(double)
    good = endpoint.work(function, [(1,)])
    stranger = PrivateKey.generate()
    bad: list[tuple[Any, PrivateKey, bytes]] = [
        (msgspec.structs.replace(good, key=stranger.public.id), stranger, BUNDLE),
        (msgspec.structs.replace(good, user=new_hex()), endpoint.key, BUNDLE),
        (msgspec.structs.replace(good, endpoint=new_hex()), endpoint.key, BUNDLE),
        (msgspec.structs.replace(good, run_as="root"), endpoint.key, BUNDLE),
        (msgspec.structs.replace(good, signed_at=good.signed_at + 400_000), endpoint.key, BUNDLE),
        (msgspec.structs.replace(good, key=stranger.public.id), endpoint.key, BUNDLE),
        (good, endpoint.key, RESULTS),
    ]
    for work, key, domain in bad:
        await endpoint.send_raw(key.sign(domain, codec.encode(work)))
    await endpoint.until(lambda: len(endpoint.refused) == len(bad))
    assert Counter(word.code for word in endpoint.refused) == {"NotAllowed": 6, "InvalidRequest": 1}
    await endpoint.send(good)
    assert await endpoint.values([good.tasks[0].id]) == [2]
    assert len(endpoint.outcomes) == 1


async def test_garbage_harms_nobody(endpoint: Rig) -> None:
    """Bytes that are no dispatch, no bundle or no order are put aside, and the daemon goes on."""
    await endpoint.link.publish("tasks", endpoint.endpoint, "bundle/1", b"\xc1\xc1")
    await endpoint.link.publish("tasks", endpoint.endpoint, "bundle/7", b"")
    await endpoint.send_raw(b"not a bundle")
    await endpoint.link.publish("control", endpoint.endpoint, "order/1", b"\x93")
    assert await endpoint.values(await endpoint.submit(double, (4,))) == [8]


async def test_trust_taken_away_works_at_once(endpoint: Rig) -> None:
    """A line taken out of trusted_keys stops what waits and what comes; put back, work runs again."""
    keys = endpoint.config.trusted_keys.read_text()
    busy = await endpoint.submit(slow, *[(1.0,)] * WORKERS, retry="never")  # such tasks are never packed: each takes a worker
    waiting = await endpoint.submit(slow, (0.0,), not_before=int(time.time() * 1000) + 1000)
    await endpoint.until(lambda: endpoint.receipts)
    try:
        endpoint.config.trusted_keys.write_text("# nobody\n")
        outcome = (await endpoint.ends(waiting))[0]
        assert outcome.failure is not None and outcome.failure.code == "NotAllowed"
        await endpoint.ends(busy)
        await endpoint.submit(double, (1,))
        await endpoint.until(lambda: endpoint.refused)
    finally:
        endpoint.config.trusted_keys.write_text(keys)
    assert await endpoint.values(await endpoint.submit(double, (1,))) == [2]


async def test_cancel_waiting_running_and_before_it_came(endpoint: Rig) -> None:
    """A cancelled task ends as cancelled within two seconds, whether it runs, waits, or comes after its cancel; its neighbours end as
    usual.
    """
    running = await endpoint.submit(slow, (30.0,), (30.0,), retry="never")
    waiting = await endpoint.submit(slow, (0.01,), (0.02,))
    late = endpoint.work(endpoint.door.register(double), [(1,), (2,)])
    await endpoint.until(lambda: set(running) <= set(endpoint.running))
    began = time.monotonic()
    await endpoint.control("cancel/1", messages.Cancel(1, [running[0], waiting[0], late.tasks[0].id]))
    await endpoint.ends([running[0], waiting[0]])
    assert time.monotonic() - began < 3
    await endpoint.send(late)
    ids = [running[0], waiting[0], late.tasks[0].id]
    assert [outcome.state for outcome in await endpoint.ends(ids)] == ["cancelled"] * 3
    assert await endpoint.values([waiting[1], late.tasks[1].id]) == [0.02, 4]
    await endpoint.control("cancel/1", messages.Cancel(1, [running[1]]))
    assert (await endpoint.ends([running[1]]))[0].state == "cancelled"


async def test_expiry(endpoint: Rig) -> None:
    """What has not started by its not_after ends as expired, though all workers are busy."""
    busy = await endpoint.submit(slow, (3.0,), (3.0,), retry="never")
    late = await endpoint.submit(double, (1,), not_after=int(time.time() * 1000) + 1000)
    assert (await endpoint.ends(late))[0].state == "expired"
    assert not set(busy) & set(endpoint.outcomes)


async def test_an_unknown_function_is_said(endpoint: Rig) -> None:
    """A function that the front door does not have fails its tasks with NotFound; one whose record is another's is not run."""
    ids = []
    for function in (FunctionRef("a" * 64, "gone"), FunctionRef("b" * 64, "swapped")):
        work = endpoint.work(function, [()])
        ids.append(work.tasks[0].id)
        endpoint.door.functions["b" * 64] = b"something else"
        await endpoint.send(work)
    codes = [outcome.failure.code for outcome in await endpoint.ends(ids) if outcome.failure]
    assert codes == ["NotFound", "InvalidRequest"]


async def test_heartbeats_tell(endpoint: Rig) -> None:
    """Heartbeats carry pid, epoch, workers, and who waits; a change of workers is told at once."""
    await endpoint.until(lambda: any(beat.pools[0].workers == 2 for beat in endpoint.heartbeats), 15)
    beat = endpoint.heartbeats[-1]
    assert (beat.pid, beat.epoch, beat.pools[0].capacity) == (endpoint.pid, 1, 2)


async def test_a_refused_result_is_kept(endpoint: Rig) -> None:
    """A result that the front door refuses for good stays as a file at the endpoint."""
    endpoint.storing = False
    ids = await endpoint.submit(double, (2,))
    await endpoint.ends(ids)
    name = endpoint.bundles[-1]
    await endpoint.control("stored/1", messages.Stored(1, [(name, "no such task")]))
    kept = endpoint.config.run_dir / "results" / f"{name}.refused"
    async with asyncio.timeout(10):
        while not kept.exists():
            await asyncio.sleep(0.02)
    assert kept.read_bytes()


async def test_a_broker_away_loses_nothing(endpoint: Rig) -> None:
    """With its connections cut again and again, every task still ends once."""
    ids: list[bytes] = []
    for _ in range(5):
        ids += await endpoint.submit(slow, *[(0.05,)] * 10)
        endpoint.cut()
    assert await endpoint.values(ids, 60) == [0.05] * 50


async def test_what_comes_again_holds_up_nobody(endpoint: Rig) -> None:
    """A bundle whose tasks have ended, delivered again beside new work, neither runs again nor keeps the new work waiting."""
    work = endpoint.work(endpoint.door.register(slow), [(0.0,)] * WORKERS, retry="never")
    await endpoint.send(work)
    await endpoint.ends([task.id for task in work.tasks])
    for _ in range(20):
        *_, ids = await asyncio.gather(endpoint.send(work), endpoint.send(work), endpoint.submit(slow, (0.0,), retry="never"))
        assert await endpoint.values(ids, 10) == [0.0]


async def test_unknown_ids_are_not_confused(endpoint: Rig) -> None:
    """`stored` and `cancel` about things nobody knows are taken without harm."""
    await endpoint.control("stored/1", messages.Stored(1, [("f" * 64, ""), ("e" * 64, "reason")]))
    await endpoint.control("cancel/1", messages.Cancel(1, [new_id()]))
    assert await endpoint.values(await endpoint.submit(double, (1,))) == [2]
