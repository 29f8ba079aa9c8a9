"""Routes as data, and the shell that serves them with aiohttp.

A route says what it takes, what it answers and who may call it; the shell checks the token, decodes, calls the handler and encodes.
Whatever goes wrong is answered as `api.ErrorAnswer` with a code of `errors.TABLE`, also where aiohttp itself would answer in plain text.
"""

from __future__ import annotations

import enum
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from aiohttp import web

from funcmq.broker import api, releases
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotAllowed, NotFound, NotLoggedIn, PayloadTooLarge
from funcmq.broker.messages import MAX_INLINE
from funcmq.forwarder.people import Caller
from funcmq.forwarder.writer import explain

log = logging.getLogger("funcmq.http")


B = TypeVar("B")

RAW_LIMIT = MAX_INLINE + 64 * 1024
"""Bytes of a bundle or a function record: one argument of the largest size, and what stands around it."""
BODY_LIMIT = 1024 * 1024
"""Bytes of any other body."""


_SAID = {releases.HEADER: releases.release()}


class Who(enum.Flag):
    """Whose token a route wants."""

    NOBODY = 0
    USER = enum.auto()
    ENDPOINT = enum.auto()
    ADMIN = enum.auto()
    ANYBODY = enum.auto()
    """With a user's token or with none."""


@dataclass(frozen=True, slots=True)
class Call(Generic[B]):
    """A request, checked and decoded.  `query` is of the route's type, or the parameters as they came where the route declares none."""

    body: B
    path: Mapping[str, str]
    query: Any
    known: Caller | None

    @property
    def caller(self) -> Caller:
        """Who calls.

        :raises NotLoggedIn: nobody that we know (only where the route takes anybody).
        """
        if self.known is None:
            raise NotLoggedIn("This needs a token, and none was sent.")
        return self.known


