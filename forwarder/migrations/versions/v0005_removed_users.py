"""Users who were removed: their rows stay, because tasks and names point to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("users", sa.Column("removed", sa.BigInteger(), nullable=False, server_default="0"))
