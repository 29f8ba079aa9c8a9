"""Functions: registered, named, listed, shared, removed."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api, codec
from funcmq.broker.errors import InvalidRequest, NotAllowed, NotFound
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord
from funcmq.forwarder import functions, people
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Door
from funcmq.forwarder.functions import Name
from funcmq.forwarder.people import Caller
from funcmq.forwarder.web import Call, Routes, Who

routes = Routes()


@routes("POST /functions", request=bytes, answer=api.FunctionAnswer, query=api.NameQuery)
async def register(door: Door, call: Call[bytes]) -> api.FunctionAnswer:
    """Exact bytes of a function record; its id is their hash.  With a name, it is the latest version of that name from now on."""
    data, user = call.body, call.caller.user
    record = codec.decode(FunctionRecord, data, "function record")
    if len(record.name) > 255 or len(record.python) > 16:
        raise InvalidRequest("A function's name has at most 255 characters, its Python version 16.")
    identifier, name = sha256(data), _own_name(call.caller, call.query.name) if call.query.name else ""

    async def write(connection: AsyncConnection) -> int:
        await functions.add(connection, user, identifier, record, data, now_ms())
        return await functions.give_name(connection, user, name, identifier, now_ms()) if name else 0

    version = await door.database.write(write)
    door.known.functions.put((user, identifier), True)
    return api.FunctionAnswer(id=identifier, name=call.query.name if name else "", version=version)


def _own_name(caller: Caller, text: str) -> str:
    name = Name.parse(text)
    if name.owner != caller.user_name:
        raise NotAllowed(f"The names of {name.owner} are not yours.", hint=f"Call it {caller.user_name}/{name.name}.")
    if name.version:
        raise InvalidRequest("Versions are counted here.", hint=f"Register it as {name.owner}/{name.name}.")
    return name.name


@routes("GET /functions", answer=list[api.FunctionView], query=api.NameQuery)
async def list_functions(door: Door, call: Call[None]) -> list[api.FunctionView]:
    """What the caller registered and what is shared with the caller; or the versions of one name, newest first."""
    async with door.database.read() as connection:
        if call.query.name:
            return await functions.list_named(connection, call.caller.user, Name.parse(call.query.name))
        return await functions.list_usable(connection, call.caller.user, call.caller.user_name)


@routes("GET /functions/{id}", who=Who.USER | Who.ENDPOINT, answer=bytes)
async def fetch(door: Door, call: Call[None]) -> bytes:
    """Exact bytes of a record: for who may use it, and for endpoints that were sent it."""
    identifier, caller = call.path["id"], call.caller
    async with door.database.read() as connection:
        if caller.endpoint:
            found = await functions.fetch_sent(connection, caller.endpoint, identifier)
        else:
            found = await functions.fetch_usable(connection, caller.user, identifier)
    if found is None:
        raise NotFound(
            f"There is no function {identifier[:16]!r}.", hint="See `funcmq function list`; whoever submits it registers it first."
        )
    return found


@routes("PATCH /functions/{id}", request=api.FunctionPatch, answer=list[api.FunctionView])
async def share(door: Door, call: Call[api.FunctionPatch]) -> list[api.FunctionView]:
    """Let users use a named function of the caller, given by name or by id, or no longer; all versions of its name go together."""
    caller, body = call.caller, call.body
    async with door.database.read() as connection:
        names = await functions.own_names(connection, caller.user, caller.user_name, call.path["id"])
        ids = await people.user_ids(connection, [*body.allow, *body.deny])
    allow, deny = [ids[name] for name in body.allow], [ids[name] for name in body.deny]
    await door.database.write(lambda c: functions.share(c, caller.user, names, allow, deny))
    async with door.database.read() as connection:
        return [view for name in names for view in await functions.list_named(connection, caller.user, Name(caller.user_name, name))]


@routes("DELETE /functions/{id}")
async def remove(door: Door, call: Call[None]) -> None:
    """A function of the caller by its id, a name, or one version of it."""
    caller, text = call.caller, call.path["id"]
    if not await door.database.write(lambda c: functions.remove(c, caller.user, caller.user_name, text, now_ms())):
        raise NotFound(f"You have no function {text[:80]!r}.", hint="See `funcmq function list`.")
    door.known.functions.clear()
