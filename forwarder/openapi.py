"""The interface described by the declarations that serve it: OpenAPI 3.1, made from the tables of routes and the types of their bodies.

What is checked at the door is what stands here: there is no second description that could be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from funcmq.broker import api
from funcmq.broker.errors import TABLE, TaskError
from funcmq.forwarder.web import Route, Routes, Who

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_ERROR = {"$ref": "#/components/responses/Error"}
_INTRODUCTION = """Run Python functions far away, over plain HTTP.  Bodies are JSON or msgpack, by `Content-Type` and `Accept`; a bundle
and a function record are exact bytes (`application/vnd.funcmq`).  Ids are hex, times are milliseconds since the epoch.  Every error is
`{"error": {"code", "message", "hint", "details"}}`; 503 means that the outcome is unknown: send the same again.  Fields that are not
described may appear: ignore them."""
_BEARER = "A bearer token: one of `funcmq login`, `funcmq token create` or `endpoint init`."


@dataclass(frozen=True, slots=True)
class Plain:
    """A route at the root, outside the tables: what it answers, and whether a token may be needed."""

    path: str
    says: str
    content: str
    token: bool = False
    method: str = "get"


def describe(tables: Sequence[Routes], roots: Sequence[Plain], release: str) -> Json:
    """The OpenAPI document of these routes."""
    routes = [route for table in tables for route in table]
    schemas, components = _schemas(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(f"/v1{route.path}", {})[route.method.lower()] = _operation(route, schemas)
    for root in roots:
        paths.setdefault(root.path, {})[root.method] = _root(root)
    return {
        "openapi": "3.1.0",
        "info": {"title": "funcmq", "version": release, "description": _INTRODUCTION, "license": {"name": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted({_tag(route) for route in routes} | {"front door"})],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": _error_answer()},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": _BEARER},
            },
        },
    }


def _schemas(routes: Sequence[Route]) -> tuple[dict[Any, Json], Json]:
    """The schema of every body, by its type, and the named ones."""
    kinds = [api.ErrorAnswer]
    for route in routes:
        kinds += [kind for kind in (route.request, route.plain, route.answer) if kind not in (None, bytes) and kind not in kinds]
    found, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    return dict(zip(kinds, found, strict=True)), components


def _operation(route: Route, schemas: dict[Any, Json]) -> Json:
    text = " ".join((route.handler.__doc__ or "").split())
    said: Json = {
        "operationId": f"{route.handler.__module__.rpartition('.')[2].removeprefix('routes_')}_{route.handler.__name__}",
        "summary": text.partition(".  ")[0].partition(": ")[0].rstrip("."),
        "description": text,
        "tags": [_tag(route)],
        "responses": {str(route.status): _answer(route, schemas), "default": _ERROR},
    }
    if parameters := [*_path_parameters(route.path), *_query_parameters(route.query)]:
        said["parameters"] = parameters
    if route.request is not None:
        said["requestBody"] = {"required": True, "content": _content(route.request, schemas) | _content(route.plain, schemas)}
    said["security"] = _security(route.who)
    return said


def _tag(route: Route) -> str:
    return route.path.split("/")[1]


def _path_parameters(path: str) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(kind: Any) -> Iterator[Json]:
    if kind is None:
        return
    _, components = msgspec.json.schema_components([kind], ref_template=_REF)
    body = components[kind.__name__]
    for name, schema in body["properties"].items():
        yield {"name": name, "in": "query", "required": name in body.get("required", []), "schema": schema}


def _content(kind: Any, schemas: dict[Any, Json]) -> Json:
    if kind is None:
        return {}
    if kind is bytes:
        return {api.RAW: {"schema": {"type": "string", "contentMediaType": api.RAW, "description": "Exact bytes."}}}
    return {media: {"schema": schemas[kind]} for media in (api.JSON, api.MSGPACK)}


def _answer(route: Route, schemas: dict[Any, Json]) -> Json:
    if route.answer is None:
        return {"description": "Done."}
    return {"description": "The answer.", "content": _content(route.answer, schemas)}


def _security(who: Who) -> list[Json]:
    if who is Who.NOBODY:
        return []
    return [{}, {"token": []}] if Who.ANYBODY in who else [{"token": []}]


def _error_answer() -> Json:
    statuses: dict[int, list[str]] = {}
    for code, cls in TABLE.items():
        if not issubclass(cls, TaskError):
            statuses.setdefault(cls.http, []).append(code)
    told = "; ".join(f"{status}: {', '.join(codes)}" for status, codes in sorted(statuses.items()))
    content = {media: {"schema": {"$ref": _REF.format(name="ErrorAnswer")}} for media in (api.JSON, api.MSGPACK)}
    after = {"description": "Seconds to wait (503 Busy).", "schema": {"type": "integer"}}
    return {"description": f"An error, with a code of the table ({told}).", "content": content, "headers": {"Retry-After": after}}


def _root(root: Plain) -> Json:
    word = re.sub(r"\W+", "_", root.path).strip("_") or "page"
    return {
        "operationId": f"{root.method}_{word}",
        "summary": root.says.rstrip("."),
        "tags": ["front door"],
        "security": [{}, {"token": []}] if root.token else [],
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {root.content: {"schema": {"type": "string" if "text" in root.content else "object"}}},
            },
            "default": _ERROR,
        },
    }
