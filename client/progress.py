"""A progress bar on stderr for a person who waits; plain lines where stderr is not a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

EVERY_S = 2.0
"""Between two plain lines."""


class Meter(Protocol):
    """Shows how far something is."""

    def show(self, done: int, failed: int, reason: str) -> None:
        """`reason`: in one sentence, what is waited for."""


class _Silent:
    def show(self, done: int, failed: int, reason: str) -> None:
        pass


class _Lines:
    def __init__(self, label: str, total: int | None) -> None:
        self._label, self._of, self._total = label, f" of {total:,}" if total is not None else "", total
        self._begun = self._said = time.monotonic()

    def show(self, done: int, failed: int, reason: str) -> None:
        now = time.monotonic()
        if now - self._said < EVERY_S and done != self._total:
            return
        self._said = now
        bad = f", {failed:,} failed" if failed else ""
        why = f" ({reason})" if reason else ""
        print(f"{self._label}: {done:,}{self._of} done{bad}, {now - self._begun:.0f} s{why}", file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def meter(label: str, total: int | None, *, wanted: bool) -> Iterator[Meter]:
    """A meter for as long as the context lasts; a silent one where none is wanted."""
    if not wanted:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(label, total)
    else:
        with _bar(label, total) as bar:
            yield bar


@contextlib.contextmanager
def _bar(label: str, total: int | None) -> Iterator[Meter]:
    from rich.console import Console  # noqa: PLC0415  rich takes longer to import than everything else here
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    note = TextColumn("[dim]{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total, note="")

        class Bar:
            def show(self, done: int, failed: int, reason: str) -> None:
                note = (f"{failed:,} failed  " if failed else "") + reason
                progress.update(task, completed=done, note=note)

        yield Bar()
