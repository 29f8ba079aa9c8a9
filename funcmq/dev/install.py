"""`python -m funcmq.dev.install [rabbitmq] [postgresql]`: from the system's packages, where they are missing; the Makefile calls it.

Only apt-get is driven; elsewhere it says the line to type.  Debian's packages start a broker and a database of their own where systemd
runs (and the database wherever an init script may): those are switched off again, because funcmq starts private ones.  What was there
before is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from funcmq.broker.errors import ConfigurationError
from funcmq.dev import postgres, rabbitmq


@dataclass(frozen=True, slots=True)
class Server:
    """Something to install: how to find it, the line for a person, Debian's package, and the systemd unit that this starts."""

    name: str
    find: Callable[[], object]
    line: Callable[[], str]
    package: str
    unit: str

    def is_there(self) -> bool:
        """Whether it is installed."""
        try:
            self.find()
        except ConfigurationError:
            return False
        return True


SERVERS = (
    Server("RabbitMQ", rabbitmq.find_programs, rabbitmq.install_command, "rabbitmq-server", "rabbitmq-server.service"),
    Server("PostgreSQL", postgres.find_programs, postgres.install_command, "postgresql", "postgresql.service"),
)


def main() -> int:
    """The exit status: 0 when those named in the arguments, or all, are there."""
    wanted = {name.lower() for name in sys.argv[1:]}
    return max(_provide(server) for server in SERVERS if not wanted or server.name.lower() in wanted)


def _provide(server: Server) -> int:
    if server.is_there():
        return 0
    line = server.line()
    print(f"{server.name} is not installed here; installing it: {line}", flush=True)  # noqa: T201
    if _may_install() and _install(server) and server.is_there():
        return 0
    print(f"Error: {server.name} is missing and could not be installed from here.\nInstall it: {line}", file=sys.stderr)  # noqa: T201
    return 1


def _may_install() -> bool:
    return shutil.which("apt-get") is not None and _as_root() is not None


def _as_root() -> list[str] | None:
    """What to put before a command that needs root; None where there is no way.  Without a terminal nobody can type a password."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    return ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]


def _install(server: Server) -> bool:
    if not _get("install", "--no-install-recommends", server.package):  # often only because the lists are old or missing
        return _get("update") and _get("install", "--no-install-recommends", server.package) and _switch_off(server)
    return _switch_off(server)


def _get(*words: str) -> bool:
    return _run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", *words)


def _switch_off(server: Server) -> bool:
    """Nothing of the system's own is left running: the unit, and what Debian's script of PostgreSQL started without systemd."""
    if Path("/run/systemd/system").exists():
        _run("systemctl", "disable", "--now", server.unit)
    elif server.unit == "postgresql.service" and Path("/etc/init.d/postgresql").exists():
        _run("/etc/init.d/postgresql", "stop")
    return True


def _run(*argv: str) -> bool:
    return subprocess.run([*(_as_root() or []), *argv], check=False).returncode == 0  # noqa: S603  # our own words


if __name__ == "__main__":
    sys.exit(main())
