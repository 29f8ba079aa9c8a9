"""Parts of pages that are made from the code: the error table, every command's help, the HTTP interface.

They are written into `docs/generated/`, which is not kept, and included by the page that introduces them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from funcmq.broker.errors import TABLE, FuncmqError, TaskError
from funcmq.cli import cli
from funcmq.forwarder import settings as forwarder_settings
from funcmq.forwarder.openapi import describe
from funcmq.forwarder.routes_root import PLAIN
from funcmq.forwarder.service import TABLES

WIDTH = 100
METHODS = ("get", "post", "put", "patch", "delete")

Json = dict[str, Any]


def write(folder: Path) -> None:
    """Write all parts; one that has not changed keeps its time, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    for name, text in (("errors.md", errors()), ("commands.md", commands()), ("http.md", http()), ("settings.md", settings())):
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# -- errors -----------------------------------------------------------------------------------------------------------------


def errors() -> str:
    """Two tables: what a request or a command can meet, and how a task can end."""
    ends = [cls for cls in TABLE.values() if issubclass(cls, TaskError)]
    others = [cls for cls in TABLE.values() if not issubclass(cls, TaskError)]
    return "\n".join(
        [
            "## Requests and commands\n",
            *_table(
                ("error", "what happened", "what to do", "HTTP", "exit"), [(*_words(cls), str(cls.http), str(cls.exit)) for cls in others]
            ),
            "\n## Ends of a task\n",
            *_table(("error", "what happened", "what to do"), [_words(cls) for cls in ends]),
            "",
        ]
    )


def _words(cls: type[FuncmqError]) -> tuple[str, str, str]:
    return f"`{cls.__name__}`", (cls.__doc__ or "").partition("\n")[0], cls.hint or "–"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    for row in (head, tuple("---" for _ in head), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


# -- commands ---------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """The help of every command, as the command itself says it."""
    return "\n".join(part for command, path in _walk(cli, ("funcmq",)) for part in _help(command, path))


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[click.Command, tuple[str, ...]]]:
    yield command, path
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _walk(found, (*path, name))


def _help(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(command, info_name=" ".join(path), terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"{'##' if len(path) <= 2 else '###'} {' '.join(path)}\n"
    yield f"```text\n{command.get_help(context)}\n```\n"


# -- settings ---------------------------------------------------------------------------------------------------------------


def settings() -> str:
    """What the module that reads them says of them."""
    said = (forwarder_settings.__doc__ or "").partition("\n\n")[2]
    return f"```text\n{said.strip()}\n```\n"


# -- HTTP -------------------------------------------------------------------------------------------------------------------


def http() -> str:
    """Every route with what it takes and answers, then the fields of the bodies; from the same declarations as `/openapi.json`."""
    said = describe(TABLES, PLAIN, version("funcmq"))
    parts = ["## Routes\n"]
    for tag in [each["name"] for each in said["tags"]]:
        parts.append(f"### {tag}\n")
        parts += [text for path, operations in said["paths"].items() for text in _operations(path, operations, tag)]
    parts.append("## Bodies\n")
    parts += [text for name, schema in sorted(said["components"]["schemas"].items()) for text in _schema(name, schema)]
    return "\n".join(parts)


def _operations(path: str, operations: Json, tag: str) -> Iterator[str]:
    for method in METHODS:
        said = operations.get(method)
        if said is not None and tag in said["tags"]:
            yield f"`{method.upper()} {path}`"
            text, *raises = re.split(r":raises (\w+): *", " ".join((said.get("description") or said["summary"]).split()))
            yield f": {text.strip()}\n"
            yield from (f"  `{code}`: {why.strip()}\n" for code, why in zip(raises[::2], raises[1::2], strict=True))
            yield from (f"  {line}\n" for line in _details(said))


def _details(said: Json) -> Iterator[str]:
    if query := [each["name"] for each in said.get("parameters", ()) if each["in"] == "query"]:
        yield "Query: " + ", ".join(f"`{name}`" for name in query)
    if body := said.get("requestBody"):
        yield f"Takes {_content(body['content'])}."
    for status, answer in said["responses"].items():
        if status != "default" and (content := answer.get("content")):
            yield f"Answers {status} with {_content(content)}."


def _content(content: Json) -> str:
    """The bodies, each once: JSON and msgpack are the same."""
    return " or ".join(dict.fromkeys(_kind(each["schema"]) for each in content.values()))


def _kind(schema: Json) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "enum" in schema:
        return " or ".join(f'`"{each}"`' for each in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"a list of {' and '.join(map(_kind, schema.get('prefixItems') or [schema.get('items', {})]))}"
    if media := schema.get("contentMediaType"):
        return f"exact bytes (`{media}`)"
    return str(schema.get("type", "anything"))


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}\n"
    if text := schema.get("description"):
        yield " ".join(text.split()) + "\n"
    required = schema.get("required", ())
    rows = [(f"`{field}`", _kind(each), "yes" if field in required else "") for field, each in schema.get("properties", {}).items()]
    if rows:
        yield from _table(("field", "what", "required"), rows)
        yield ""
