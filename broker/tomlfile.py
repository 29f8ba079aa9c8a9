"""TOML files that people write: every mistake in one is told with file, line and key, and a misspelt key with the right one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from funcmq.broker.errors import ConfigurationError

_TABLE = re.compile(r"\s*\[+\s*(?P<name>[^\]]+?)\s*\]+")
_KEY = re.compile(r"\s*(?P<name>[^=#\[]+?)\s*=")


def parse(text: str, path: Path, hint: str = "Correct it.") -> dict[str, Any]:
    """The tables in a text; `path` is for messages.

    :raises ConfigurationError: it is not TOML; the message says where it stops being it.
    """
    import tomllib  # noqa: PLC0415  --help of commands that read no file does without

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as broken:
        said = str(broken).replace("at end of document", f"at its end, line {max(1, len(text.splitlines()))}")
        raise ConfigurationError(f"{path} is not TOML: {said}.", hint=hint) from None


def read(path: Path, hint: str = "Correct it.") -> tuple[dict[str, Any], str]:
    """The tables in a file, and its text.  FileNotFoundError is the caller's.

    :raises ConfigurationError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as broken:
        raise ConfigurationError(f"{path} cannot be read: {broken}.", hint=hint) from None
    return parse(text, path, hint), text


def line_of(text: str, key: str) -> int:
    """The line of a dotted key, or of the table that it names, or of the nearest table around it; 0 where there is none."""
    wanted, here, best, nearest = _parts(key), [], 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        if table := _TABLE.match(line):
            here = _parts(table["name"])
            if here == wanted:
                return number
        elif assigned := _KEY.match(line):
            if here + _parts(assigned["name"]) == wanted:
                return number
            continue
        if here and here == wanted[: len(here)] and len(here) > nearest:
            best, nearest = number, len(here)
    return best


def _parts(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]


def place(path: Path, text: str, key: str) -> str:
    """File, and line where it is known: the beginning of a message."""
    line = line_of(text, key)
    return f"{path}, line {line}" if line else str(path)


def unknown(path: Path, text: str, key: str, known: Iterable[str]) -> NoReturn:
    """Refuse a key, with the one that was probably meant.

    :raises ConfigurationError: always.
    """
    import difflib  # noqa: PLC0415  only for mistakes

    names = sorted(known)
    near = difflib.get_close_matches(_parts(key)[-1], names, 1, 0.5)
    meant = f"Did you mean {near[0]}?  " if near else ""
    raise ConfigurationError(f"{place(path, text, key)}: {key} is not known.", hint=f"{meant}Allowed here: {', '.join(names)}.")
