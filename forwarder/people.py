"""Users, one-time codes, tokens and keys: what the store says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import Conflict, NotFound, NotLoggedIn
from funcmq.broker.ids import new_hex
from funcmq.broker.signing import PublicKey
from funcmq.forwarder.credentials import code_digest, digest, new_token
from funcmq.forwarder.prepared import insert
from funcmq.forwarder.tables import codes, endpoint_users, endpoints, keys, tokens, users

Purpose = Literal["login", "enrolment"]
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a user, or an endpoint (then `user` is its owner)."""

    kind: Literal["user", "endpoint"]
    user: str
    user_name: str
    admin: bool
    endpoint: str
    token: str
    expires: int


async def find_token(connection: AsyncConnection, token: str, now: int) -> Caller | None:
    """The caller whom this token stands for, if it is neither expired nor revoked, nor its endpoint deleted."""
    query = (
        select(tokens, users.c.name, users.c.admin, endpoints.c.deleted)
        .join(users, users.c.id == tokens.c.user_id)
        .outerjoin(endpoints, endpoints.c.id == tokens.c.endpoint_id)
        .where(tokens.c.hash == digest(token))
    )
    row = (await connection.execute(query)).first()
    if row is None or row.revoked or row.deleted or (row.expires and row.expires <= now):
        return None
    endpoint = row.kind == "endpoint"
    return Caller(row.kind, row.user_id, row.name, row.admin and not endpoint, row.endpoint_id or "", row.id, row.expires)


async def add_user(connection: AsyncConnection, name: str, admin: bool, now: int) -> str:
    """Id of a new user.

    :raises Conflict: the name is taken.
    """
    identifier = new_hex()
    row = {"id": identifier, "name": name, "admin": admin, "created": now}
    done = await connection.execute(insert(connection.dialect, users).values(row).on_conflict_do_nothing().returning(users.c.id))
    if done.first() is None:
        raise Conflict(f"There is already a user {name!r}.", hint="Take another name.")
    return identifier


async def count_users(connection: AsyncConnection) -> int:
    """Number of users."""
    return int((await connection.execute(select(func.count()).select_from(users))).scalar_one())


async def list_users(connection: AsyncConnection) -> list[api.UserAnswer]:
    """All users, by name."""
    rows = await connection.execute(select(users).where(users.c.removed == 0).order_by(users.c.name))
    return [api.UserAnswer(id=row.id, name=row.name, admin=row.admin) for row in rows]


async def user_ids(connection: AsyncConnection, names: list[str]) -> dict[str, str]:
    """Ids by name.

    :raises NotFound: one of the names is nobody's.
    """
    rows = await connection.execute(select(users.c.name, users.c.id).where(users.c.name.in_(names), users.c.removed == 0))
    found = {row.name: row.id for row in rows}
    if missing := sorted(set(names) - found.keys()):
        raise NotFound(f"There is no user {missing[0]!r}.", hint="Check the name; an administrator adds users with `funcmq user add`.")
    return found


@dataclass(frozen=True, slots=True)
class Removed:
    """Who is gone, and what of theirs must be cut off: tokens (their sessions), and endpoints that they own."""

    user: str
    tokens: list[str]
    endpoints: list[str]


async def remove_user(connection: AsyncConnection, name: str, now: int) -> Removed:
    """Nothing of this user works any more: tokens, keys, codes, what others let them use, their own endpoints.  What was submitted stays
    on record.  Removing again does no harm.

    :raises NotFound: there is no such user, by id or name.
    """
    identifier = (await connection.execute(select(users.c.id).where(or_(users.c.id == name, users.c.name == name)))).scalar()
    if identifier is None:
        raise NotFound(f"There is no user {name[:64]!r}.", hint="See `funcmq user list`.")
    await connection.execute(update(users).where(users.c.id == identifier, users.c.removed == 0).values(removed=now))
    for table, column in ((tokens, tokens.c.revoked), (keys, keys.c.revoked), (codes, codes.c.used)):
        await connection.execute(update(table).where(table.c.user_id == identifier, column == 0).values({column: now}))
    await connection.execute(delete(endpoint_users).where(endpoint_users.c.user_id == identifier))
    theirs = await connection.execute(select(tokens.c.id).where(tokens.c.user_id == identifier))
    owned = await connection.execute(select(endpoints.c.id).where(endpoints.c.owner == identifier, endpoints.c.deleted == 0))
    return Removed(identifier, [row.id for row in theirs], [row.id for row in owned])


async def add_code(connection: AsyncConnection, code: str, purpose: Purpose, user: str, expires: int) -> None:
    """Keep a one-time code."""
    row = {"hash": code_digest(code), "purpose": purpose, "user_id": user, "expires": expires, "used": 0}
    await connection.execute(codes.insert().values(row))