Handler = Callable[[Any, Call[Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """`request` and `answer` are types of `broker.api` (or lists of them), `bytes` for exact bytes, None for nothing.

    `query` is a type whose fields are the parameters after `?`; `plain` a type that may come instead of exact bytes, as JSON or msgpack.
    """

    method: str
    path: str
    handler: Handler
    who: Who
    request: Any
    answer: Any
    status: int
    query: Any = None
    plain: Any = None

    @property
    def limit(self) -> int:
        """Largest body in bytes."""
        return RAW_LIMIT if self.request is bytes else BODY_LIMIT


class Routes(list[Route]):
    """A table of routes, filled by decorators."""

    def __call__(
        self,
        line: str,
        *,
        who: Who = Who.USER,
        request: Any = None,
        answer: Any = None,
        status: int = 200,
        query: Any = None,
        plain: Any = None,
    ) -> Callable[[Handler], Handler]:
        """`@routes("POST /tasks", …)`: the path begins after `/v1`."""
        method, _, path = line.partition(" ")

        def add(handler: Handler) -> Handler:
            self.append(Route(method, path, handler, who, request, answer, 204 if answer is None else status, query, plain))
            return handler

        return add


class Gate(Protocol):
    """Knows tokens."""

    async def caller(self, token: str) -> Caller: ...


class Watch(Protocol):
    """Is told of every request that was answered: its method, its route (`unknown` where there is none), status and seconds it took."""

    def __call__(self, method: str, route: str, status: int, seconds: float) -> None: ...


def build(door: Any, gate: Gate, tables: list[Routes], watch: Watch | None = None) -> web.Application:
    """The application that serves these routes under `/v1`; handlers get `door` first."""
    middlewares = [_speak_errors] if watch is None else [_tell(watch), _speak_errors]
    app = web.Application(middlewares=middlewares, client_max_size=RAW_LIMIT)
    for routes in tables:
        for route in routes:
            app.router.add_route(route.method, "/v1" + route.path, _serve(route, door, gate))
    return app


def _serve(route: Route, door: Any, gate: Gate) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def serve(request: web.Request) -> web.Response:
        releases.check(releases.release(), request.headers.get(releases.HEADER, ""))
        caller = await admit(request, route, gate)
        query = _parameters(route.query, request.query)
        body = _decode(_kind(route, request.content_type), request.content_type, await read_body(request, route.limit))
        answer = await route.handler(door, Call(body, request.match_info, query, caller))
        return _encode(route, answer, request.headers.get("Accept", ""))

    return serve


async def admit(request: web.Request, route: Route, gate: Gate) -> Caller | None:
    """Who calls, if the route is for him.

    :raises NotLoggedIn: no token, or none that works.
    :raises NotAllowed: this route is for others.
    """
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if route.who is Who.NOBODY or (Who.ANYBODY in route.who and not token):
        return None
    if kind.lower() != "bearer" or not token.strip():
        raise NotLoggedIn(f"{_line(route)} needs a token, and none was sent.")
    caller = await gate.caller(token.strip())
    if caller.kind == "endpoint":
        if Who.ENDPOINT not in route.who:
            raise NotAllowed(f"The token of an endpoint may not {_line(route)}.", hint="Use your own token: `funcmq login URL`.")
    elif not route.who & (Who.USER | Who.ANYBODY) and not (Who.ADMIN in route.who and caller.admin):
        hint = "Ask an administrator." if Who.ADMIN in route.who else "Only the endpoint's own token may do this."
        raise NotAllowed(f"You may not {_line(route)}.", hint=hint)
    return caller


def _line(route: Route) -> str:
    return f"{route.method} /v1{route.path}"


def _kind(route: Route, content_type: str) -> Any:
    return route.plain if route.plain is not None and content_type in (api.JSON, api.MSGPACK) else route.request


def _parameters(kind: Any, given: Mapping[str, str]) -> Any:
    if kind is None:
        return given
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"A parameter after `?` is not valid: {wrong}.") from None


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    :raises PayloadTooLarge: it is longer than this many bytes.
    """
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async for part in request.content.iter_any():
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
    except (ConnectionError, web.RequestPayloadError):
        raise web.HTTPBadRequest(reason="The body ended too early or is not encoded as its headers say.") from None
    return b"".join(parts)


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit:,} bytes.")


def _decode(kind: Any, content_type: str, data: bytes) -> Any:
    if kind is None:
        return None
    if kind is bytes:
        return data
    try:
        if content_type == api.MSGPACK:
            return msgspec.msgpack.decode(data, type=kind)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        raise InvalidRequest(f"The body is not a valid {kind.__name__}: {broken}.", hint="GET /openapi.json describes it.") from None


def _encode(route: Route, answer: Any, accept: str) -> web.Response:
    if route.answer is None:
        return web.Response(status=204, headers=_SAID)
    if route.answer is bytes:
        return web.Response(body=answer, status=route.status, content_type=api.RAW, headers=_SAID)
    return _respond(answer, route.status, accept)


def _respond(answer: Any, status: int, accept: str) -> web.Response:
    if api.MSGPACK in accept:
        return web.Response(body=msgspec.msgpack.encode(answer), status=status, content_type=api.MSGPACK, headers=_SAID)
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type=api.JSON, headers=_SAID)


@web.middleware
async def _speak_errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except FuncmqError as error:
        return _refuse(request, error, error.http)
    except web.HTTPException as error:
        return _refuse(request, _named(error, request), error.status, dict(_allow(error)))
    except Exception as broken:
        known = explain(broken)  # the database is away or full: the caller may try again
        if isinstance(known, FuncmqError):
            return _refuse(request, known, known.http)
        log.exception("%s %s failed", request.method, request.path, extra={"action": "request_failed"})
        said = f"The front door failed at {request.method} {request.path[:200]}."
        return _refuse(request, FuncmqError(said, hint="Its log says why; it may have been carried out or not."), 500)


def _tell(watch: Watch) -> Any:
    @web.middleware
    async def tell(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        began, status = time.perf_counter(), 499  # as nginx says of a caller who went away
        try:
            answer = await handler(request)
            status = answer.status
            return answer
        finally:
            resource = request.match_info.route.resource
            watch(request.method, "unknown" if resource is None else resource.canonical, status, time.perf_counter() - began)

    return tell


def _named(error: web.HTTPException, request: web.Request) -> FuncmqError:
    if error.status == 404:
        return NotFound(f"There is no {request.path[:200]} here.", hint="GET /openapi.json lists what there is; it begins with /v1.")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return InvalidRequest(
            f"{request.path[:200]} takes no {request.method}.", hint=f"It takes {', '.join(sorted(error.allowed_methods))}."
        )
    if error.status == 413:
        return _too_large(RAW_LIMIT)
    return InvalidRequest(error.reason)


def _allow(error: web.HTTPException) -> list[tuple[str, str]]:
    return [("Allow", error.headers["Allow"])] if "Allow" in error.headers else []


def _refuse(request: web.Request, error: FuncmqError, status: int, headers: dict[str, str] | None = None) -> web.Response:
    answer = _respond(api.ErrorAnswer(error=api.ErrorBody.of(error)), status, request.headers.get("Accept", ""))
    answer.headers.update(headers or {})
    if isinstance(error, Busy):
        answer.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, NotLoggedIn):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
