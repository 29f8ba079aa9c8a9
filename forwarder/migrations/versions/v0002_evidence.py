"""Evidence of what went missing, and dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("endpoints", sa.Column("gone", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("bundles", sa.Column("resent", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("bundles", sa.Column("deaths", sa.SmallInteger(), server_default="0", nullable=False))
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("bundle", sa.BigInteger(), nullable=True),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("endpoint_id", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("said", sa.Text(), nullable=False),
        sa.Column("message", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("reinjected", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bundle"], ["bundles.seq"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dead_letters")),
        sa.UniqueConstraint("digest", name=op.f("uq_dead_letters_digest")),
    )
    op.create_index(op.f("ix_dead_letters_bundle"), "dead_letters", ["bundle"])
    op.create_index(op.f("ix_dead_letters_last"), "dead_letters", ["last"])
