"""The data folder of a private fabric: what is where, and that one process at a time uses it.

| in the folder | what |
| --- | --- |
| `rabbitmq/` | the node |
| `funcmq.db` | the front door's database |
| `home/` | `FUNCMQ_HOME`: key, token, endpoint |
| `run/`, `journal/` | the daemon's |
| `logs/` | what `serve` and the daemon say |
| `port` | the front door's port, the same the next time if it is free |
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from funcmq.broker.errors import AlreadyRunning, InvalidRequest
from funcmq.dev.ports import LOOPBACK, free_ports


@dataclass(frozen=True, slots=True)
class Folder:
    """A data folder; `temporary` ones go with the stack."""

    path: Path
    temporary: bool

    @classmethod
    def open(cls, path: Path | None) -> Folder:
        """The folder at path, or a new temporary one; only its owner can look inside."""
        found = cls(path.absolute(), False) if path else cls(Path(tempfile.mkdtemp(prefix="funcmq-dev-")), True)
        try:
            for folder in (found.path, found.home, found.keys, found.run, found.journal, found.logs, found.rabbitmq):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as broken:
            raise InvalidRequest(f"The data folder {found.path} cannot be used: {broken}.", hint="Name another one with --data.") from None
        return found

    @property
    def rabbitmq(self) -> Path:
        """The node's folder."""
        return self.path / "rabbitmq"

    @property
    def database(self) -> Path:
        """The front door's SQLite file."""
        return self.path / "funcmq.db"

    @property
    def home(self) -> Path:
        """`FUNCMQ_HOME` of everything inside."""
        return self.path / "home"

    @property
    def keys(self) -> Path:
        """Signing keys."""
        return self.home / "keys"

    @property
    def key(self) -> Path:
        """The signing key of the person who uses the stack."""
        return self.keys / "dev.pem"

    @property
    def token(self) -> Path:
        """That person's token."""
        return self.home / "token"

    @property
    def run(self) -> Path:
        """The daemon's `run_dir`."""
        return self.path / "run"

    @property
    def journal(self) -> Path:
        """The daemon's `journal_dir`."""
        return self.path / "journal"

    @property
    def logs(self) -> Path:
        """What our own processes say."""
        return self.path / "logs"

    def endpoint_file(self, name: str) -> Path:
        """The endpoint's `endpoint.toml`."""
        return self.home / "endpoints" / name / "endpoint.toml"

    def lock(self) -> IO[str]:
        """Hold the folder until the file is closed, or its process is gone.

        :raises AlreadyRunning: another process holds it.
        """
        file = (self.path / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise AlreadyRunning(
                f"Another `funcmq dev` (pid {holder}) uses {self.path}.", hint="Stop it, or take another --data."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file

    def choose_port(self, wanted: int) -> int:
        """The port asked for, else the one of the last time, else a free one; it is remembered."""
        memory = self.path / "port"
        port = wanted
        if not port:
            text = memory.read_text().strip() if memory.exists() else ""
            port = int(text) if text.isdigit() and _is_free(int(text)) else free_ports(1)[0]
        memory.write_text(str(port))
        return port


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, in one step."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    part.replace(path)
