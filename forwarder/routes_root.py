"""What a front door answers at the root, without `/v1`: is it there, what can it do, how much does it do, and a page for people.

Numbers (`/metrics`) need no token where only a private network can ask: on a listener of their own (`metrics_port`), or on the front door's
port while that is a private address and nobody forwarded the request.  Otherwise they need an administrator's token, which Prometheus
sends with `authorization: credentials_file`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import msgspec
from aiohttp import web

from funcmq.broker import api
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotAllowed, NotLoggedIn
from funcmq.forwarder import metrics, openapi, page, routes_endpoints, routes_tasks
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Door
from funcmq.forwarder.openapi import Plain
from funcmq.forwarder.page import HEADERS, Seen
from funcmq.forwarder.people import Caller
from funcmq.forwarder.web import Call, Routes, read_body

COOKIE = "funcmq_token"
COOKIE_S = 12 * 3600
FORM_LIMIT = 8 * 1024
LAST_TASKS = 30
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")
"""Whoever sends one of these is a proxy, and who stands behind it is not known."""

JSON, TEXT, HTML = "application/json", "text/plain", "text/html"

PLAIN = (
    Plain("/health", "It lives.", JSON),
    Plain("/ready", "It lives, and so do its database and its link to RabbitMQ; 503 otherwise.", JSON),
    Plain("/metrics", "What it counts, in the text format of Prometheus.", TEXT, token=True),
    Plain("/openapi.json", "This description.", JSON),
    Plain("/", "A page of endpoints and last tasks.", HTML),
    Plain("/v1/amqp", "A WebSocket that carries the bytes of one AMQP connection.", "application/octet-stream", token=True),
)


@dataclass(frozen=True, slots=True)
class Root:
    """The handlers, of one front door."""

    door: Door
    described: bytes

    async def health(self, _: web.Request) -> web.Response:
        """It lives."""
        return web.json_response({"status": "ok", "release": self.door.settings.release})

    async def ready(self, _: web.Request) -> web.Response:
        """It can take work."""
        async with self.door.database.read() as connection:
            await connection.exec_driver_sql("SELECT 1")
        if not self.door.link.up:
            raise Busy(
                "The front door has no connection to the broker.",
                hint="It connects again by itself; if this lasts, see the log of `funcmq serve`.",
            )
        return web.json_response({"status": "ready", "release": self.door.settings.release})

    async def openapi(self, _: web.Request) -> web.Response:
        """The description, made once."""
        return web.Response(body=self.described, content_type=JSON)

    async def metrics(self, request: web.Request) -> web.Response:
        """The numbers, for whoever may see them."""
        if not _private_only(self.door.settings.host, self.door.settings.metrics_port, request):
            await self._administrator(request)
        return await self.numbers(request)

    async def numbers(self, _: web.Request) -> web.Response:
        """The numbers, for everybody who can ask."""
        return web.Response(body=await self.door.metrics.expose(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def page(self, request: web.Request) -> web.Response:
        """The page: with what the cookie's token may see, or how to log in."""
        token = request.cookies.get(COOKIE, "")
        if not token:
            return self._show(request, None)
        try:
            return self._show(request, await self._look(await self._user(token)))
        except (NotLoggedIn, NotAllowed) as refused:
            answer = self._show(request, None, refused)
            answer.del_cookie(COOKIE)
            return answer

    async def log_in(self, request: web.Request) -> web.Response:
        """A token by form, for a cookie that only this page reads."""
        _same_origin(request)
        try:
            token = _token(await read_body(request, FORM_LIMIT))
            await self._user(token)
        except (NotLoggedIn, NotAllowed) as refused:
            return self._show(request, None, refused)
        answer = _back()
        secure = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
        answer.set_cookie(COOKIE, token, max_age=COOKIE_S, httponly=True, samesite="Strict", secure=secure, path="/")
        return answer

    async def log_out(self, request: web.Request) -> web.Response:
        """The cookie goes; the token works on."""
        _same_origin(request)
        answer = _back()
        answer.del_cookie(COOKIE)
        return answer

    async def _user(self, token: str) -> Caller:
        caller = await self.door.caller(token)
        if caller.kind != "user":
            raise NotAllowed("This is the token of an endpoint.", hint="Use your own: `funcmq token create`.")
        return caller

    async def _administrator(self, request: web.Request) -> None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise NotLoggedIn(
                "GET /metrics needs a token here.", hint="Send an administrator's, or set metrics_port for a private listener."
            )
        if not (await self.door.caller(token.strip())).admin:
            raise NotAllowed("Only administrators may see /metrics here.", hint="Ask one for a token, or for a private metrics_port.")

    async def _look(self, caller: Caller) -> Seen:
        endpoints = await routes_endpoints.list_endpoints(self.door, Call(None, {}, {}, caller))
        tasks = await routes_tasks.list_tasks(self.door, Call(None, {}, api.TasksQuery(limit=LAST_TASKS), caller))
        return Seen(caller.user_name, endpoints, tasks, now_ms())

    def _show(self, request: web.Request, seen: Seen | None, wrong: FuncmqError | None = None) -> web.Response:
        url = f"{request.headers.get('X-Forwarded-Proto', request.scheme)}://{request.host}"
        text = page.render(self.door.settings.release, url, seen, f"{wrong.message} {wrong.hint}" if wrong else "")
        return web.Response(text=text, content_type=HTML, headers=HEADERS, status=wrong.http if wrong else 200)


def add(app: web.Application, door: Door, tables: Sequence[Routes]) -> None:
    """Serve all of it from this application."""
    root = Root(door, msgspec.json.encode(openapi.describe(tables, PLAIN, door.settings.release)))
    for path, handler in (("/health", root.health), ("/ready", root.ready), ("/openapi.json", root.openapi), ("/metrics", root.metrics)):
        app.router.add_get(path, handler)
    app.router.add_get("/", root.page)
    app.router.add_post("/", root.log_in)
    app.router.add_post("/logout", root.log_out)


def numbers_only(door: Door) -> web.Application:
    """The private listener of `metrics_port`."""
    app = web.Application()
    app.router.add_get("/metrics", Root(door, b"").numbers)
    return app


def _private_only(host: str, metrics_port: int, request: web.Request) -> bool:
    """Whether nobody but a private network can have sent this: a proxy on this host would make everybody look near."""
    return not metrics_port and near(host) and near(request.remote or "") and not any(name in request.headers for name in FORWARDED)


def near(address: str) -> bool:
    """Whether an address is of a private network or this host; one that stands for all addresses is not."""
    if address == "localhost":
        return True
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return parsed.is_private and not parsed.is_unspecified


def _same_origin(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise NotAllowed("This form was sent from another site.", hint="Open the page of this front door and log in there.")


def _token(body: bytes) -> str:
    try:
        fields = parse_qs(body.decode("ascii"), max_num_fields=8)
    except ValueError:
        raise InvalidRequest("The body is not a form with a token.", hint="Send `token=…` as application/x-www-form-urlencoded.") from None
    token = fields.get("token", [""])[0].strip()
    if not token or not token.isascii() or not token.isprintable():
        raise NotLoggedIn("No token was given.", hint="`funcmq token create` makes one.")
    return token


def _back() -> web.Response:
    return web.Response(status=303, headers={"Location": "/", "Cache-Control": "no-store"})
