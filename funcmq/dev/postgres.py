"""A private PostgreSQL server: own folder, own port of the loopback address, a random password, and gone with its owner.

It is durable (fsync stays on), so that a killed one comes back with all that was committed.  PostgreSQL refuses to run as root: a root
owner's server runs as the user `postgres`, or `nobody` where there is none, to whom its folder then belongs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import asyncpg

from funcmq.broker.errors import ConfigurationError, Unreachable
from funcmq.dev.guard import Command, Job, as_user
from funcmq.dev.ports import LOOPBACK, free_ports
from funcmq.dev.process import tail
from funcmq.dev.rabbitmq import Guardian

USER = "funcmq"
START_S = 60.0
CONNECT_S = 10.0

_FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # the project's own packages for Fedora and its kin
    "/usr/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/usr/local/bin",
)
_INSTALLERS = (
    ("apt-get", "sudo apt-get install --no-install-recommends postgresql"),
    ("dnf", "sudo dnf install postgresql-server"),
    ("zypper", "sudo zypper install postgresql-server"),
    ("pacman", "sudo pacman -S postgresql"),
    ("brew", "brew install postgresql"),
)
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "logging_collector": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "autovacuum_naptime": "15s",
    "fsync": "on",
}


def install_command(path: str | None = None) -> str:
    """The line that installs PostgreSQL on this system; `path` is searched instead of PATH."""
    for program, line in _INSTALLERS:
        if shutil.which(program, path=path):
            return line
    return "see https://www.postgresql.org/download/"


def find_programs(folders: Iterable[str] = _FOLDERS, path: str | None = None) -> Path:
    """The folder of `postgres` and `initdb`, of the newest release there is; `FUNCMQ_POSTGRES_BIN` is looked at first.

    :raises ConfigurationError: there is none; the hint is the install command for this system.
    """
    own, found = os.environ.get("FUNCMQ_POSTGRES_BIN", ""), shutil.which("postgres", path=path)
    wanted = [Path(own)] if own else []
    for pattern in folders:
        wanted += sorted(Path("/").glob(pattern.lstrip("/")), key=_release, reverse=True)
    wanted += [Path(found).parent] if found else []
    for folder in wanted:
        if (folder / "postgres").exists() and (folder / "initdb").exists():
            return folder
    raise ConfigurationError("PostgreSQL is not installed here.", hint=f"Install it: {install_command(path)}")


def _release(folder: Path) -> int:
    digits = "".join(letter for letter in folder.parent.name if letter.isdigit())
    return int(digits or 0)


def server_user() -> str:
    """As whom the server runs; '' is as this process."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ConfigurationError("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`.", hint="Run it as yourself.")


class PostgresNode:
    """See the module.  `async with PostgresNode() as node:`, or `start` and `stop`, any number of times.

    :param folder: kept between starts, with all databases; None is a temporary one.  The server's user must be able to reach it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._temporary = folder, folder is None
        self.port = free_ports(1)[0]
        self.password = ""
        """Known once started."""
        self._guardian: Guardian | None = None

    async def __aenter__(self) -> PostgresNode:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        assert self._folder is not None, "the server is not started"
        return self._folder

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "postgres.log"

    def url(self, database: str = "postgres") -> str:
        """The URL of a database with the owner's credentials: for an environment variable, never for a command line."""
        return f"postgresql://{USER}:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    async def start(self) -> None:
        """Return when it takes connections.

        :raises ConfigurationError: PostgreSQL is not installed, or does not start; the message has the tail of its log.
        """
        programs, user = find_programs(), server_user()
        await self._prepare(programs, user)
        settings = [f"--{name}={value}" for name, value in (_SETTINGS | {"port": str(self.port)}).items()]
        command = Command(
            "postgres",
            [str(programs / "postgres"), "-D", str(self.folder / "data"), *settings],
            _environment(),
            str(self.log),
            ready_text="database system is ready to accept connections",
            grace=10,
            end_signal=signal.SIGQUIT if self._temporary else signal.SIGINT,  # SIGTERM would wait for every client
            user=user,
        )
        self.log.unlink(missing_ok=True)
        self._guardian = await Guardian.start(Job([command], str(self.folder) if self._temporary else ""))
        said = await self._first_word()
        if said != "ready":
            text = tail(self.log)
            await self.stop()
            raise ConfigurationError(f"PostgreSQL does not start ({said}).\n{text}", hint=f"Its folder: {self.folder}")

    async def stop(self) -> None:
        """Return when nothing of it runs, and its folder is gone if it was temporary.  Doing it twice is harmless."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            await guardian.stop()
            if self._temporary:
                shutil.rmtree(self.folder, ignore_errors=True)

    async def kill(self) -> None:
        """End it as a crash would: connections are lost, what was committed is not; `start` has it again, at the same port.

        Meant for a node whose folder is kept.
        """
        assert self._guardian is not None, "the server is not started"
        os.kill(int((self.folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        guardian, self._guardian = self._guardian, None
        while await guardian.hear():
            pass
        await guardian.stop()

    async def create(self, name: str, template: str = "template1") -> str:
        """The URL of a new database, a copy of template, which nobody may be connected to."""
        await self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    async def drop(self, name: str) -> None:
        """Remove a database; whoever is connected to it is cut off."""
        await self._run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def died(self) -> NoReturn:
        """Wait until the server ends by itself, then raise Unreachable with the tail of its log."""
        assert self._guardian is not None, "the server is not started"
        said = await self._guardian.hear()
        raise Unreachable(
            f"The private PostgreSQL server ended ({said or 'its guardian was killed'}).\n{tail(self.log)}", hint="Start again."
        )

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url(), timeout=CONNECT_S)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _first_word(self) -> str:
        assert self._guardian is not None
        try:
            async with asyncio.timeout(START_S):
                return await self._guardian.hear() or "its guardian ended"
        except TimeoutError:
            return f"not ready after {START_S:g} s"

    async def _prepare(self, programs: Path, user: str) -> None:
        """Make the folder and the cluster in it, unless they are there."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="funcmq-postgres-"))
        secret = self._folder / "password"
        if secret.exists():
            self.password = secret.read_text()
            return
        self.password = secrets.token_urlsafe(24)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(self._folder / "password.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.password)
        if user:
            for path in (self._folder, self._folder / "password.part"):
                shutil.chown(path, user)
        try:
            await self._make_cluster(programs, user)
        except ConfigurationError:
            if self._temporary:
                shutil.rmtree(self._folder, ignore_errors=True)
            raise
        (self._folder / "password.part").replace(secret)

    async def _make_cluster(self, programs: Path, user: str) -> None:
        options = ("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
        password = f"--pwfile={self.folder / 'password.part'}"
        process = await asyncio.create_subprocess_exec(
            *(str(programs / "initdb"), "-D", str(self.folder / "data"), "-U", USER, password, *options),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
            cwd=self.folder,
            **as_user(user),
        )
        said, _ = await process.communicate()
        if process.returncode:
            raise ConfigurationError(f"PostgreSQL cannot make {self.folder}: {said.decode(errors='replace').strip()}")


def _environment() -> dict[str, str]:
    """The caller's, without what would lead PostgreSQL to a system's own server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
