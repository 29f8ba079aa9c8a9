"""Laws of trust: only the exact bytes that a key signed, for the purpose it signed them for, pass."""

import os
from pathlib import Path

import pytest

from funcmq.broker import codec, signing
from funcmq.broker.errors import ConfigurationError, FuncmqError, InvalidRequest, NotAllowed
from funcmq.broker.ids import sha256
from funcmq.broker.messages import Signed, Unsigned

BODY = b"the exact bytes that the endpoint parses"


def test_what_a_key_signed_passes() -> None:
    """A signature verifies under its own key; the key id is the hash of the raw key."""
    key = signing.PrivateKey.generate()
    signed = codec.decode(Signed, key.sign(signing.BUNDLE, BODY))
    key.public.verify(signing.BUNDLE, signed)
    assert signed.body == BODY
    assert key.public.id == sha256(key.public.raw)
    assert signing.PublicKey.parse(key.public.text) == key.public


def test_no_flipped_bit_passes() -> None:
    """A bundle with any one bit flipped is refused, or is the same body under the same signature."""
    key = signing.PrivateKey.generate()
    data = key.sign(signing.BUNDLE, BODY)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FuncmqError):
            key.public.verify(signing.BUNDLE, codec.decode(Signed, bytes(flipped)))


def test_a_signature_is_worth_nothing_for_another_purpose() -> None:
    """Bytes signed as results are not a bundle, and the other way round."""
    key = signing.PrivateKey.generate()
    domains = (signing.BUNDLE, signing.RESULTS, signing.REFUSED, signing.RULE)
    for made in domains:
        signed = codec.decode(Signed, key.sign(made, BODY))
        for asked in domains:
            if asked != made:
                with pytest.raises(NotAllowed):
                    key.public.verify(asked, signed)


def test_another_key_and_no_key_are_refused() -> None:
    """Neither a stranger's signature, nor a stranger's under our name, nor none at all passes."""
    ours, theirs = signing.PrivateKey.generate(), signing.PrivateKey.generate()
    forged = codec.decode(Signed, theirs.sign(signing.BUNDLE, BODY))
    renamed = Signed(signing.Signature(ours.public.id, forged.auth.sig), BODY)  # type: ignore[union-attr]
    for signed in (forged, renamed, Signed(Unsigned(), BODY)):
        with pytest.raises(NotAllowed):
            ours.public.verify(signing.BUNDLE, signed)


def test_a_key_file_is_private_and_never_replaced(tmp_path: Path) -> None:
    """A key is written with mode 0600, comes back the same, is not overwritten, and is refused when others can read it."""
    path = tmp_path / "key"
    key = signing.PrivateKey.generate()
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing.PrivateKey.load(path).public == key.public
    with pytest.raises(FileExistsError):
        signing.PrivateKey.generate().save(path)
    if os.name == "posix":
        path.chmod(0o640)
        with pytest.raises(ConfigurationError, match="read by others"):
            signing.PrivateKey.load(path)


def test_a_broken_key_file_says_what_to_do(tmp_path: Path) -> None:
    """A missing or broken file is named, with the next step."""
    with pytest.raises(ConfigurationError, match="missing"):
        signing.PrivateKey.load(tmp_path / "missing")
    broken = tmp_path / "broken"
    broken.write_text("not a key")
    broken.chmod(0o600)
    with pytest.raises(ConfigurationError, match="no Ed25519 key"):
        signing.PrivateKey.load(broken)


def test_a_key_shows_its_public_half_only() -> None:
    """The repr of a private key holds nothing that could sign."""
    key = signing.PrivateKey.generate()
    assert repr(key) == f"<PrivateKey {key.public.fingerprint}>"


@pytest.mark.parametrize("text", ["", "x", "AAAA", "é", "A" * 44 + "=="])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    """A public key is 32 bytes in base64, nothing else."""
    with pytest.raises(InvalidRequest):
        signing.PublicKey.parse(text)
