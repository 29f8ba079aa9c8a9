"""What may come in: bundles from users, reports from endpoints.  No store, no broker."""

from __future__ import annotations

from typing import Any

import pytest

from funcmq.broker import codec, signing
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotAllowed, PayloadTooLarge
from funcmq.broker.ids import group_id, new_hex, new_id
from funcmq.broker.messages import (
    FunctionRef,
    Heartbeat,
    Inline,
    Options,
    Outcome,
    PoolStatus,
    Results,
    Signature,
    Signed,
    Task,
    Work,
)
from funcmq.broker.signing import PrivateKey
from funcmq.forwarder import admission, reports
from funcmq.forwarder.live import Live

NOW = 1_700_000_000_000
USER, ENDPOINT = new_hex(), new_hex()
KEY = PrivateKey.generate()
FUNCTION = FunctionRef("ab" * 32, "f")


def make_work(**changes: Any) -> Work:
    fields: dict[str, Any] = {
        "v": 1,
        "user": USER,
        "key": KEY.public.id,
        "run_as": "",
        "endpoint": ENDPOINT,
        "group": group_id(USER, "g"),
        "signed_at": NOW,
        "functions": [FUNCTION],
        "options": [Options(not_after=NOW + 1000)],
        "tasks": [Task(new_id(), 0, 0, Inline("msgpack", b"\x01"))],
    }
    return Work(**(fields | changes))


def sign(work: Work, key: PrivateKey = KEY) -> bytes:
    return key.sign(signing.BUNDLE, codec.encode(work))


def facts(**changes: Any) -> admission.Facts:
    fields: dict[str, Any] = {
        "user": USER,
        "key": KEY.public,
        "endpoint_name": "lab",
        "trusted": {KEY.public.id},
        "functions": {FUNCTION.id},
        "now": NOW,
    }
    return admission.Facts(**(fields | changes))


def test_a_good_bundle_comes_in_whole() -> None:
    """Signed by a registered, trusted key, in time: no verdicts; before an endpoint's first lease nothing is known of its trust."""
    bundle = admission.read(sign(make_work()))
    assert admission.judge(bundle, facts()) == []
    assert admission.judge(bundle, facts(trusted=None)) == []


@pytest.mark.parametrize(
    ("bundle", "changes"),
    [
        (sign(make_work()), {"user": new_hex()}),
        (sign(make_work()), {"key": None}),
        (sign(make_work()), {"key": PrivateKey.generate().public}),
        (sign(make_work()), {"trusted": set()}),
        (sign(make_work(key="0" * 64)), {}),
        (sign(make_work(), PrivateKey.generate()), {}),
        (KEY.sign(signing.RESULTS, codec.encode(make_work())), {}),
        (codec.encode(Signed(Signature(KEY.public.id, b"short"), codec.encode(make_work()))), {}),
    ],
)
def test_whoever_did_not_sign_it_is_refused(bundle: bytes, changes: dict[str, Any]) -> None:
    """Another user, key, domain or endpoint's trust: NotAllowed for the whole bundle, with what to do."""
    with pytest.raises(NotAllowed) as refused:
        admission.judge(admission.read(bundle), facts(**changes))
    assert refused.value.hint


def test_every_altered_byte_of_a_body_is_noticed() -> None:
    """A bundle with any one byte of its signed body flipped does not come in."""
    data = sign(make_work())
    start = data.index(codec.encode(make_work().user))
    for at in range(start, len(data)):
        altered = bytearray(data)
        altered[at] ^= 1
        with pytest.raises(FuncmqError):
            admission.judge(admission.read(bytes(altered)), facts())


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (make_work(run_as="root"), InvalidRequest),
        (make_work(endpoints=[new_hex()]), InvalidRequest),
        (make_work(tasks=[Task(new_id(), 0, 0, Inline("pickle", bytes(600_000))) for _ in range(2)]), PayloadTooLarge),
    ],
)
def test_reserved_and_oversized_bundles_are_refused(work: Work, error: type[FuncmqError]) -> None:
    """What this release cannot honour is refused instead of ignored."""
    with pytest.raises(error):
        admission.read(sign(work))


