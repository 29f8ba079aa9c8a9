"""Daemons of this host as processes: run here, detached, found by the lock on their journal."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from funcmq.broker.errors import FuncmqError
from funcmq.endpoint.config import EndpointConfig
from funcmq.endpoint.logfile import log_file, open_log

T = TypeVar("T")

START_S = 60.0
"""How long `start` waits for the daemon to be connected."""
LOOK_S = 0.05
_M_ARENA_MAX = -8
TAIL = 2000
"""Bytes of the log that tell why it did not start."""


def serve(config: EndpointConfig, *, takeover: bool) -> int:
    """Run the daemon here, to its end; its exit status."""
    from funcmq.endpoint.daemon import Daemon  # noqa: PLC0415 (heavy, and only needed here)

    _spare_memory()
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=os.environ.get("FUNCMQ_LOG", "INFO"), handlers=_handlers(config)
    )
    logging.getLogger("parsl").setLevel(logging.WARNING)
    return run(Daemon(config, takeover=takeover).run())


def _handlers(config: EndpointConfig) -> list[logging.Handler]:
    """Stderr, and the log in run_dir where stderr is not that already."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    with contextlib.suppress(OSError):  # what is wrong with run_dir is said by the daemon itself
        path = open_log(config.run_dir)
        if not os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat()):
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
    return handlers


def _spare_memory() -> None:
    """Have glibc keep one heap for all threads: with one for each, what a burst needed stays taken in all of them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on the fastest loop there is; an error out of a task group comes as itself."""
    from funcmq.broker import loop  # noqa: PLC0415 (asyncio is slow to import)

    try:
        return loop.run(work)
    except BaseExceptionGroup as group:
        if found := group.subgroup(FuncmqError):
            raise _first(found) from None
        raise


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _file(config: EndpointConfig) -> Path:
    """Where a daemon says of itself what `start` and `status` on its host want to know."""
    return config.journal_dir / "state.json"


def detach(config: EndpointConfig, *, takeover: bool) -> int:
    """Start the daemon in a session of its own, and wait until it is connected.

    :raises FuncmqError: it has ended; its last words are the message.
    """
    path = open_log(config.run_dir)
    _file(config).unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "funcmq.endpoint", config.name, *(["--takeover"] if takeover else [])]
    with path.open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    deadline = time.monotonic() + START_S
    said: dict[str, Any] = {}
    while time.monotonic() < deadline:
        said = state(config)
        if said.get("pid") == process.pid and said.get("state") == "connected":
            process.returncode = 0  # it goes on without us
            return process.pid
        if process.poll() is not None:
            raise _ended(config, process.returncode, begin)
        time.sleep(LOOK_S)
    process.returncode = 0
    why = said.get("reason") or said.get("state", "starting")
    raise FuncmqError(
        f"The endpoint {config.name} (pid {process.pid}) is not connected after {START_S:g} s: {why}",
        hint=f"It goes on trying; see {path}.",
    )


def _ended(config: EndpointConfig, status: int, begin: int) -> FuncmqError:
    log = log_file(config.run_dir)
    with log.open("rb") as file:
        file.seek(begin)
        tail = file.read()[-TAIL:].decode(errors="replace").strip()
    error = FuncmqError(f"The endpoint {config.name} did not start (status {status}):\n{tail}", hint=f"Its log: {log}")
    error.exit = status if status > 0 else 6  # type: ignore[misc]
    return error


def state(config: EndpointConfig) -> dict[str, Any]:
    """What a daemon on this host last said of itself."""
    try:
        said: dict[str, Any] = json.loads(_file(config).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said


def running(config: EndpointConfig) -> int | None:
    """Pid of the daemon that holds the journal on this host; the lock tells, not a file that a killed one left."""
    try:
        lock = os.open(config.journal_dir / "lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        words = os.pread(lock, 100, 0).decode(errors="replace").split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    finally:
        os.close(lock)
    return None
