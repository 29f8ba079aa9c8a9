"""`funcmq run MODULE:FUNC|FILE.py:FUNC ARGS…`."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.client.output import common, say
from funcmq.client.task_commands import print_value, said_aloud


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target", metavar="MODULE:FUNC|FILE.py:FUNC")
@click.argument("arguments", metavar="ARGS…", nargs=-1, type=click.UNPROCESSED)
@click.option("--endpoint", default=None, metavar="NAME", help="Where; the configured one by default.")
@common
def run(target: str, arguments: tuple[str, ...], endpoint: str | None, output: str, profile: str | None) -> None:
    """Run a function far away and print its result.

    Arguments are JSON if they parse, else text; k=v are keywords.
    """
    from funcmq.client.client import Client  # noqa: PLC0415  --help imports no aiohttp

    fn = load(target)
    args, kwargs = parse(arguments)

    async def call() -> Any:
        async with Client(endpoint, profile=profile) as fx:
            future = fx.submit(fn, *args, **kwargs)
            try:
                return await said_aloud(future)
            except asyncio.CancelledError:
                say(f"The task goes on: funcmq task wait {future.id}")
                raise
            finally:
                for text in (future.stdout, future.stderr):
                    if text:
                        click.echo(text.rstrip("\n"), err=True)

    print_value(asyncio.run(call()), output)


def load(target: str) -> Callable[..., Any]:
    """The function that is meant; modules are looked for in the current folder too, as `python -m` does.

    :raises InvalidRequest: this names no function.
    :raises NotFound: there is no such file, module or function.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise InvalidRequest(f"{target!r} names no function.", hint="Give it as MODULE:FUNC or as FILE.py:FUNC.")
    found: Any = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise NotFound(f"There is no function {name!r} in {where}.", hint="Check the name; it stands after the last colon.")
    return found  # type: ignore[no-any-return]


def _import(module: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise NotFound(f"Cannot import {module}: {missing}.", hint="Run it from the folder of the module, or install it.") from None


def _load_file(path: Path) -> Any:
    """Run a file as a module of its own name, with its folder on the path, as `python FILE.py` would."""
    if not path.is_file():
        raise NotFound(f"There is no file {path}.", hint="Check the path.")
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise InvalidRequest(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def parse(arguments: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and keywords, from the words of a command line.

    :raises InvalidRequest: a keyword is given twice.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            if name in kwargs:
                raise InvalidRequest(f"The argument {name} is given twice.", hint="Give it once, as in `x=1`.")
            kwargs[name] = _value(value)
        else:
            args.append(_value(word))
    return args, kwargs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
