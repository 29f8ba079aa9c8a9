"""Evidence of what went missing, and dead letters."""

from __future__ import annotations

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Filled in with the tables of the reconciler."""
