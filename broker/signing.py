"""Who said this: Ed25519 keys, and signatures over the exact bytes of a body.

A signature is made over `u32be(len(domain)) ‖ domain ‖ SHA-256(body)` (design §6), so that bytes signed as one kind of message are worth
nothing as another.
"""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from funcmq.broker import codec
from funcmq.broker.errors import ConfigurationError, InvalidRequest, NotAllowed
from funcmq.broker.ids import sha256
from funcmq.broker.messages import Signature, Signed

BUNDLE = b"funcmq/bundle/1"
RESULTS = b"funcmq/results/1"
REFUSED = b"funcmq/refused/1"
RULE = b"funcmq/rule/1"

_FORGED = "Sign the exact bytes again with that key; if you did, somebody changed them on the way."


def _statement(domain: bytes, body: bytes) -> bytes:
    return len(domain).to_bytes(4, "big") + domain + hashlib.sha256(body).digest()


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a key pair; `raw` is 32 bytes."""

    raw: bytes

    @property
    def id(self) -> str:
        """SHA-256 of the raw key: how bundles, rows and people name it."""
        return sha256(self.raw)

    @property
    def text(self) -> str:
        """Base64 of the raw key: the form in `trusted_keys` and in HTTP."""
        return base64.b64encode(self.raw).decode()

    @property
    def fingerprint(self) -> str:
        """What people compare: 16 hex digits of the id, in groups of four."""
        return ":".join(self.id[at : at + 4] for at in range(0, 16, 4))

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """:raises InvalidRequest: text is not the base64 of an Ed25519 public key."""
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:
            raw = b""
        if len(raw) != 32:
            raise InvalidRequest("A public key is the base64 of 32 bytes.")
        return cls(raw)

    def verify(self, domain: bytes, signed: Signed) -> None:
        """Accept, or raise.

        :raises NotAllowed: the body is not signed by this key, for this domain.
        """
        auth = signed.auth
        if not isinstance(auth, Signature) or auth.key != self.id:
            raise NotAllowed(f"This is not signed by the key {self.fingerprint}.", hint=_FORGED)
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(auth.sig, _statement(domain, signed.body))
        except InvalidSignature:
            raise NotAllowed(f"The signature does not fit the key {self.fingerprint}.", hint=_FORGED) from None


class PrivateKey:
    """A signing key.  It never leaves the file and the process that made or read it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.fingerprint}>"

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key pair."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> PrivateKey:
        """The key in a PEM file that only its owner can read.

        :raises ConfigurationError: the file is missing, readable by others, or holds no Ed25519 key.
        """
        try:
            data = path.read_bytes()
            mode = path.stat().st_mode & 0o077
        except OSError as missing:
            raise ConfigurationError(f"Cannot read the signing key {path}: {missing.strerror}.", hint="Run `funcmq login URL`.") from None
        if mode and os.name == "posix":
            raise ConfigurationError(f"The signing key {path} can be read by others.", hint=f"Run `chmod 600 {path}`.")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} holds no Ed25519 key.", hint="Move it away and run `funcmq login URL`.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write a PEM file with mode 0600; an existing file is not replaced (FileExistsError)."""
        pem = self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """The bytes of `[auth, body]`."""
        signature = Signature(self.public.id, self._key.sign(_statement(domain, body)))
        return codec.encode(Signed(signature, body))
