"""Laws of what comes in: only the task's own endpoint, by its pinned key, ends a future; nothing else is even unpickled."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from funcmq.broker import api, codec, errors, values
from funcmq.broker.api import EndpointView
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotAllowed, NotFound
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import Failure, Inline, Outcome, Receipt, Results, Running, Signed, Unsigned
from funcmq.broker.signing import BUNDLE, RESULTS, PrivateKey
from funcmq.client.bundler import Sent
from funcmq.client.futures import TaskFuture
from funcmq.client.inbox import Inbox
from funcmq.client.known import KnownEndpoints, choose, free
from tests.unit.test_client_futures import Owner

POLARIS, OTHER = new_hex(), new_hex()
KEYS = {POLARIS: PrivateKey.generate(), OTHER: PrivateKey.generate()}


class Canary:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CANARY"],)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(lambda endpoint: KEYS[endpoint].public if endpoint in KEYS else None, lambda endpoint: "polaris")


@pytest.fixture
def future(inbox: Inbox) -> TaskFuture[Any]:
    made: TaskFuture[Any] = TaskFuture(Owner(), new_id(), "f")
    made.endpoint_id = POLARIS
    inbox.expect(made)
    return made


def bundle(*outcomes: Outcome, endpoint: str = POLARIS, key: PrivateKey | None = None, domain: bytes = RESULTS, named: str = "") -> bytes:
    key = key or KEYS[endpoint]
    body = codec.encode(Results(1, endpoint, named or key.public.id, new_hex(), new_hex(), new_hex(), 1, list(outcomes)))
    return key.sign(domain, body)


def outcome(future: TaskFuture[Any], value: Any = 42, **changes: Any) -> Outcome:
    fields = {"id": future.task_id, "state": "succeeded", "value": values.pack(value), "failure": None, "attempt": 1} | changes
    return Outcome(received=1000, started=2000, ended=3000, **fields)


def test_a_signed_result_ends_the_future(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """Value, times and output are on the future; a second copy changes nothing."""
    data = bundle(outcome(future, stdout="hello"))
    inbox.take("results/1", data)
    inbox.take("results/1", data)
    assert future.result(0) == 42
    assert (future.stdout, future.state) == ("hello", "succeeded")
    assert (future.timeline["started"], future.timeline["ended"]) == (2.0, 3.0)
    assert not inbox.futures


def test_forged_results_are_refused(inbox: Inbox, future: TaskFuture[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed by nobody, by a stranger, for another purpose, with a changed byte: refused, the future waits, nothing is unpickled."""
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    poison = outcome(future, value=0, state="succeeded")
    poison = Outcome(poison.id, "succeeded", Inline("pickle", pickle.dumps(Canary())), None, 1, 1, 1, 1)
    stranger = PrivateKey.generate()
    good = bundle(poison)
    forgeries = [
        bundle(poison, key=stranger),
        bundle(poison, key=stranger, named=KEYS[POLARIS].public.id),
        bundle(poison, domain=BUNDLE),
        bundle(poison, endpoint=new_hex(), key=stranger),
        good[:-1] + bytes([good[-1] ^ 1]),
        codec.encode(Signed(Unsigned(), codec.decode(Signed, good).body)),
        good[: len(good) // 2],
        b"\xc1garbage",
    ]
    for data in forgeries:
        with pytest.raises(FuncmqError):
            inbox.take("results/1", data)
    assert not future.done()
    assert not (tmp_path / "canary").exists()


def test_another_endpoint_cannot_answer(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """A result properly signed by an endpoint that does not have the task is skipped and counted."""
    inbox.take("results/1", bundle(outcome(future), endpoint=OTHER))
    assert not future.done()
    assert inbox.refused == 1


def test_receipts_and_running_are_seen(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """`.state` follows what the endpoint says; another endpoint's word about it does not count."""
    sent = Sent("accepted", 1.0)
    future.sent = sent
    inbox.follow("b" * 64, sent)
    assert future.state == "accepted"
    inbox.take("receipt/1", codec.encode(Receipt(1, POLARIS, new_hex(), ["b" * 64], 1)))
    assert future.state == "received"
    inbox.take("running/1", codec.encode(Running(1, OTHER, [future.task_id], 1)))
    assert future.state == "received"
    inbox.take("running/1", codec.encode(Running(1, POLARIS, [future.task_id], 1)))
    assert future.state == "running"


def test_a_value_that_cannot_be_restored_is_an_error(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """The task succeeded; what came cannot be unpickled here; the neighbours are not harmed."""
    neighbour: TaskFuture[Any] = TaskFuture(Owner(), new_id(), "g")
    neighbour.endpoint_id = POLARIS
    inbox.expect(neighbour)
    broken = Outcome(future.task_id, "succeeded", Inline("pickle", b"cnosuch\nthing\n."), None, 1, 1, 1, 1)
    inbox.take("results/1", bundle(broken, outcome(neighbour)))
    assert isinstance(future.exception(0), errors.NotSerializable)
    assert neighbour.result(0) == 42


@pytest.mark.parametrize(
    ("state", "failure", "cls"),
    [
        ("failed", Failure("TaskFailed", "bad", "ValueError"), ValueError),
        ("cancelled", None, errors.TaskCancelled),
        ("expired", None, errors.TaskExpired),
        ("lost", Failure("TaskLost", "journal gone"), errors.TaskLost),
        ("failed", Failure("WorkerDied", "exit 3"), errors.WorkerDied),
    ],
)
def test_every_end_has_its_error(inbox: Inbox, future: TaskFuture[Any], state: Any, failure: Failure | None, cls: type[Exception]) -> None:
    """A task that ended without a value raises what its end says."""
    inbox.take("results/1", bundle(outcome(future, state=state, value=None, failure=failure)))
    assert isinstance(future.exception(0), cls)
    assert future.state == state


def test_the_store_ends_what_the_front_door_ended(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """Ends without a signed result carry their reason in the answer; an end whose result nobody can verify is said to be so."""
    state = api.TaskState(id=future.id, state="expired", failure=("TaskExpired", "too late"))
    inbox.answer(api.QueryAnswer(tasks=[state], bundles=[]))
    assert isinstance(future.exception(0), errors.TaskExpired)
    other: TaskFuture[Any] = TaskFuture(Owner(), new_id(), "f")
    other.endpoint_id = POLARIS
    inbox.expect(other)
    forged = bundle(outcome(other), key=PrivateKey.generate())
    inbox.answer(api.QueryAnswer(tasks=[api.TaskState(id=other.id, state="succeeded")], bundles=[forged]))
    assert isinstance(other.exception(0), NotAllowed)


def test_the_store_gives_results_and_states(inbox: Inbox, future: TaskFuture[Any]) -> None:
    """Open states are noted, results taken, and what is left for the next answer stays open."""
    inbox.answer(api.QueryAnswer(tasks=[api.TaskState(id=future.id, state="published")], bundles=[]))
    assert future.state == "published"
    inbox.answer(api.QueryAnswer(tasks=[api.TaskState(id=future.id, state="succeeded")], bundles=[], more=[future.id]))
    assert not future.done()
    inbox.answer(api.QueryAnswer(tasks=[api.TaskState(id=future.id, state="succeeded")], bundles=[bundle(outcome(future))]))
    assert future.result(0) == 42


# Pins


def view(**changes: Any) -> EndpointView:
    fields = {
        "id": POLARIS,
        "name": "polaris",
        "owner": "o",
        "owner_name": "ann",
        "key": KEYS[POLARIS].public.text,
        "online": True,
    } | changes
    return EndpointView(**fields)


def test_a_key_is_pinned_at_first_use(tmp_path: Path) -> None:
    """The first key seen stands, across processes; another one is refused, and the error says what to do."""
    path = tmp_path / "sub" / "known_endpoints"
    assert KnownEndpoints(path).pin(view()) == KEYS[POLARIS].public
    again = KnownEndpoints(path)
    assert again.key(POLARIS) == KEYS[POLARIS].public
    assert again.pin(view(name="renamed")) == KEYS[POLARIS].public
    with pytest.raises(NotAllowed, match="has changed") as refused:
        again.pin(view(key=KEYS[OTHER].public.text))
    assert str(path) in refused.value.hint
    assert len(path.read_text().splitlines()) == 1


def test_odd_lines_do_no_harm(tmp_path: Path) -> None:
    """Comments, garbage and broken keys in the file are skipped; a name with a line break stays on one line."""
    path = tmp_path / "known_endpoints"
    path.write_text(f"# hello\n\n{OTHER} ed25519 AAAA x\nnonsense\n")
    known = KnownEndpoints(path)
    assert known.key(OTHER) is None
    known.pin(view(name=f"a\n{OTHER} ed25519 {KEYS[POLARIS].public.text} x"))
    assert KnownEndpoints(path).key(OTHER) is None
    assert KnownEndpoints(path).key(POLARIS) is not None


def test_a_file_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    """The pin then lasts as long as the process."""
    (tmp_path / "file").write_text("")
    known = KnownEndpoints(tmp_path / "file" / "known_endpoints")
    known.pin(view())
    assert known.key(POLARIS) == KEYS[POLARIS].public


def test_names_and_ids_choose() -> None:
    """An id or a name finds one; nothing, an unknown one and a name that two share are errors that list what there is."""
    one, two = view(), view(id=OTHER, name="theta")
    assert choose([one, two], "theta") is two
    assert choose([one, two], POLARIS) is one
    with pytest.raises(NotFound) as missing:
        choose([one, two], "nope")
    assert "polaris, theta" in missing.value.hint
    with pytest.raises(InvalidRequest, match="named"):
        choose([one, two], "")
    with pytest.raises(InvalidRequest, match="Several"):
        choose([one, view(id=OTHER)], "polaris")


def test_of_several_the_free_one_is_chosen() -> None:
    """Online goes before capacity, capacity before what others say."""
    away = view(online=False)
    busy, idle = view(id=OTHER, name="busy", queued=10), view(id=new_hex(), name="idle")
    assert choose([away, busy, idle], ("polaris", "busy", "idle")) is idle
    assert free(away) < free(busy) < free(idle)
    assert choose([away, busy, idle], ("polaris", "busy", "idle"), {idle.id: 1_000}) is busy
