"""Who is who: login, users, tokens, keys, enrolment codes."""

from __future__ import annotations

import re

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest
from funcmq.broker.messages import MAX_INLINE
from funcmq.broker.signing import PublicKey
from funcmq.forwarder import endpoints as endpoint_rows
from funcmq.forwarder import people
from funcmq.forwarder import sessions as session_rows
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.credentials import CODE_S, new_code
from funcmq.forwarder.door import Door
from funcmq.forwarder.hang_up import end_session, fence
from funcmq.forwarder.people import DAY_MS
from funcmq.forwarder.web import Call, Routes, Who

routes = Routes()

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
LOGIN_DAYS = 30.0
LONGEST_DAYS = 366.0


@routes("POST /login", who=Who.NOBODY, request=api.LoginRequest, answer=api.TokenAnswer)
async def login(door: Door, call: Call[api.LoginRequest]) -> api.TokenAnswer:
    """A one-time code for a token; the key is registered with it."""
    body, now = call.body, now_ms()
    key = None if body.key is None else PublicKey.parse(body.key)

    async def write(connection: AsyncConnection) -> api.TokenAnswer:
        user = await people.use_code(connection, body.code, "login", now)
        if key is not None:
            await people.add_key(connection, user, key, _short(body.comment), now)
        return await people.add_token(connection, user, _short(body.comment), now, _expiry(now, LOGIN_DAYS))

    answer = await door.database.write(write)
    door.known.forget_rights()
    return answer


@routes("GET /me", answer=api.Me)
async def me(door: Door, call: Call[None]) -> api.Me:
    """The caller, and what this front door is."""
    caller = call.caller
    return api.Me(
        user=caller.user,
        name=caller.user_name,
        admin=caller.admin,
        release=door.settings.release,
        max_inline=MAX_INLINE,
        token=caller.token,
        expires=caller.expires,
    )


@routes("GET /front-door", who=Who.ANYBODY | Who.ENDPOINT, answer=api.FrontDoor)
async def front_door(door: Door, _: Call[None]) -> api.FrontDoor:
    """What this front door is, and the key that it signs with."""
    key = None if door.key is None else door.key.public
    return api.FrontDoor(release=door.settings.release, key=key.text if key else "", fingerprint=key.fingerprint if key else "")


@routes("POST /users", who=Who.ADMIN, request=api.UserRequest, answer=api.UserAnswer, status=201)
async def add_user(door: Door, call: Call[api.UserRequest]) -> api.UserAnswer:
    """A new user and the code for the first login."""
    body, now, code = call.body, now_ms(), new_code()
    check_name(body.name)

    async def write(connection: AsyncConnection) -> api.UserAnswer:
        user = await people.add_user(connection, body.name, body.admin, now)
        expires = now + CODE_S * 1000
        await people.add_code(connection, code, "login", user, expires)
        return api.UserAnswer(id=user, name=body.name, admin=body.admin, code=code, code_expires=expires)

    return await door.database.write(write)


@routes("GET /users", who=Who.ADMIN, answer=list[api.UserAnswer])
async def list_users(door: Door, _: Call[None]) -> list[api.UserAnswer]:
    """All users."""
    async with door.database.read() as connection:
        return await people.list_users(connection)


@routes("DELETE /users/{id}", who=Who.ADMIN)
async def remove_user(door: Door, call: Call[None]) -> None:
    """By id or name: they are locked out at once, and so are their endpoints."""
    if call.path["id"] in (call.caller.user, call.caller.user_name):
        raise InvalidRequest("You cannot remove yourself.", hint="Another administrator can.")
    gone = await door.database.write(lambda c: people.remove_user(c, call.path["id"], now_ms()))
    door.known.forget_rights()
    for endpoint in gone.endpoints:
        await _cut_off(door, endpoint)
    async with door.database.read() as connection:
        sessions = [session for token in gone.tokens for session in await session_rows.of_token(connection, token)]
    for session in sessions:
        await end_session(door, session)


