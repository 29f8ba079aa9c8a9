"""Client sessions and what they listen to, in the store."""

from __future__ import annotations

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker.errors import NotFound
from funcmq.forwarder.people import Caller
from funcmq.forwarder.prepared import Prepared, insert, one
from funcmq.forwarder.tables import groups, listeners, sessions

_LISTENING = Prepared(
    "created", lambda _: select(listeners.c.group_id, listeners.c.session_id).where(listeners.c.created >= bindparam("created_"))
)


async def add(connection: AsyncConnection, identifier: str, caller: Caller, secret: str, wanted: list[str], now: int) -> None:
    """A new session and its listeners; its stream is bound already."""
    row = {"id": identifier, "user_id": caller.user, "token_id": caller.token, "secret": secret, "created": now}
    await connection.execute(sessions.insert().values(row))
    await listen(connection, identifier, wanted, now)


async def listen(connection: AsyncConnection, identifier: str, wanted: list[str], now: int) -> None:
    """One row per group; a repeated request renews it, because its client reads the store again."""
    rows = [{"session_id": identifier, "group_id": group, "created": now} for group in wanted]
    if rows:
        adding = insert(connection.dialect, listeners)
        await connection.execute(
            adding.on_conflict_do_update(index_elements=["session_id", "group_id"], set_={"created": adding.excluded.created}), rows
        )


async def note_names(connection: AsyncConnection, names: dict[str, str]) -> None:
    """How their owner calls these groups, which exist; a name is noted once, because it never changes."""
    for group, name in names.items():
        await connection.execute(update(groups).where(groups.c.id == group, groups.c.name == "").values(name=name))


async def check(connection: AsyncConnection, identifier: str, user: str) -> None:
    """:raises NotFound: the user has no such session."""
    query = select(sessions.c.id).where(sessions.c.id == identifier, sessions.c.user_id == user)
    if (await connection.execute(query)).first() is None:
        raise NotFound("There is no such session.", hint="Make a new one with POST /v1/sessions.")


async def lock(connection: AsyncConnection, identifier: str) -> None:
    """Nobody may log in with it any more."""
    await connection.execute(update(sessions).where(sessions.c.id == identifier).values(secret=""))


async def remove(connection: AsyncConnection, identifier: str) -> None:
    """It and its listeners are gone."""
    await connection.execute(delete(listeners).where(listeners.c.session_id == identifier))
    await connection.execute(delete(sessions).where(sessions.c.id == identifier))


async def of_token(connection: AsyncConnection, token: str) -> list[str]:
    """Sessions that were made with this token."""
    return [row.id for row in await connection.execute(select(sessions.c.id).where(sessions.c.token_id == token))]


async def listening(connection: AsyncConnection, wanted: list[str], since: int) -> dict[str, list[str]]:
    """Sessions by group that began to listen at or after this time."""
    found: dict[str, list[str]] = {}
    for group, session in await one(connection, _LISTENING, (since,)):
        if group in wanted:
            found.setdefault(group, []).append(session)
    return found


async def secret(connection: AsyncConnection, identifier: str) -> str:
    """Digest of the session's password; '' if there is no such session."""
    return (await connection.execute(select(sessions.c.secret).where(sessions.c.id == identifier))).scalar() or ""
