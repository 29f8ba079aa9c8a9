"""Laws of the sentence that says why a task is not running."""

from datetime import UTC
from typing import Any

import pytest

from funcmq.broker.api import Waiting
from funcmq.broker.messages import Heartbeat, PoolStatus
from funcmq.broker.waiting import ago, sentence
from funcmq.forwarder.live import Sign
from funcmq.forwarder.waiting import Home, Open, why

NOW = 1_700_000_000_000
HOME = Home("polaris", seen=NOW, host="login3")
PENDING = PoolStatus("gpu", "slurm", 0, 0, 8, 0, {}, "Slurm 48211 PENDING (QOSMaxJobs) for 41 min")
RUNNING = PoolStatus("cpu", "slurm", 4, 4, 8, 1, {})


def beat(*pools: PoolStatus, queued: int = 0, running: int = 0, reason: str = "") -> Sign:
    return Sign(Heartbeat(1, "e" * 32, 1, "j", NOW, "login3", 1, "0", list(pools), {"u": queued}, running, 0, reason), NOW)


def say(task: Open, sign: Sign | None, home: Home = HOME, now: int = NOW) -> str:
    return sentence(why(task, home, sign, now), now, UTC)


@pytest.mark.parametrize(
    ("task", "sign", "home", "later_s", "said"),
    [
        (Open("received"), None, Home("polaris"), 0, "endpoint offline"),
        (Open("received"), beat(), HOME, 60, "endpoint offline since 22:13 UTC (login3)"),
        (Open("published"), beat(), Home("polaris", False, NOW, NOW, "login3"), 60, "endpoint offline since 22:13 UTC (login3)"),
        (Open("received"), beat(), HOME, 3 * 86400, "endpoint offline since 14 Nov 22:13 UTC (login3)"),
        (Open("received", before=17_203), beat(queued=20_000), HOME, 0, "17,203 tasks ahead"),
        (Open("received", before=17_203), beat(queued=20_000, running=203), HOME, 0, "17,000 tasks ahead"),
        (Open("received", before=2), beat(queued=1, running=1), HOME, 0, "1 task ahead"),
        (Open("received"), beat(queued=301), HOME, 0, "300 tasks ahead"),
        (Open("received", before=0), beat(queued=5), HOME, 0, "waiting for a worker"),
        (Open("accepted"), beat(), HOME, 0, "waiting for the broker to confirm it"),
        (Open("published"), beat(), HOME, 0, "waiting for the endpoint to take it from its queue"),
        (Open("received"), beat(PENDING), HOME, 0, "Slurm 48211 PENDING (QOSMaxJobs) for 41 min"),
        (Open("received", "gpu"), beat(PENDING, RUNNING), HOME, 0, "Slurm 48211 PENDING (QOSMaxJobs) for 41 min"),
        (Open("received"), beat(PENDING, RUNNING), HOME, 0, "waiting for a worker"),
        (Open("received"), beat(RUNNING, reason="it is draining"), HOME, 0, "it is draining"),
        (Open("running", "", 600, NOW - 170_000, "nid0012"), beat(), HOME, 0, "running on nid0012, 3 of 10 min"),
        (Open("running", "", 90, NOW - 12_000, "nid0012"), beat(), HOME, 0, "running on nid0012, 12 of 90 s"),
        (Open("running", "", 4 * 3600, NOW - 7200_000), beat(), HOME, 0, "running on polaris, 2 of 4 h"),
        (Open("running", "", 0, NOW - 180_000, "nid0012"), beat(), HOME, 0, "running on nid0012 for 3 min"),
    ],
)
def test_the_nearest_cause_is_said_in_one_sentence(task: Open, sign: Sign | None, home: Home, later_s: int, said: str) -> None:
    """Offline, a pool's own reason where no pool can run it, the tasks before it, a worker; what runs tells where and how long."""
    assert say(task, sign, home, NOW + later_s * 1000) == said


def test_several_pools_tell_their_names() -> None:
    """Where several pools could take it and none runs, each says why."""
    other: Any = PoolStatus("cpu", "local", 0, 0, 8, 1, {}, "block started 2 min ago, no worker yet: no such module")
    assert say(Open("received"), beat(other, PENDING)) == f"pool cpu: {other.reason}; pool gpu: {PENDING.reason}"


def test_a_kind_of_tomorrow_gives_its_reason() -> None:
    """What a later release says is passed on where it carries text, and is nothing where it does not."""
    assert sentence(Waiting(kind="moon", reason="the moon is full"), NOW) == "the moon is full"
    assert sentence(Waiting(kind="moon"), NOW) == ""


@pytest.mark.parametrize(("seconds", "text"), [(3, "3 s"), (119, "119 s"), (125, "2 min"), (7300, "2 h")])
def test_spans_of_time(seconds: float, text: str) -> None:
    """One unit, the largest that fits."""
    assert ago(seconds) == text
