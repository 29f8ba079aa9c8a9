"""Fenced blocks of Markdown pages, as a reader would type them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "deploy").glob("*/README.md")),
]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"[$#] ")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `kind` is the word behind the fence."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line typed at a prompt, and what the page says comes back."""

    command: str
    output: str


def blocks(page: Path) -> list[Block]:
    """All of a page, in order."""
    return [Block(kind, text) for kind, text in _FENCE.findall(page.read_text(encoding="utf-8"))]


def typed(text: str) -> Iterator[Line]:
    """The lines of a console block, without the comments behind them."""
    command, output = "", []
    for line in text.splitlines():
        if _PROMPT.match(line):
            if command:
                yield Line(command, "\n".join(output))
            command, output = line[2:].partition("  #")[0].strip(), []
        else:
            output.append(line)
    if command:
        yield Line(command, "\n".join(output))


def normal(text: str, host: str) -> str:
    """Without what differs from run to run: ids, times, the host and figures beside it, the width of columns."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
    text = re.sub(r"\b\d+(\.\d+)? ?(ms|s|min|h|d)\b( ago)?", "TIME", text)
    text = text.replace(host, "HOST")
    lines = [" ".join(line.split()) for line in text.strip().splitlines()]
    return "\n".join(re.sub(r"\b\d+\b", "N", line) if "HOST " in line and "NAME" not in line else line for line in lines)
