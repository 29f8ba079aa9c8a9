"""Which member runs, and when it is ended, without any process."""

from __future__ import annotations

import pytest

from funcmq.broker.messages import Inline
from funcmq.endpoint.worker.ledger import SETTLE_S, Ledger
from funcmq.endpoint.worker.packet import Done, Member
from funcmq.endpoint.worker.wire import LONG_S, Finished


def member(number: int, walltime: float = 0.0) -> Member:
    return Member(bytes([number]) * 16, "f" * 64, "f", [], "call", Inline("msgpack", b""), walltime, 1)


def finished(number: int, ended: float) -> Finished:
    return Finished(number, ended, Done(bytes([number]) * 16, "succeeded", None, None, 0, 0, 0.0))


def ledger(*walltimes: float) -> Ledger:
    """Members with these walltimes, given to a child at 100 s."""
    made = Ledger([member(number, walltime) for number, walltime in enumerate(walltimes)])
    made.start(100.0)
    return made


def test_the_first_unfinished_member_runs() -> None:
    """Members run in order; the next one starts when the last one ended, and in the end there is a `Done` for each."""
    book = ledger(0, 0)
    assert book.running == member(0)
    book.finish(finished(0, 101.0))
    assert (book.running, book.open, book.since) == (member(1), [1], 101.0)
    book.finish(finished(1, 102.0))
    assert book.running is None
    assert [done.id[0] for done in book.done] == [0, 1]
    assert (book.due(103.0), book.verdict(103.0)) == (None, None)


@pytest.mark.parametrize("wrong", [finished(1, 101.0), Finished(0, 101.0, finished(1, 0).done)])
def test_what_does_not_run_cannot_finish(wrong: Finished) -> None:
    """A child that finishes another member than the one that runs is not believed."""
    with pytest.raises(ValueError, match="not running"):
        ledger(0, 0).finish(wrong)


def test_walltime_counts_from_a_members_own_start() -> None:
    """The verdict comes when the member that runs has had its walltime, not before, whatever those before it took."""
    book = ledger(5, 5)
    assert (book.verdict(104.9), book.verdict(105.0)) == (None, "walltime")
    book.finish(finished(0, 104.0))
    assert (book.verdict(108.9), book.verdict(109.0)) == (None, "walltime")


def test_the_next_look_is_never_too_late() -> None:
    """While the running one may have ended unnoticed, any walltime of the packet counts; later only its own, because its end rings."""
    book = ledger(0, 7, 3)
    assert book.due(100.0) == 103.0
    assert book.due(100.0 + LONG_S) is None
    book.finish(finished(0, 101.0))
    assert book.due(101.0 + LONG_S) == 108.0


def test_cancel_ends_what_runs_and_skips_what_waits() -> None:
    """A running member is ended at once; the child is told of a waiting one, once, and has time to skip it before it is ended too."""
    book = ledger(0, 0)
    assert book.cancel(member(1).id, 101.0)
    assert not book.cancel(member(1).id, 101.0)
    assert book.verdict(102.0) is None
    assert book.due(101.0) == 101.0 + SETTLE_S
    book.finish(finished(0, 101.0))
    assert book.verdict(101.0) is None
    assert book.verdict(101.0 + SETTLE_S) == "cancelled"
    assert not ledger(0).cancel(member(0).id, 101.0)


def test_cancel_of_what_is_not_here_changes_nothing() -> None:
    """Unknown and finished tasks are ignored."""
    book = ledger(0, 0)
    book.finish(finished(0, 101.0))
    assert not book.cancel(b"?" * 16, 102.0)
    assert not book.cancel(member(0).id, 102.0)
    assert (book.verdict(200.0), book.due(102.0)) == (None, None)
