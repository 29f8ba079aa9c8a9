"""Laws of the choice between the broker's own port and the tunnel; the clock is turned by hand."""

import pytest

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.transport import ANSWER_S, FIRST_LOOK_S, LONGEST_LOOK_S, RELAPSE_S, Choice, Way, allowed

DIRECT, TUNNEL = Way.DIRECT, Way.TUNNEL


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Network:
    """Rounds of a link on a network that lets through what `passes` says; a direct try that fails takes `patience` seconds."""

    def __init__(self, only: Way | None = None, patience: float = ANSWER_S) -> None:
        self.clock = Clock()
        self.choice = Choice(only, self.clock)
        self.passes: set[Way] = set()
        self.patience = patience

    def round(self) -> list[Way]:
        """The ways tried in one round."""
        tried = []
        for way in self.choice.round():
            tried.append(way)
            if way in self.passes:
                self.choice.worked(way)
                break
            began = self.clock.now
            self.clock.now += self.patience if way is DIRECT else 0
            self.choice.failed(way, began)
        return tried


def test_the_direct_way_is_taken_where_it_works() -> None:
    """The tunnel is not even tried."""
    network = Network()
    network.passes = {DIRECT, TUNNEL}
    assert network.round() == [DIRECT]


def test_a_silent_port_costs_five_seconds_once() -> None:
    """After them the tunnel is taken in the same round, and first in the next."""
    network = Network()
    network.passes = {TUNNEL}
    assert (network.round(), network.clock.now) == ([DIRECT, TUNNEL], 1000.0 + ANSWER_S)
    assert network.round() == [TUNNEL]


def test_a_port_that_refuses_at_once_has_five_seconds_too() -> None:
    """A broker that only starts is not taken for a firewall."""
    network = Network(patience=0)
    network.passes = {TUNNEL}
    assert network.round() == [DIRECT]
    network.clock.now += ANSWER_S - 0.1
    assert network.round() == [DIRECT]
    network.clock.now += 0.1
    assert network.round() == [DIRECT, TUNNEL]


def test_a_broker_that_was_there_is_waited_for_longer() -> None:
    """Where the direct way has worked, a restart of the broker sends nobody through the front door."""
    network = Network(patience=0)
    network.passes = {DIRECT, TUNNEL}
    network.round()
    network.passes = {TUNNEL}
    for _ in range(2):
        assert network.round() == [DIRECT]
        network.clock.now += RELAPSE_S / 2
    assert network.round() == [DIRECT, TUNNEL]


def test_a_broker_that_refuses_us_has_answered() -> None:
    """A wrong password is no reason for the tunnel."""
    network = Network(patience=0)
    network.round()
    network.clock.now += ANSWER_S
    network.choice.answered(DIRECT)
    assert network.round() == [DIRECT]


def test_the_direct_way_is_looked_at_now_and_then() -> None:
    """After a minute, two, four … an hour."""
    network = Network()
    network.passes = {TUNNEL}
    network.round()
    waits = []
    for _ in range(9):
        waits.append(network.choice.look_in)
        network.clock.now += network.choice.look_in
        network.choice.failed(DIRECT, network.clock.now)
    assert waits == [min(FIRST_LOOK_S * 2**turn, LONGEST_LOOK_S) for turn in range(9)]


def test_a_broken_tunnel_brings_the_direct_way_back_soon() -> None:
    """Also when its next look was far away."""
    network = Network()
    network.passes = {TUNNEL}
    network.round()
    network.passes = {DIRECT}
    assert network.round() == [TUNNEL]
    network.clock.now += RELAPSE_S
    assert network.round() == [TUNNEL, DIRECT]
    assert network.round() == [DIRECT]


@pytest.mark.parametrize("way", list(Way))
def test_one_way_can_be_forced(way: Way) -> None:
    """Then no other is tried, ever, and nobody looks for it."""
    network = Network(allowed({"FUNCMQ_TRANSPORT": way.value}))
    for _ in range(3):
        assert network.round() == [way]
        network.clock.now += LONGEST_LOOK_S
    assert network.choice.look_in == float("inf")


def test_the_variable_is_read_strictly() -> None:
    """Unset, empty and auto allow both; anything unknown is an error that names it."""
    assert {allowed({}), allowed({"FUNCMQ_TRANSPORT": ""}), allowed({"FUNCMQ_TRANSPORT": "Auto"})} == {None}
    with pytest.raises(ConfigurationError, match="'carrier pigeon'"):
        allowed({"FUNCMQ_TRANSPORT": "carrier pigeon"})
