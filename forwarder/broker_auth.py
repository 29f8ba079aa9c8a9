"""RabbitMQ's questions (`rabbitmq_auth_backend_http`): who is this, and may they do that?  On a private listener, never on the public port.

Rights are the table of `broker.rights`; the store says whether the user exists and is not over: an endpoint under any but its newest epoch,
a deleted endpoint and an ended session are nobody.  Without an answer from here RabbitMQ refuses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from sqlalchemy import select

from funcmq.broker import rights
from funcmq.forwarder import sessions
from funcmq.forwarder.credentials import fits
from funcmq.forwarder.database import Database
from funcmq.forwarder.tables import endpoints

Form = Mapping[str, str]


class BrokerAuth:
    """The answers; `vhost` is the only one that our users may enter."""

    def __init__(self, database: Database, vhost: str) -> None:
        self._database, self._vhost = database, vhost

    async def user(self, form: Form) -> bool:
        """Whether the password is that user's."""
        who = rights.identify(form.get("username", ""))
        kept = "" if who is None else await self._secret(who)
        return fits(form.get("password", ""), kept)

    async def vhost(self, form: Form) -> bool:
        """Whether the user may enter a vhost."""
        return await self._live(form) is not None and form.get("vhost") == self._vhost

    async def resource(self, form: Form) -> bool:
        """Whether the user may configure, write or read a queue or an exchange."""
        who = await self._live(form)
        if who is None or form.get("vhost") != self._vhost:
            return False
        return rights.may_use(who, form.get("resource", ""), form.get("name", ""), form.get("permission", ""))

    async def topic(self, form: Form) -> bool:
        """Whether the user may write, or bind, with a routing key."""
        who = await self._live(form)
        if who is None or form.get("vhost") != self._vhost:
            return False
        return rights.may_route(who, form.get("name", ""), form.get("permission", ""), form.get("routing_key", ""))

    async def _live(self, form: Form) -> rights.Identity | None:
        who = rights.identify(form.get("username", ""))
        return who if who is not None and await self._secret(who) else None

    async def _secret(self, who: rights.Identity) -> str:
        """Digest of the password; '' for somebody who is over."""
        async with self._database.read() as connection:
            if isinstance(who, rights.Session):
                return await sessions.secret(connection, who.id)
            current = (endpoints.c.id == who.id, endpoints.c.epoch == who.epoch, endpoints.c.deleted == 0)
            return (await connection.execute(select(endpoints.c.secret).where(*current))).scalar() or ""


def build(auth: BrokerAuth) -> web.Application:
    """The private application."""
    app = web.Application(client_max_size=64 * 1024)
    for name, question in (("user", auth.user), ("vhost", auth.vhost), ("resource", auth.resource), ("topic", auth.topic)):
        app.router.add_post(f"/broker/{name}", _serve(question))
    return app


def _serve(question: Callable[[Form], Awaitable[bool]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(request: web.Request) -> web.Response:
        form = {name: value for name, value in (await request.post()).items() if isinstance(value, str)}
        return web.Response(text="allow" if await question(form) else "deny")

    return serve
