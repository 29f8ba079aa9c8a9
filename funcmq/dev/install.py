"""`python -m funcmq.dev.install`: RabbitMQ from the system's packages, if there is none; `make setup` calls it.

Only apt-get is driven; elsewhere it says the line to type.  Debian's package starts a broker of its own where systemd runs: that one is
switched off again, because funcmq starts a private one.  A RabbitMQ that was there before is left as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from funcmq.broker.errors import ConfigurationError
from funcmq.dev.rabbitmq import find_programs, install_command

PACKAGE = "rabbitmq-server"
UNIT = "rabbitmq-server.service"


def main() -> int:
    """The exit status: 0 when RabbitMQ is there."""
    if _is_there():
        return 0
    line = install_command()
    print(f"RabbitMQ is not installed here; installing it: {line}", flush=True)  # noqa: T201
    if _may_install() and _install() and _is_there():
        return 0
    print(f"Error: RabbitMQ is missing and could not be installed from here.\nInstall it: {line}", file=sys.stderr)  # noqa: T201
    return 1


def _is_there() -> bool:
    try:
        find_programs()
    except ConfigurationError:
        return False
    return True


def _may_install() -> bool:
    return shutil.which("apt-get") is not None and _as_root() is not None


def _as_root() -> list[str] | None:
    """What to put before a command that needs root; None where there is no way.  Without a terminal nobody can type a password."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    return ["sudo"] if sys.stdin.isatty() else ["sudo", "-n"]


def _install() -> bool:
    if not _get("install", "--no-install-recommends", PACKAGE):  # often only because the lists are old or missing
        return _get("update") and _get("install", "--no-install-recommends", PACKAGE) and _switch_off()
    return _switch_off()


def _get(*words: str) -> bool:
    return _run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", *words)


def _switch_off() -> bool:
    if Path("/run/systemd/system").exists():
        _run("systemctl", "disable", "--now", UNIT)
    return True


def _run(*argv: str) -> bool:
    return subprocess.run([*(_as_root() or []), *argv], check=False).returncode == 0  # noqa: S603  # our own words


if __name__ == "__main__":
    sys.exit(main())
