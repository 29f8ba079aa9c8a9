"""Function records in the store: one row per content, and who registered it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.messages import FunctionRecord
from funcmq.forwarder.prepared import insert
from funcmq.forwarder.tables import endpoint_functions, function_owners, functions


async def add(connection: AsyncConnection, user: str, identifier: str, record: FunctionRecord, data: bytes, now: int) -> None:
    """Register a record for this user; what is there already stays."""
    row = {"id": identifier, "name": record.name, "python": record.python, "record": data}
    await connection.execute(insert(connection.dialect, functions).values(row).on_conflict_do_nothing())
    owner = {"user_id": user, "function_id": identifier, "created": now}
    await connection.execute(insert(connection.dialect, function_owners).values(owner).on_conflict_do_nothing())


async def owned(connection: AsyncConnection, user: str, identifiers: list[str]) -> set[str]:
    """Those of these functions that the user registered."""
    mine = function_owners.c.user_id == user
    rows = await connection.execute(select(function_owners.c.function_id).where(mine, function_owners.c.function_id.in_(identifiers)))
    return {row.function_id for row in rows}


async def fetch_own(connection: AsyncConnection, user: str, identifier: str) -> bytes | None:
    """A record that the user registered."""
    query = select(functions.c.record).join(function_owners, function_owners.c.function_id == functions.c.id)
    return (await connection.execute(query.where(functions.c.id == identifier, function_owners.c.user_id == user))).scalar()


async def fetch_sent(connection: AsyncConnection, endpoint: str, identifier: str) -> bytes | None:
    """A record that a bundle for this endpoint named."""
    query = select(functions.c.record).join(endpoint_functions, endpoint_functions.c.function_id == functions.c.id)
    return (await connection.execute(query.where(functions.c.id == identifier, endpoint_functions.c.endpoint_id == endpoint))).scalar()


async def list_own(connection: AsyncConnection, user: str) -> list[api.FunctionView]:
    """What the user registered, newest first."""
    query = select(functions.c.id, functions.c.name, functions.c.python, function_owners.c.created)
    query = query.join(function_owners, function_owners.c.function_id == functions.c.id).where(function_owners.c.user_id == user)
    rows = await connection.execute(query.order_by(function_owners.c.created.desc(), functions.c.id))
    return [api.FunctionView(id=row.id, name=row.name, python=row.python, created=row.created) for row in rows]
