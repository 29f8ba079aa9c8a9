"""Names of functions, with their versions, and with whom they are shared."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "function_names",
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("function_id", sa.String(length=64), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["users.id"]),
        sa.ForeignKeyConstraint(["function_id"], ["functions.id"]),
        sa.PrimaryKeyConstraint("owner", "name", "version", name=op.f("pk_function_names")),
    )
    op.create_index(op.f("ix_function_names_function_id"), "function_names", ["function_id"])
    op.create_table(
        "function_shares",
        sa.Column("owner", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["owner"], ["users.id"]),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("owner", "name", "user_id", name=op.f("pk_function_shares")),
    )
    op.create_index(op.f("ix_function_shares_user_id"), "function_shares", ["user_id"])
