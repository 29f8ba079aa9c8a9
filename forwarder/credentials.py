"""Tokens, one-time codes and AMQP passwords: made here, shown once, kept as SHA-256 only.

All of them carry at least 100 random bits, so a plain hash is enough, and looking one up by its hash tells nothing by its timing.
"""

from __future__ import annotations

import base64
import hmac
import secrets

from funcmq.broker.ids import new_hex, sha256

CODE_S = 600
"""How long a one-time code works."""


def new_token() -> tuple[str, str]:
    """Id and text of a new token: `fx_<id>_<256 random bits>`."""
    identifier = new_hex()
    return identifier, f"fx_{identifier}_{secrets.token_urlsafe(32)}"


def new_code() -> str:
    """A one-time code that a person can type: five groups of four letters and digits."""
    text = base64.b32encode(secrets.token_bytes(13)).decode()[:20]
    return "-".join(text[at : at + 4] for at in range(0, 20, 4))


def new_password() -> str:
    """A password for one AMQP user."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a token or a password."""
    return sha256(secret.encode())


def code_digest(code: str) -> str:
    """What is kept of a one-time code; how it was typed does not matter."""
    return digest("".join(code.split()).replace("-", "").upper())


def fits(secret: str, kept: str) -> bool:
    """Whether this is the secret that kept is the digest of; takes the same time for every answer."""
    return bool(kept) and hmac.compare_digest(digest(secret), kept)
