"""Alembic runs the revisions on the connection that `database.upgrade` hands in."""

from __future__ import annotations

from alembic import context

from funcmq.forwarder.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