async def use_code(connection: AsyncConnection, code: str, purpose: Purpose, now: int) -> str:
    """Id of the user whom this code was made for; it works once.

    :raises NotLoggedIn: no such code, or it was used, or its time is up.
    """
    fresh = and_(codes.c.hash == code_digest(code), codes.c.purpose == purpose, codes.c.used == 0, codes.c.expires > now)
    user = (await connection.execute(update(codes).where(fresh).values(used=now).returning(codes.c.user_id))).scalar()
    if user is None:
        raise NotLoggedIn("This one-time code is unknown, used or expired.", hint="Ask for a new one; it is valid for 10 minutes.")
    return str(user)


async def add_token(
    connection: AsyncConnection, user: str, comment: str, now: int, expires: int, endpoint: str | None = None
) -> api.TokenAnswer:
    """A new token, in clear this once."""
    identifier, text = new_token()
    row = {
        "id": identifier,
        "hash": digest(text),
        "kind": "endpoint" if endpoint else "user",
        "user_id": user,
        "endpoint_id": endpoint,
        "comment": comment,
        "created": now,
        "expires": expires,
    }
    await connection.execute(tokens.insert().values(row))
    name = (await connection.execute(select(users.c.name).where(users.c.id == user))).scalar_one()
    return api.TokenAnswer(id=identifier, token=text, user=user, user_name=name, expires=expires)


async def list_tokens(connection: AsyncConnection, user: str, now: int) -> list[api.TokenView]:
    """The user's own tokens that still work, oldest first."""
    mine = and_(tokens.c.user_id == user, tokens.c.kind == "user", tokens.c.revoked == 0, tokens.c.expires > now)
    rows = await connection.execute(select(tokens).where(mine).order_by(tokens.c.created))
    return [api.TokenView(id=row.id, comment=row.comment, created=row.created, expires=row.expires) for row in rows]


async def revoke_token(connection: AsyncConnection, user: str, identifier: str, now: int) -> None:
    """It does not work any more; revoking it again is harmless.

    :raises NotFound: the user has no such token.
    """
    mine = and_(tokens.c.id == identifier, tokens.c.user_id == user, tokens.c.kind == "user")
    done = await connection.execute(update(tokens).where(mine).values(revoked=now).returning(tokens.c.id))
    if done.first() is None:
        raise NotFound(f"You have no token {identifier!r}.", hint="See `funcmq token list`.")


async def add_key(connection: AsyncConnection, user: str, key: PublicKey, comment: str, now: int) -> api.KeyView:
    """Register a public key that signs for this user; one that was revoked stays so.

    :raises Conflict: the user has revoked this key.
    """
    row = {"user_id": user, "id": key.id, "key": key.text, "comment": comment, "created": now, "revoked": 0}
    await connection.execute(insert(connection.dialect, keys).values(row).on_conflict_do_nothing())
    kept = (await connection.execute(select(keys).where(keys.c.user_id == user, keys.c.id == key.id))).one()
    if kept.revoked:
        raise Conflict(f"The key {key.fingerprint} was revoked.", hint="Make a new key: move the old file away and run `funcmq login URL`.")
    return _key_view(kept)


async def list_keys(connection: AsyncConnection, user: str) -> list[api.KeyView]:
    """The user's keys that are not revoked, oldest first."""
    rows = await connection.execute(select(keys).where(keys.c.user_id == user, keys.c.revoked == 0).order_by(keys.c.created, keys.c.id))
    return [_key_view(row) for row in rows]


async def find_key(connection: AsyncConnection, user: str, identifier: str) -> PublicKey | None:
    """The user's key with this id, unless it is revoked."""
    query = select(keys.c.key).where(keys.c.user_id == user, keys.c.id == identifier, keys.c.revoked == 0)
    text = (await connection.execute(query)).scalar()
    return None if text is None else PublicKey.parse(text)


async def revoke_key(connection: AsyncConnection, user: str, identifier: str, now: int) -> None:
    """It signs no more for this user.

    :raises NotFound: the user has no such key.
    """
    mine = and_(keys.c.user_id == user, keys.c.id == identifier, keys.c.revoked == 0)
    done = await connection.execute(update(keys).where(mine).values(revoked=now).returning(keys.c.id))
    if done.first() is None:
        raise NotFound(f"You have no key {identifier[:16]!r}.", hint="See `funcmq key list`.")


def _key_view(row: object) -> api.KeyView:
    return api.KeyView(id=row.id, key=row.key, comment=row.comment, created=row.created)  # type: ignore[attr-defined]
