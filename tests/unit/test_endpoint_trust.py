"""Laws of trusted_keys: only what is written there, for whom it is written, and as it is written now."""

import os
from pathlib import Path

import pytest

from funcmq.broker import codec
from funcmq.broker.errors import InvalidRequest, NotAllowed, TaskExpired, VersionMismatch
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import Blob, FunctionRef, Inline, Options, Signed, Slot, Task, Unsigned, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.endpoint.trust import REMEMBER_MS, SKEW_MS, TrustedKeys, parse, verify

NOW = 1_000_000_000
USER, ENDPOINT, KEY = new_hex(), new_hex(), PrivateKey.generate()


def work(
    key: PrivateKey = KEY, *, user: str = USER, endpoint: str = ENDPOINT, signed_at: int = NOW, run_as: str = "", args: Slot | None = None
) -> Work:
    task = Task(new_id(), 0, 0, args or Inline("msgpack", b""))
    options = [Options(not_after=signed_at + 1000)]
    return Work(1, user, key.public.id, run_as, endpoint, new_hex(), signed_at, [FunctionRef("f" * 64, "f")], options, [task])


def signed(body: Work, key: PrivateKey = KEY) -> Signed:
    return codec.decode(Signed, key.sign(BUNDLE, codec.encode(body)))


@pytest.fixture
def trusted(tmp_path: Path) -> TrustedKeys:
    path = tmp_path / "trusted_keys"
    path.write_text(f"# mine\n\ned25519 {KEY.public.text} {USER} anna on her laptop\n")
    return TrustedKeys(path)


def test_what_is_trusted_is_taken(trusted: TrustedKeys) -> None:
    """A bundle signed by a trusted key for its user is taken as it was signed."""
    good = work()
    assert verify(signed(good), trusted, ENDPOINT, NOW) == good


def test_everything_else_is_refused(trusted: TrustedKeys) -> None:
    """Every single difference from that is a refusal with its own reason."""
    stranger = PrivateKey.generate()
    cases: list[tuple[Signed, type[Exception]]] = [
        (signed(work(stranger), stranger), NotAllowed),
        (signed(work(user=new_hex())), NotAllowed),
        (signed(work(stranger)), NotAllowed),
        (signed(work(endpoint=new_hex())), NotAllowed),
        (signed(work(run_as="root")), NotAllowed),
        (Signed(Unsigned(), codec.encode(work())), NotAllowed),
        (Signed(signed(work()).auth, codec.encode(work())), NotAllowed),
        (signed(work(signed_at=NOW + SKEW_MS + 1)), InvalidRequest),
        (signed(work(args=Blob("msgpack", "a" * 64, 1))), InvalidRequest),
        (signed(work(signed_at=NOW - REMEMBER_MS - 2000)), TaskExpired),
        (codec.decode(Signed, KEY.sign(BUNDLE, codec.encode([2, "future"]))), VersionMismatch),
    ]
    for bundle, error in cases:
        with pytest.raises(error):
            verify(bundle, trusted, ENDPOINT, NOW)


def test_a_front_door_signs_for_others_only_if_it_is_listed_so(tmp_path: Path) -> None:
    """The user `*` stands for everybody, a user id for that user only."""
    path = tmp_path / "trusted_keys"
    path.write_text(f"ed25519 {KEY.public.text} *")
    assert verify(signed(work(user=new_hex())), TrustedKeys(path), ENDPOINT, NOW)


def test_the_file_is_read_again(trusted: TrustedKeys, tmp_path: Path) -> None:
    """A change counts at once, and without the file nobody is trusted."""
    path = tmp_path / "trusted_keys"
    assert trusted.trusts(work())
    text = path.read_text()
    path.write_text("")
    assert not trusted.trusts(work())
    path.write_text(text)
    os.utime(path, ns=(1, 1))
    assert trusted.ids() == [KEY.public.id]
    path.unlink()
    assert not trusted.trusts(work())


def test_a_bad_line_does_not_spoil_the_others() -> None:
    """A line that cannot be read is skipped; the rest holds."""
    text = f"ed25519 AAAA {USER}\nrsa {KEY.public.text} {USER}\ned25519 {KEY.public.text} anna\ned25519 {KEY.public.text} {USER}"
    assert [line.user for line in parse(text)] == [USER]
