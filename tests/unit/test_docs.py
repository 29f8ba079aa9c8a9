"""The pages speak of what there is."""

from __future__ import annotations

import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from funcmq.broker.errors import TABLE
from funcmq.cli import cli
from funcmq.client.options import OnOptions
from tests.documents import PAGES, ROOT, blocks, typed

WORD = re.compile(r"[a-z][a-z-]*")


def _commands(page: Path) -> Iterator[list[str]]:
    """Everything that begins with `funcmq`, in console blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [line.command for block in blocks(page) if block.kind == "console" for line in typed(block.text)]
    for command in [*lines, *re.findall(r"`(funcmq [^`]+)`", text)]:
        for part in re.split(r" \| | && ", command):
            words = shlex.split(part.replace("…", ""))
            if words[:1] == ["funcmq"]:
                yield words[1:]


def _check(words: list[str]) -> None:
    """The command and its options exist; what is in capitals is to be filled in."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and WORD.fullmatch(words[0]):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"there is no {words[0]!r}"
        command, words = found, words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words[: words.index("--")] if "--" in words else words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options | {"--help", "-h"}, f"{command.name} has no {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    """Every `funcmq` command that a page shows exists, with its options."""
    for words in _commands(page):
        try:
            _check(list(words))
        except AssertionError as wrong:
            raise AssertionError(f"{page.relative_to(ROOT)}: funcmq {' '.join(words)}: {wrong}") from None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    """Every `make` target that a page shows exists and is in `make help`."""
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = {
        word for line in re.findall(r"^\$ make (.*)$|`make ([^`]*)`", text, re.MULTILINE) for word in " ".join(line).split("#")[0].split()
    }
    assert {word for word in named if WORD.fullmatch(word)} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_errors_exist(page: Path) -> None:
    """Whatever a page calls an error is one."""
    words = re.findall(
        r"`((?:Task|Worker|Walltime|Version|Storage|Not|Environment|Already|Payload)[A-Z]\w+)`", page.read_text(encoding="utf-8")
    )
    assert set(words) - {"TaskFuture"} <= set(TABLE)


def test_options_are_described() -> None:
    """The table of options has every option of `on()`, and no other."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    section = text.partition("## Options of")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {"endpoint", *typing.get_type_hints(OnOptions)}
