"""Laws of the wire: what is said is understood, what is not understood is refused with a reason, and old bytes stay readable."""

import hashlib
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funcmq.broker import codec, messages
from funcmq.broker.errors import FuncmqError, InvalidRequest, VersionMismatch
from funcmq.broker.messages import (
    Ask,
    Cancel,
    Dispatch,
    Failure,
    FunctionRecord,
    FunctionRef,
    Heartbeat,
    Inline,
    Notice,
    Options,
    Order,
    Outcome,
    PoolStatus,
    Receipt,
    Refused,
    Results,
    Running,
    Signature,
    Signed,
    Stored,
    Task,
    Told,
    Work,
)

GOLDEN = Path(__file__).parent.parent / "golden"
NOW = 1_790_000_000_000
WHO, WHERE, GROUP = "1" * 32, "2" * 32, "3" * 32
FUNCTION = hashlib.sha256(b"function").hexdigest()
TASK = bytes(range(16))


def work(**change: object) -> Work:
    """A valid body of a bundle, with some fields changed."""
    fields: dict[str, object] = {
        "v": 1,
        "user": WHO,
        "key": FUNCTION,
        "run_as": "",
        "endpoint": WHERE,
        "group": GROUP,
        "signed_at": NOW,
        "functions": [FunctionRef(FUNCTION, "f", [("f.py", 3)])],
        "options": [Options(not_after=NOW + 1000)],
        "tasks": [Task(i.to_bytes(16, "big"), 0, 0, Inline("msgpack", b"\x92\x90\x80")) for i in range(2)],
    }
    return Work(**(fields | change))  # type: ignore[arg-type]


SAMPLES: dict[str, object] = {
    "work": work(),
    "signed": Signed(Signature(FUNCTION, b"s" * 64), b"body"),
    "dispatch": Dispatch(1, [0, 2], b"bundle"),
    "results": Results(
        1,
        WHERE,
        FUNCTION,
        GROUP,
        WHO,
        GROUP,
        NOW,
        [
            Outcome(TASK, "succeeded", Inline("msgpack", b"\x2a"), None, 1, NOW, NOW + 1, NOW + 2, "node1", "out", ""),
            Outcome(TASK, "failed", None, Failure("TaskFailed", "no", "builtins.ValueError", "Traceback", b"\x91\xa2no"), 2, 1, 2, 3),
        ],
    ),
    "refused": Refused(1, WHERE, FUNCTION, NOW, FUNCTION, "NotAllowed", "unknown key"),
    "receipt": Receipt(1, WHERE, GROUP, [FUNCTION], NOW),
    "running": Running(1, WHERE, [TASK], NOW),
    "cancel": Cancel(1, [TASK]),
    "stored": Stored(1, [(FUNCTION, ""), (FUNCTION, "not yours")]),
    "order": Order(1, "drain"),
    "ask": Ask(1, 3, "logs", GROUP, 4096),
    "told": Told(1, WHERE, GROUP, "login1", 4711, "/shared/run/daemon.log", "a line\n"),
    "notice": Notice(1, GROUP, ["rights", "claims"]),
    "heartbeat": Heartbeat(
        1, WHERE, 3, GROUP, NOW, "login1", 4711, "0.1.0", [PoolStatus("cpu", "local", 8, 2, 8, 1, {"python": "3.11.2"})], {WHO: 5}, 2, 1
    ),
    "functionrecord": FunctionRecord(1, "pickle", "f", "3.11", b"code", "def f(): pass"),
}


GROWN = {"running": {"host": "nid0012"}}
"""Messages that got fields at their end since: their bytes are kept in both shapes."""


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bytes_of_version_1_never_change(name: str) -> None:
    """What the first release wrote reads back as the same message, and this release writes it so, but for fields added at the end."""
    message = SAMPLES[name]
    kept = (GOLDEN / f"{name}.1.msgpack").read_bytes()
    assert codec.decode(type(message), kept) == message
    if name not in GROWN:
        assert codec.encode(message) == kept
        return
    grown = msgspec.structs.replace(message, **GROWN[name])
    assert codec.encode(grown) == (GOLDEN / f"{name}.1.grown.msgpack").read_bytes()
    assert msgpack.unpackb(codec.encode(grown))[: len(msgpack.unpackb(kept))] == msgpack.unpackb(kept)


