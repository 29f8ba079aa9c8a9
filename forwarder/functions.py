"""Function records in the store: one row per content, who registered it, and the names it has.

A name is its owner's: `ada/recon`.  Its versions count from 1 and are never given twice; each is one function.  Whoever a name is shared
with may use and read all its versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import is_hash
from funcmq.broker.messages import FunctionRecord
from funcmq.forwarder.prepared import insert
from funcmq.forwarder.tables import endpoint_functions, function_names, function_owners, function_shares, functions, users

_NAME = re.compile(r"(?P<owner>[^/@\s]{1,64})/(?P<name>[\w.-]{1,128})(?:@(?P<version>[1-9]\d{0,8}))?\Z")


@dataclass(frozen=True, slots=True)
class Name:
    """`ada/recon`, or one version of it; 0: the latest."""

    owner: str
    name: str
    version: int = 0

    @classmethod
    def parse(cls, text: str) -> Name:
        """:raises InvalidRequest: this is no name of a function."""
        found = _NAME.match(text)
        if found is None:
            raise InvalidRequest(
                f"{text[:80]!r} is no name of a function.", hint="It is YOU/NAME, of letters, digits, dots, dashes and underscores."
            )
        return cls(found["owner"], found["name"], int(found["version"] or 0))

    def __str__(self) -> str:
        return f"{self.owner}/{self.name}" + (f"@{self.version}" if self.version else "")


async def add(connection: AsyncConnection, user: str, identifier: str, record: FunctionRecord, data: bytes, now: int) -> None:
    """Register a record for this user; what is there already stays."""
    row = {"id": identifier, "name": record.name, "python": record.needs, "record": data}
    await connection.execute(insert(connection.dialect, functions).values(row).on_conflict_do_nothing())
    owner = {"user_id": user, "function_id": identifier, "created": now}
    await connection.execute(insert(connection.dialect, function_owners).values(owner).on_conflict_do_nothing())


async def give_name(connection: AsyncConnection, user: str, name: str, identifier: str, now: int) -> int:
    """Make this function the latest of that name; its version.  What is the latest already stays as it is."""
    mine = and_(function_names.c.owner == user, function_names.c.name == name)
    rows = select(function_names).where(mine).order_by(function_names.c.version.desc()).limit(1)
    last = (await connection.execute(rows)).first()
    if last is not None and last.function_id == identifier and not last.deleted:
        return int(last.version)
    version = last.version + 1 if last is not None else 1
    row = {"owner": user, "name": name, "version": version, "function_id": identifier, "created": now, "deleted": 0}
    await connection.execute(function_names.insert().values(row))
    return version


def _shared_with(user: str) -> Select[Any]:
    """Ids of the functions behind the names that others share with the user."""
    here = and_(function_shares.c.owner == function_names.c.owner, function_shares.c.name == function_names.c.name)
    query = select(function_names.c.function_id).join(function_shares, here)
    return query.where(function_shares.c.user_id == user, function_names.c.deleted == 0)


def _usable(user: str, identifier: ColumnElement[Any]) -> ColumnElement[bool]:
    mine = select(function_owners.c.function_id).where(function_owners.c.user_id == user)
    return or_(identifier.in_(mine), identifier.in_(_shared_with(user)))


async def owned(connection: AsyncConnection, user: str, identifiers: list[str]) -> set[str]:
    """Those of these functions that the user registered."""
    mine = function_owners.c.user_id == user
    rows = await connection.execute(select(function_owners.c.function_id).where(mine, function_owners.c.function_id.in_(identifiers)))
    return {row.function_id for row in rows}


async def shared(connection: AsyncConnection, user: str, identifiers: Iterable[str]) -> set[str]:
    """Those of these functions that others share with the user."""
    rows = await connection.execute(_shared_with(user).where(function_names.c.function_id.in_(list(identifiers))))
    return {row.function_id for row in rows}


async def pythons(connection: AsyncConnection, identifiers: Iterable[str]) -> dict[str, str]:
    """The minor versions of Python that these functions need; '' where one runs on all."""
    rows = await connection.execute(select(functions.c.id, functions.c.python).where(functions.c.id.in_(list(identifiers))))
    return {row.id: row.python for row in rows}


async def fetch_usable(connection: AsyncConnection, user: str, identifier: str) -> bytes | None:
    """A record that the user registered, or that is shared with the user."""
    query = select(functions.c.record).where(functions.c.id == identifier, _usable(user, functions.c.id))
    return (await connection.execute(query)).scalar()


async def fetch_sent(connection: AsyncConnection, endpoint: str, identifier: str) -> bytes | None:
    """A record that a bundle for this endpoint named."""
    query = select(functions.c.record).join(endpoint_functions, endpoint_functions.c.function_id == functions.c.id)
    return (await connection.execute(query.where(functions.c.id == identifier, endpoint_functions.c.endpoint_id == endpoint))).scalar()


async def find(connection: AsyncConnection, user: str, text: str) -> frozenset[str]:
    """Ids of the functions that the user means by an id, by the name of a version, of all versions, or by the plain name of functions."""
    if is_hash(text):
        return frozenset((text,))
    if "/" in text:
        return frozenset(row.function_id for row in await _versions(connection, user, Name.parse(text)))
    named = or_(functions.c.name == text, functions.c.name.endswith(f".{text}", autoescape=True))
    query = select(functions.c.id).where(named, _usable(user, functions.c.id))
    return frozenset(row.id for row in await connection.execute(query))


async def _versions(connection: AsyncConnection, user: str, name: Name) -> list[Row[Any]]:
    guest = select(function_shares.c.user_id).where(
        function_shares.c.owner == function_names.c.owner,
        function_shares.c.name == function_names.c.name,
        function_shares.c.user_id == user,
    )
    query = select(function_names, users.c.name.label("owner_name")).join(users, users.c.id == function_names.c.owner)
    query = query.where(users.c.name == name.owner, function_names.c.name == name.name, function_names.c.deleted == 0)
    if name.version:
        query = query.where(function_names.c.version == name.version)
    query = query.where(or_(function_names.c.owner == user, guest.exists()))
    return list((await connection.execute(query.order_by(function_names.c.version.desc()))).all())


async def list_named(connection: AsyncConnection, user: str, name: Name) -> list[api.FunctionView]:
    """Versions of a name, newest first.

    :raises NotFound: there is none that the user may use.
    """
    rows = await _versions(connection, user, name)
    if not rows:
        raise NotFound(f"There is no function {name} that you may use.", hint="See `funcmq function list`.")
    records = await _records(connection, {row.function_id for row in rows})
    allowed = await _allowed(connection, {(row.owner, row.name) for row in rows if row.owner == user})
    return [
        api.FunctionView(
            id=row.function_id,
            name=records[row.function_id].name,
            python=records[row.function_id].python,
            created=row.created,
            names=[str(Name(row.owner_name, row.name, row.version))],
            owner=row.owner_name,
            allowed=allowed.get((row.owner, row.name), []),
        )
        for row in rows
    ]


async def _records(connection: AsyncConnection, identifiers: set[str]) -> dict[str, Row[Any]]:
    query: Select[Any] = select(functions.c.id, functions.c.name, functions.c.python).where(functions.c.id.in_(identifiers))
    return {row.id: row for row in await connection.execute(query)}


async def _allowed(connection: AsyncConnection, names: set[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for owner, name in names:
        query = select(users.c.name).join(function_shares, function_shares.c.user_id == users.c.id)
        rows = await connection.execute(
            query.where(function_shares.c.owner == owner, function_shares.c.name == name).order_by(users.c.name)
        )
        found[owner, name] = [row.name for row in rows]
    return found


async def list_usable(connection: AsyncConnection, user: str, user_name: str) -> list[api.FunctionView]:
    """What the user registered, and what others share with the user, newest first."""
    query = select(functions.c.id, functions.c.name, functions.c.python, function_owners.c.created)
    query = query.join(function_owners, function_owners.c.function_id == functions.c.id).where(function_owners.c.user_id == user)
    names = select(function_names, users.c.name.label("owner_name")).join(users, users.c.id == function_names.c.owner)
    names = names.where(function_names.c.deleted == 0, function_names.c.owner == user).order_by(function_names.c.version.desc())
    said: dict[str, list[str]] = {}
    mine = (await connection.execute(names)).all()
    for row in mine:
        said.setdefault(row.function_id, []).append(str(Name(row.owner_name, row.name, row.version)))
    allowed = await _allowed(connection, {(row.owner, row.name) for row in mine})
    guests = {row.function_id: allowed[row.owner, row.name] for row in mine}
    found = [
        api.FunctionView(
            id=row.id,
            name=row.name,
            python=row.python,
            created=row.created,
            names=said.get(row.id, []),
            owner=user_name,
            allowed=guests.get(row.id, []),
        )
        for row in await connection.execute(query)
    ]
    shares = select(users.c.name.label("owner_name"), function_shares.c.name).join(users, users.c.id == function_shares.c.owner)
    for row in (await connection.execute(shares.where(function_shares.c.user_id == user))).all():
        if await _versions(connection, user, Name(row.owner_name, row.name)):
            found += await list_named(connection, user, Name(row.owner_name, row.name))
    return sorted(found, key=lambda view: (-view.created, view.id))


async def own_names(connection: AsyncConnection, user: str, user_name: str, text: str) -> list[str]:
    """Names, without versions, that the user means by a name of their own, or by the id of a function that has some.

    :raises NotFound: there is none.
    """
    query = select(function_names.c.name).where(function_names.c.owner == user, function_names.c.deleted == 0).distinct()
    if is_hash(text):
        query = query.where(function_names.c.function_id == text)
    else:
        name = Name.parse(text)
        query = query.where(function_names.c.name == (name.name if name.owner == user_name else ""))
    found = [row.name for row in await connection.execute(query)]
    if not found:
        raise NotFound(
            f"You have no named function {text!r}.", hint=f"Only named functions are shared: register(fn, name='{user_name}/…')."
        )
    return found


async def share(connection: AsyncConnection, owner: str, names: list[str], allow: list[str], deny: list[str]) -> None:
    """Let these users use these names, and these no longer."""
    rows = [{"owner": owner, "name": name, "user_id": user} for name in names for user in allow]
    if rows:
        await connection.execute(insert(connection.dialect, function_shares).on_conflict_do_nothing(), rows)
    if deny:
        here = and_(function_shares.c.owner == owner, function_shares.c.name.in_(names), function_shares.c.user_id.in_(deny))
        await connection.execute(delete(function_shares).where(here))


async def remove(connection: AsyncConnection, user: str, user_name: str, text: str, now: int) -> bool:
    """Take a function from the user by its id, with its names; or a name, or one version of it.  Work already sent runs all the same.

    :return: whether there was such a thing.
    """
    here = and_(function_names.c.owner == user, function_names.c.deleted == 0)
    if is_hash(text):
        here = and_(here, function_names.c.function_id == text)
    else:
        name = Name.parse(text)
        here = and_(here, function_names.c.name == (name.name if name.owner == user_name else ""))
        if name.version:
            here = and_(here, function_names.c.version == name.version)
    count = select(func.count()).select_from(function_names).where(here)
    found = (await connection.execute(count)).scalar_one() > 0
    await connection.execute(update(function_names).where(here).values(deleted=now))
    if not is_hash(text):
        return found
    mine = and_(function_owners.c.user_id == user, function_owners.c.function_id == text)
    gone = await connection.execute(delete(function_owners).where(mine).returning(function_owners.c.function_id))
    return gone.first() is not None or found
