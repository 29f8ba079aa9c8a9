"""What an endpoint's owner tells its daemon from afar, and what a host needs to know to set one up."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from sqlalchemy import select

from funcmq.broker import api, codec, messages, topology
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import EndpointOffline, FuncmqError, NotAllowed
from funcmq.broker.ids import new_hex
from funcmq.broker.messages import Ask, Told
from funcmq.forwarder import people
from funcmq.forwarder.door import Door
from funcmq.forwarder.endpoints import guests
from funcmq.forwarder.routes_endpoints import show
from funcmq.forwarder.tables import endpoints
from funcmq.forwarder.web import Call, Routes, Who

routes = Routes()

ANSWER_S = 10.0
MOST_LOG = 256 * 1024


@routes("POST /endpoints/{id}/orders", who=Who.USER | Who.ENDPOINT, request=api.OrderRequest, answer=api.OrderAnswer)
async def order(door: Door, call: Call[api.OrderRequest]) -> api.OrderAnswer:
    """Have the daemon drain, stop or show its log; it has said that it will when this answers.

    :raises EndpointOffline: it is not connected, or says nothing for 10 s.
    """
    view = await _own(door, call)
    if not view.online:
        raise EndpointOffline(f"The endpoint {view.name} is not connected.", hint="Nobody is there to ask; nothing was sent.")
    async with door.database.read() as connection:
        epoch = (await connection.execute(select(endpoints.c.epoch).where(endpoints.c.id == view.id))).scalar_one()
    ask = Ask(Ask.VERSION, epoch, call.body.verb, new_hex(), max(0, min(call.body.size, MOST_LOG)))
    try:
        async with asyncio.timeout(ANSWER_S):
            told = await _ask(door, view.id, ask)
    except TimeoutError:
        where = f"on {view.host} (pid {view.pid})"
        raise EndpointOffline(f"The daemon of {view.name} {where} did not answer within {ANSWER_S:g} s.", hint="Try again.") from None
    return api.OrderAnswer(host=told.host, pid=told.pid, log=told.log, text=told.text)


@routes("GET /endpoints/{id}/keys", who=Who.USER | Who.ENDPOINT, answer=list[api.UserKey])
async def list_keys(door: Door, call: Call[None]) -> list[api.UserKey]:
    """The keys that its owner may want to trust there: the owner's, and those of the users who are let in."""
    view = await _own(door, call)
    async with door.database.read() as connection:
        names = [view.owner_name, *await guests(connection, view.id)]
        users = await people.user_ids(connection, names)
        return [
            api.UserKey(user=users[name], user_name=name, key=key.key, comment=key.comment)
            for name in dict.fromkeys(names)
            for key in await people.list_keys(connection, users[name])
        ]


@routes("GET /brokers", who=Who.USER | Who.ENDPOINT, answer=api.Brokers)
async def brokers(door: Door, _: Call[None]) -> api.Brokers:
    """For those who look whether they could connect there."""
    return api.Brokers(urls=list(door.settings.public_brokers))


async def _own(door: Door, call: Call[Any]) -> api.EndpointView:
    """The endpoint, of its owner or by its own token.

    :raises NotAllowed: the caller may send it tasks, and no more.
    """
    view: api.EndpointView = await show(door, call)
    if view.owner != call.caller.user:
        raise NotAllowed(f"Only {view.owner_name} may do this with the endpoint {view.name}.", hint=f"Ask {view.owner_name}.")
    return view


async def _ask(door: Door, endpoint: str, ask: Ask) -> Told:
    """Send it and wait.  Any front door may be asked: the answer comes to a queue of this question."""
    answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    async def hear(delivery: Delivery) -> None:
        with contextlib.suppress(FuncmqError):
            said = messages.unpack(delivery.kind, delivery.body)
            if isinstance(said, Told) and said.id == ask.id and delivery.key == endpoint and not answer.done():
                answer.set_result(said)
        await delivery.ack()

    queue = topology.reply(ask.id, endpoint)
    await door.link.declare(queue)
    consumer = door.link.consume(topology.reply_queue(ask.id), hear)
    try:
        await door.link.publish(topology.CONTROL, endpoint, "ask/1", codec.encode(ask), timeout=ANSWER_S)
        return await answer
    finally:
        await consumer.cancel()
        with contextlib.suppress(FuncmqError):
            await door.link.delete(queue)