@pytest.mark.parametrize("name", [name for name, message in SAMPLES.items() if hasattr(message, "VERSION")])
def test_a_message_of_another_version_is_refused_by_its_number(name: str) -> None:
    """An unknown version is named, whatever else the message holds."""
    kind = type(SAMPLES[name])
    for later in ([7, "something", "else"], [7, *msgpack.unpackb(codec.encode(SAMPLES[name]))[1:]]):
        with pytest.raises(VersionMismatch, match="version 7"):
            codec.decode(kind, msgpack.packb(later))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_message_is_refused(name: str) -> None:
    """No prefix of a message is a message."""
    data = codec.encode(SAMPLES[name])
    for end in range(len(data)):
        with pytest.raises(InvalidRequest):
            codec.decode(type(SAMPLES[name]), data[:end])


@given(st.binary(max_size=200))
def test_garbage_is_refused_with_a_reason(data: bytes) -> None:
    """Random bytes raise a FuncmqError of ours, or happen to be a message; nothing else escapes."""
    for kind in {type(message) for message in SAMPLES.values()}:
        try:
            codec.decode(kind, data)
        except FuncmqError as refused:
            assert refused.message


def test_deep_nesting_is_refused() -> None:
    """A body nested 100,000 deep is refused and ends no process."""
    with pytest.raises(InvalidRequest):
        codec.decode(Work, b"\x91" * 100_000 + b"\xc0")
    with pytest.raises(InvalidRequest):
        codec.unpack_plain(b"\x91" * 100_000 + b"\xc0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tasks": []}, "1 to 1024 tasks"),
        ({"tasks": [Task(TASK, 1, 0, Inline("msgpack", b""))]}, "not in the bundle"),
        ({"tasks": [Task(TASK, 0, 0, Inline("msgpack", b""))] * 2}, "twice"),
        ({"user": "../../etc"}, "32 hex digits"),
        ({"endpoint": "A" * 32}, "32 hex digits"),
        ({"options": [Options(not_after=NOW + 8 * 24 * 3600 * 1000)]}, "7 days"),
        ({"options": [Options()]}, "7 days"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(change: dict[str, object], reason: str) -> None:
    """What the types cannot say is checked when a body is made, and again when it is read."""
    with pytest.raises(ValueError, match=reason):
        work(**change)


def test_a_bundle_that_contradicts_itself_is_refused_on_arrival() -> None:
    """The reason that `__post_init__` gives reaches whoever sent the bytes."""
    data = msgpack.unpackb(codec.encode(work()))
    data[9] = []
    with pytest.raises(InvalidRequest, match="1 to 1024 tasks"):
        codec.decode(Work, msgpack.packb(data))


def test_a_newer_field_at_the_end_is_ignored() -> None:
    """Neighbouring releases may append fields without a new version."""
    data = msgpack.unpackb(codec.encode(SAMPLES["receipt"]))
    assert codec.decode(Receipt, msgpack.packb([*data, "later"])) == SAMPLES["receipt"]


def test_amqp_types_lead_to_messages() -> None:
    """The `type` property decides how a body is read; unknown versions and names are told apart."""
    assert messages.unpack("cancel/1", codec.encode(SAMPLES["cancel"])) == SAMPLES["cancel"]
    with pytest.raises(VersionMismatch, match="cancel/2"):
        messages.unpack("cancel/2", b"")
    for unknown in ("surprise/1", None, "", "/1"):
        with pytest.raises(InvalidRequest, match="unknown type"):
            messages.unpack(unknown, b"")


_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(-5, 5), inner),
    max_leaves=20,
)


def _types(value: object) -> object:
    if isinstance(value, list | tuple):
        return type(value), [_types(part) for part in value]
    if isinstance(value, dict):
        return dict, [(_types(key), _types(part)) for key, part in value.items()]
    return type(value)


@given(_plain)
def test_plain_values_come_back_equal_and_of_the_same_type(value: object) -> None:
    """A plain value survives the way, tuples and bytes included."""
    back = codec.unpack_plain(codec.pack_plain(value))
    assert back == value
    assert _types(back) == _types(value)


class _Text(str):
    pass


@pytest.mark.parametrize("value", [{1, 2}, object(), 2**64, _Text("x"), {"a": {3}}, "\ud800", (1, {2}), 1j])
def test_what_would_change_on_the_way_is_not_plain(value: object) -> None:
    """Anything that msgpack would alter or lose is left to pickle."""
    with pytest.raises((TypeError, ValueError, OverflowError)):
        codec.pack_plain(value)