async def _cut_off(door: Door, endpoint: str) -> None:
    await door.database.write(lambda c: endpoint_rows.lock(c, endpoint))
    async with door.database.read() as connection:
        fenced, epoch = await endpoint_rows.epochs(connection, endpoint)
    await fence(door, endpoint, range(fenced + 1, epoch + 1))


@routes("POST /tokens", request=api.TokenRequest, answer=api.TokenAnswer, status=201)
async def add_token(door: Door, call: Call[api.TokenRequest]) -> api.TokenAnswer:
    """One more token for the caller."""
    body, now, user = call.body, now_ms(), call.caller.user
    if not 0 < body.days <= LONGEST_DAYS:
        raise InvalidRequest(f"A token is valid for more than 0 and at most {LONGEST_DAYS:g} days.")
    return await door.database.write(lambda c: people.add_token(c, user, _short(body.comment), now, _expiry(now, body.days)))


@routes("GET /tokens", answer=list[api.TokenView])
async def list_tokens(door: Door, call: Call[None]) -> list[api.TokenView]:
    """The caller's tokens."""
    async with door.database.read() as connection:
        return await people.list_tokens(connection, call.caller.user, now_ms())


@routes("DELETE /tokens/{id}")
async def revoke_token(door: Door, call: Call[None]) -> None:
    """The token and the sessions made with it end."""
    caller, identifier = call.caller, call.path["id"]
    await door.database.write(lambda c: people.revoke_token(c, caller.user, identifier, now_ms()))
    door.known.forget_rights()
    async with door.database.read() as connection:
        sessions = await session_rows.of_token(connection, identifier)
    for session in sessions:
        await end_session(door, session)


@routes("POST /keys", request=api.KeyRequest, answer=api.KeyView, status=201)
async def add_key(door: Door, call: Call[api.KeyRequest]) -> api.KeyView:
    """A key that signs for the caller."""
    user, key, comment = call.caller.user, PublicKey.parse(call.body.key), _short(call.body.comment)
    view = await door.database.write(lambda c: people.add_key(c, user, key, comment, now_ms()))
    door.known.forget_rights()
    return view


@routes("GET /keys", answer=list[api.KeyView])
async def list_keys(door: Door, call: Call[None]) -> list[api.KeyView]:
    """The caller's keys."""
    async with door.database.read() as connection:
        return await people.list_keys(connection, call.caller.user)


@routes("DELETE /keys/{id}")
async def revoke_key(door: Door, call: Call[None]) -> None:
    """The key signs no more."""
    await door.database.write(lambda c: people.revoke_key(c, call.caller.user, call.path["id"], now_ms()))
    door.known.forget_rights()


@routes("POST /enrolments", answer=api.EnrolmentAnswer, status=201)
async def enrol(door: Door, call: Call[None]) -> api.EnrolmentAnswer:
    """A one-time code to register an endpoint with."""
    code, expires, user = new_code(), now_ms() + CODE_S * 1000, call.caller.user
    await door.database.write(lambda c: people.add_code(c, code, "enrolment", user, expires))
    return api.EnrolmentAnswer(code=code, expires=expires)


def check_name(name: str) -> None:
    """:raises InvalidRequest: users and endpoints are not called so."""
    if not _NAME.match(name):
        raise InvalidRequest("A name has 1 to 64 letters, digits, and . _ @ - after the first.")


async def first_administrator(door: Door) -> str | None:
    """The one-time code of `admin`, made when there are no users yet; None otherwise."""
    now, code = now_ms(), new_code()

    async def write(connection: AsyncConnection) -> bool:
        if await people.count_users(connection):
            return False
        user = await people.add_user(connection, "admin", True, now)
        await people.add_code(connection, code, "login", user, now + CODE_S * 1000)
        return True

    return code if await door.database.write(write) else None


def _short(comment: str) -> str:
    return comment.replace("\0", "")[:255]  # PostgreSQL keeps no NUL


def _expiry(now: int, days: float) -> int:
    return now + int(days * DAY_MS)
