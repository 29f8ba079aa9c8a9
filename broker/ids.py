"""Identifiers: how they are made, written and shortened.

A task id is a UUIDv7 (RFC 9562), 16 bytes on the wire and 32 hex digits everywhere else: time-ordered, so that tables keyed by it grow at
one end.
"""

from __future__ import annotations

import hashlib
import os
import re
import time

_HEX32 = re.compile(r"[0-9a-f]{32}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


def new_id(now: float | None = None, entropy: bytes | None = None) -> bytes:
    """A UUIDv7 as 16 bytes: 48 bits of milliseconds since the epoch, then 74 random bits."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    tail = bytearray(os.urandom(10) if entropy is None else entropy)
    tail[0] = 0x70 | (tail[0] & 0x0F)
    tail[2] = 0x80 | (tail[2] & 0x3F)
    return milliseconds.to_bytes(6, "big") + bytes(tail)


def new_hex() -> str:
    """A UUIDv7 as 32 hex digits: the form of endpoint, user, session and token ids.  It contains no dot, so it may stand in a routing
    key.
    """
    return new_id().hex()


def is_id(text: object) -> bool:
    """Whether text is the hex form of a 16-byte id."""
    return isinstance(text, str) and _HEX32.match(text) is not None


def is_hash(text: object) -> bool:
    """Whether text is the hex form of a SHA-256."""
    return isinstance(text, str) and _HEX64.match(text) is not None


def created_at(identifier: bytes) -> float:
    """Seconds since the epoch at which a UUIDv7 was made."""
    return int.from_bytes(identifier[:6], "big") / 1000


def short(identifier: str) -> str:
    """What people see: the last 8 hex digits, because the first are the clock."""
    return identifier[-8:]


def group_id(user: str, name: str) -> str:
    """Id of the group that this user calls by this name (design §3.1)."""
    parts = (text.encode() for text in (user, name))
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()[:16].hex()


def sha256(data: bytes) -> str:
    """SHA-256 as 64 hex digits: the id of a function record, of a bundle's body and of a public key."""
    return hashlib.sha256(data).hexdigest()