def test_a_result_bundle_is_believed_from_its_endpoint_only() -> None:
    """Key, id and signature must be the endpoint's whose queue it came from; the reason for a refusal is told under the bundle's id."""
    key = PrivateKey.generate()
    source = reports.Source(ENDPOINT, key.public)
    outcome = Outcome(new_id(), "succeeded", Inline("msgpack", b"\x01"), None, 1, 0, 0, 0)

    def results(**changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "v": 1,
            "endpoint": ENDPOINT,
            "key": key.public.id,
            "journal": "j",
            "user": USER,
            "group": group_id(USER, "g"),
            "signed_at": NOW,
            "results": [outcome],
        }
        return codec.encode(Results(**(fields | changes)))

    good = reports.read_results(source, key.sign(signing.RESULTS, results()))
    assert isinstance(good, reports.ResultBundle)
    wrong = [
        KEY.sign(signing.RESULTS, results()),
        key.sign(signing.BUNDLE, results()),
        key.sign(signing.RESULTS, results(endpoint=new_hex())),
        key.sign(signing.RESULTS, results(key=KEY.public.id)),
        key.sign(signing.RESULTS, results(results=[])),
        key.sign(signing.RESULTS, results(results=[outcome, outcome])),
        key.sign(signing.RESULTS, results(v=2)),
        key.sign(signing.RESULTS, b"garbage"),
    ]
    for data in wrong:
        read = reports.read_results(source, data)
        assert isinstance(read, reports.Unbelieved)
        assert read.reason
    with pytest.raises(InvalidRequest):
        reports.read_results(source, b"garbage")


def test_results_belong_to_the_bundles_endpoint_user_and_group() -> None:
    """One task that is unknown, or of another endpoint, user or group, makes the whole result bundle misplaced."""
    outcome = Outcome(new_id(), "succeeded", None, None, 1, 0, 0, 0)
    body = Results(1, ENDPOINT, "k", "j", USER, "g", NOW, [outcome])
    assert reports.misplaced(body, {outcome.id: 7}, {7: reports.Home(ENDPOINT, USER, "g")}) == ""
    for home in (reports.Home("x", USER, "g"), reports.Home(ENDPOINT, "x", "g"), reports.Home(ENDPOINT, USER, "x")):
        assert reports.misplaced(body, {outcome.id: 7}, {7: home})
    assert reports.misplaced(body, {}, {})


def test_a_zombies_heartbeat_does_not_replace_a_later_epochs() -> None:
    """The newest epoch's word stands."""
    live = Live()
    for epoch, host in ((1, "old"), (2, "new"), (1, "zombie")):
        live.beat(Heartbeat(1, ENDPOINT, epoch, "j", NOW, host, 1, "0", [], {}, 0, 0), NOW)
    sign_ = live.sign(ENDPOINT)
    assert sign_ is not None
    assert sign_.heartbeat.host == "new"


def test_a_function_of_another_python_is_refused_while_that_is_known() -> None:
    """A pool's Python of the last heartbeat decides; any that fits is enough, and where none is known the worker decides."""

    def pool(name: str, python: str) -> PoolStatus:
        return PoolStatus(name, "local", 1, 0, 1, 1, {"python": python} if python else {})

    def judged(*pools: PoolStatus, needs: str = "3.11", chosen: str = "") -> list[str]:
        bundle = admission.read(sign(make_work(options=[Options(not_after=NOW + 1000, pool=chosen)])))
        verdicts = admission.judge(bundle, facts(pythons={FUNCTION.id: needs}, pools=pools))
        return [f"{verdict.code} {verdict.message} {verdict.hint}" for verdict in verdicts]

    old, new, unknown = pool("old", "3.11.2"), pool("new", "3.12.1"), pool("unknown", "")
    assert (
        judged(old) == judged(old, new) == judged(new, unknown) == judged() == judged(new, needs="") == judged(new, old, chosen="old") == []
    )
    (said,) = judged(old, new, chosen="new")
    for part in ("EnvironmentMismatch", "f was made by Python 3.11", "the pool new of lab has Python 3.12.1", "python=3.12"):
        assert part in said
