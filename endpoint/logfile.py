"""The daemon's log: where it is, that it does not grow for ever, and its end."""

from __future__ import annotations

import os
from pathlib import Path

MOST_LOG = 256 * 1024
LOG_LIMIT = 32 * 1024 * 1024
"""Bytes from which a log is put aside at the next start (one is kept, as `daemon.log.1`)."""


def log_file(run_dir: Path) -> Path:
    """The daemon's log."""
    return run_dir / "daemon.log"


def open_log(run_dir: Path) -> Path:
    """The log, private, there, and not longer than it should be."""
    path = log_file(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_name("daemon.log.1"))
    path.touch(mode=0o600)
    return path


def tail(path: Path, size: int) -> str:
    """The whole lines among the last `size` bytes of a file; '' if it cannot be read."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            data = file.read(size)
    except OSError:
        return ""
    if length > size and b"\n" in data:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
