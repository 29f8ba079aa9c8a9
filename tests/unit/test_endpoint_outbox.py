"""Laws of the outbox: a result is sent until it is stored, again only on evidence, and never forgotten in between."""

import asyncio

import pytest

from funcmq.broker.errors import Busy, Unreachable
from funcmq.broker.ids import new_id
from funcmq.broker.messages import MAX_BUNDLE, MAX_TASKS, Inline, Outcome
from funcmq.broker.signing import PrivateKey
from funcmq.endpoint.outbox import EVIDENCE_S, HELD_BYTES, LONGEST_S, Outbox, Sender
from funcmq.endpoint.results import Formed, Signer
from tests.unit.test_endpoint_queue import tasks


def filled(*names: str) -> Outbox:
    outbox = Outbox()
    for name in names:
        outbox.add(name, ("key", name.encode()))
    return outbox


def test_confirmed_is_not_stored() -> None:
    """The broker's confirm ends the sending, not the keeping."""
    outbox = filled("a")
    outbox.confirmed("a", 0.0)
    assert not outbox.wanted("a")
    assert len(outbox) == 1
    assert outbox.stored("a", 0.0)
    assert len(outbox) == 0


def test_evidence_is_a_later_one_stored() -> None:
    """A bundle is sent again a minute after a later one was stored, then ever more rarely; without evidence never."""
    outbox = filled("a", "b", "c")
    for name in ("a", "b", "c"):
        outbox.confirmed(name, 50.0)
    assert outbox.overdue(1e9) == []
    outbox.stored("b", 100.0)
    assert outbox.overdue(100.0 + EVIDENCE_S - 1) == []
    assert outbox.overdue(100.0 + EVIDENCE_S) == ["a"]
    now, waits = 100.0 + EVIDENCE_S, []
    for _ in range(6):
        outbox.confirmed("a", now)
        step = next(step for step in range(1, 2000) if outbox.overdue(now + step))
        waits.append(step)
        now += step
    assert waits == [120, 240, 480, 600, 600, 600]
    assert max(waits) <= LONGEST_S


def test_asked_for_is_sent_again() -> None:
    """`resend` sends what is confirmed and not stored, nothing twice at once; asked again, ever more rarely, at last after ten minutes."""
    outbox = filled("a", "b")
    outbox.confirmed("a", 100.0)
    assert outbox.asked(101.0) == ["a"]
    assert outbox.asked(101.0) == [], "it is on its way"
    now, waits = 101.0, []
    for _ in range(5):
        outbox.confirmed("a", now)
        step = next(step for step in range(1, 2000) if outbox.asked(now + step))
        waits.append(step)
        now += step
    assert waits == [120, 240, 480, 600, 600]


def test_one_order_is_one_repeat() -> None:
    """What was asked for is not sent a second time by itself: without another order or a later one stored there is no evidence."""
    outbox = filled("a")
    outbox.confirmed("a", 0.0)
    assert outbox.asked(EVIDENCE_S) == ["a"]
    outbox.confirmed("a", EVIDENCE_S)
    assert outbox.overdue(1e9) == []


def test_memory_is_bounded() -> None:
    """Beyond a limit the bytes stay in the journal only."""
    outbox = Outbox()
    outbox.add("a", ("key", b"x" * HELD_BYTES))
    outbox.add("b", ("key", b"y"))
    assert outbox.body("a") is not None
    assert outbox.body("b") is None
    outbox.confirmed("a", 0.0)
    assert outbox.body("a") is None


@pytest.mark.asyncio
async def test_the_sender_does_not_give_up() -> None:
    """What the broker refuses or does not confirm is published until it does; what is stored meanwhile is not published again."""
    outbox = filled("a", "b")
    said: list[bytes] = []
    refusals = [Unreachable(), Busy(), Unreachable()]

    async def publish(key: str, data: bytes) -> None:
        said.append(data)
        if refusals:
            raise refusals.pop()

    async def fetch(name: str) -> None:
        raise AssertionError("it is in memory")

    sender = Sender(outbox, fetch, publish)
    running = asyncio.create_task(sender.run())
    sender.send(["a", "b"])
    await sender.all_confirmed()
    assert sorted(set(said)) == [b"a", b"b"]
    assert len(said) == 5
    assert outbox.unconfirmed == 0
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def form(outcomes: list[Outcome]) -> list[Formed]:
    return Signer("e" * 32, "j" * 32, PrivateKey.generate()).form([(tasks(1)[0], outcome) for outcome in outcomes], 1)


def outcome(size: int) -> Outcome:
    return Outcome(new_id(), "succeeded", Inline("msgpack", b"x" * size), None, 1, 1, 1, 1, "host")


def test_bundles_fit() -> None:
    """A result bundle has at most 1,024 results and 1 MiB, or one result that is larger; every result is in one, in order."""
    small = [outcome(10) for _ in range(MAX_TASKS + 1)]
    assert [len(piece.tasks) // 16 for piece in form(small)] == [MAX_TASKS, 1]
    large = [outcome(400_000) for _ in range(5)] + [outcome(2 * MAX_BUNDLE)]
    pieces = form(large)
    assert b"".join(piece.tasks for piece in pieces) == b"".join(each.id for each in large)
    assert all(len(piece.data) <= MAX_BUNDLE or len(piece.tasks) == 16 for piece in pieces)
