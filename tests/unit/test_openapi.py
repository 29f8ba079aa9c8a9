"""Laws of `/openapi.json`: it is the interface that is served, no more and no less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from funcmq.broker import api
from funcmq.broker.errors import TABLE
from funcmq.forwarder.openapi import describe
from funcmq.forwarder.routes_root import PLAIN
from funcmq.forwarder.service import TABLES

DOCUMENT: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(describe(TABLES, PLAIN, "1.2.3")))
METHODS = {"get", "post", "put", "patch", "delete"}

CONTRACT = """
    POST /v1/functions · GET /v1/functions · GET /v1/functions/{id} · DELETE /v1/functions/{id} · PATCH /v1/functions/{id}
    POST /v1/tasks · GET /v1/tasks · GET /v1/tasks/{id} · POST /v1/tasks/query · POST /v1/tasks/cancel · GET /v1/tasks/{id}/result
    GET /v1/groups/{id} · POST /v1/groups/{id}/cancel
    POST /v1/sessions · POST /v1/sessions/{id}/groups
    GET /v1/amqp
    POST /v1/endpoints · GET /v1/endpoints · GET /v1/endpoints/{id} · PATCH /v1/endpoints/{id} · DELETE /v1/endpoints/{id}
    POST /v1/endpoints/{id}/lease
    GET /v1/me · POST /v1/login · GET /v1/users · POST /v1/users · DELETE /v1/users/{id} · GET /v1/dead · POST /v1/dead/{id}/reinject
    GET /v1/tokens · POST /v1/tokens · DELETE /v1/tokens/{id} · GET /v1/keys · POST /v1/keys · DELETE /v1/keys/{id}
    POST /v1/enrolments
    GET /health · GET /ready · GET /metrics · GET /openapi.json · GET /
"""
"""What users were promised; triggers and events follow."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, said in methods.items():
            yield method, path, said


def values(node: object, name: str) -> Iterator[Any]:
    """Everything under this name, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from values(value, name)


def test_everything_promised_is_described() -> None:
    """Every route of the contract stands in the document."""
    promised = {line.strip() for line in re.split(r"[·\n]", CONTRACT) if line.strip()}
    described = {f"{method.upper()} {path}" for method, path, _ in operations()}
    assert not promised - described, sorted(promised - described)


def test_every_route_that_is_served_is_described() -> None:
    """The tables and the document name the same routes."""
    served = {f"{route.method} /v1{route.path}" for routes in TABLES for route in routes}
    served |= {f"{root.method.upper()} {root.path}" for root in PLAIN}
    assert served == {f"{method.upper()} {path}" for method, path, _ in operations()}


def test_every_reference_leads_somewhere() -> None:
    """No `$ref` points out of the document or to what is not there, and every named schema is used."""
    wanted = set(values(DOCUMENT, "$ref"))
    for reference in wanted:
        node: Any = DOCUMENT
        assert reference.startswith("#/")
        for part in reference[2:].split("/"):
            node = node[part]
    unused = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]} - wanted
    assert not unused


def test_the_document_is_openapi_3_1() -> None:
    """What the specification requires of every operation: unique ids, described answers, declared path parameters, known security."""
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["title"]
    assert DOCUMENT["info"]["version"] == "1.2.3"
    ids = [said["operationId"] for _, _, said in operations()]
    assert len(ids) == len(set(ids))
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for method, path, said in operations():
        assert method in METHODS
        assert said["summary"]
        assert set(said["tags"]) <= tags
        assert {code for code in said["responses"] if not re.fullmatch(r"[1-5]\d\d", code)} == {"default"}
        declared = {(one["name"], one["in"]) for one in said.get("parameters", [])}
        assert {(name, "path") for name in re.findall(r"{(\w+)}", path)} == {one for one in declared if one[1] == "path"}
        for answer in said["responses"].values():
            assert answer.get("description") or answer.get("$ref")
        assert all(set(one) <= set(DOCUMENT["components"]["securitySchemes"]) for one in said["security"])


def test_bodies_are_declared_as_they_travel() -> None:
    """Exact bytes as their own media type; everything else as JSON and as msgpack, of the same schema."""
    routes = {(route.method.lower(), f"/v1{route.path}"): route for table in TABLES for route in table}
    for method, path, said in operations():
        route = routes.get((method, path))
        if route is None:
            continue
        content = said.get("requestBody", {}).get("content", {})
        assert (api.RAW in content) == (route.request is bytes)
        assert ({api.JSON, api.MSGPACK} <= content.keys()) == (route.plain is not None or route.request not in (None, bytes))
        assert content.get(api.JSON) == content.get(api.MSGPACK)


def test_errors_are_described_with_every_code() -> None:
    """The one error answer names each code that a request can end with."""
    said = DOCUMENT["components"]["responses"]["Error"]["description"]
    for code, cls in TABLE.items():
        assert (code in said) == (cls.http != 200), code
    assert all(operation["responses"]["default"] == {"$ref": "#/components/responses/Error"} for _, _, operation in operations())
