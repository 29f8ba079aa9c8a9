"""The states of a task, walked."""

from __future__ import annotations

from itertools import product
from typing import get_args

from funcmq.broker import api
from funcmq.forwarder import states
from funcmq.forwarder.states import BY_RESULT, ENDED_HERE, TABLE, WAITING, Event, State

BY_A_RESULT = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.EXPIRED, State.LOST)


def test_every_state_is_reached_and_named() -> None:
    """From `accepted` the table leads to every state, and each has a word of the interface."""
    reached, found = {State.ACCEPTED}, {State.ACCEPTED}
    while found:
        found = {TABLE[state, event] for state, event in product(found, Event) if (state, event) in TABLE} - reached
        reached |= found
    assert reached == set(State)
    assert {word for state in State if (word := states.name(state, State.ACCEPTED))} <= set(get_args(api.State))
    assert {state for word in get_args(api.State) for state in states.named(word)} == set(State)


def test_an_end_by_a_result_is_final() -> None:
    """Nothing changes a task whose result is stored."""
    assert not [(state, event) for state, event in TABLE if state in BY_A_RESULT]


def test_a_result_ends_everything_else() -> None:
    """A result ends every open task, and replaces every end that the front door wrote, by its own word."""
    for state, (word, event) in product((*WAITING, *ENDED_HERE), BY_RESULT.items()):
        end = states.after(state, event)
        assert end in BY_A_RESULT
        assert states.name(end, State.RECEIVED) == word


def test_what_the_front_door_ended_is_moved_by_results_only() -> None:
    """No receipt, confirm or second opinion of its own opens or changes an end that the front door wrote."""
    for state, event in product(ENDED_HERE, Event):
        assert (states.after(state, event) is None) == (event not in BY_RESULT.values())


def test_a_task_only_goes_back_to_be_sent_again() -> None:
    """Among open states events lead onward, but for a bundle that is sent again."""
    for (state, event), then in TABLE.items():
        if state in WAITING and then in WAITING:
            assert then > state or event is Event.SENT_AGAIN


def test_an_open_task_is_where_its_bundle_is() -> None:
    """Rows of open tasks say nothing more than open: the word comes from the bundle and from what runs."""
    assert states.name(State.ACCEPTED, State.PUBLISHED) == "published"
    assert states.name(State.ACCEPTED, State.RECEIVED, running=True) == "running"
    assert states.name(State.REFUSED, State.REFUSED, running=True) == "failed"
    assert states.named("nonsense") == ()
