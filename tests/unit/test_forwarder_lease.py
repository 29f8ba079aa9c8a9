"""Who holds an endpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest

from funcmq.broker import api
from funcmq.broker.errors import AlreadyRunning, Conflict
from funcmq.forwarder.lease import Grant, Held, Renewal, decide

NEVER = Held(epoch=0, held=False, journal="", birth=0, since=0, host="", pid=0)
HELD = Held(epoch=4, held=True, journal="j", birth=1, since=2, host="login3", pid=7)


def asks(**changes: object) -> api.LeaseRequest:
    fields: dict[str, object] = {"journal": "j", "birth": 1, "epoch": None, "host": "h", "pid": 1, "release": "0", "trusted": []}
    return api.LeaseRequest(**(fields | changes))  # type: ignore[arg-type]


def test_the_first_start_is_epoch_one() -> None:
    """Nobody's work is sent again at the first start."""
    assert decide(NEVER, asks()) == Grant(1, moved=False)


def test_the_same_journal_gets_the_next_epoch() -> None:
    """A restart on the same journal needs nobody's leave, held or given back."""
    assert decide(HELD, asks()) == Grant(5, moved=False)
    assert decide(replace(HELD, held=False), asks()) == Grant(5, moved=False)


def test_another_journal_is_refused_and_told_who_runs() -> None:
    """Host, pid and time of the holder are in the error."""
    with pytest.raises(AlreadyRunning) as refused:
        decide(HELD, asks(journal="k"))
    assert refused.value.details == {"host": "login3", "pid": 7, "since": 2}


def test_another_journal_moves_in_by_takeover_or_after_a_lease_was_given_back() -> None:
    """Then what the old journal had is to be sent again."""
    assert decide(HELD, asks(journal="k", takeover=True)) == Grant(5, moved=True)
    assert decide(replace(HELD, held=False), asks(journal="k")) == Grant(5, moved=True)


def test_only_the_newest_epoch_of_the_holder_is_renewed() -> None:
    """Every other renewal is a fenced daemon's."""
    assert decide(HELD, asks(epoch=4)) == Renewal()
    fenced = [(HELD, asks(epoch=3)), (HELD, asks(epoch=5)), (HELD, asks(epoch=4, journal="k")), (replace(HELD, held=False), asks(epoch=4))]
    for held, asked in fenced:
        with pytest.raises(Conflict):
            decide(held, asked)
