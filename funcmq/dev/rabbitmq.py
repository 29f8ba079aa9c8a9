"""A private RabbitMQ node: own folder, own cookie, own ports, own epmd, all on the loopback address, and gone with its owner.

It is set up as a facility's broker is (deploy/rabbitmq; a test compares both), except that its one internal user gets a random password,
and that the addresses are private. RabbitMQ asks `auth_port` of this host about everybody else (`rabbitmq_auth_backend_http`), where the
front door answers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from funcmq.broker.connection import Broker
from funcmq.broker.errors import ConfigurationError, Unreachable
from funcmq.dev.guard import Command, Job
from funcmq.dev.ports import LOOPBACK, free_ports
from funcmq.dev.process import tail

USER = "funcmq"
START_S = 60.0
STOP_S = 15.0

QUESTIONS = ("user", "vhost", "resource", "topic")
"""What RabbitMQ asks: `POST /broker/{…}` of the private listener."""
PLUGINS = ("rabbitmq_auth_backend_http", "rabbitmq_management")

_FOLDERS = (
    "/usr/lib/rabbitmq/bin",  # Debian, Fedora: not the wrapper in /usr/sbin, which insists on root or the user rabbitmq
    "/opt/rabbitmq/sbin",  # the official container image
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
_INSTALLERS = (
    ("apt-get", "sudo apt-get install --no-install-recommends rabbitmq-server"),
    ("dnf", "sudo dnf install rabbitmq-server"),
    ("zypper", "sudo zypper install rabbitmq-server"),
    ("pacman", "sudo pacman -S rabbitmq"),
    ("brew", "brew install rabbitmq"),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs that make a node."""

    server: Path
    epmd: Path


def install_command(path: str | None = None) -> str:
    """The line that installs RabbitMQ on this system; `path` is searched instead of PATH."""
    for program, line in _INSTALLERS:
        if shutil.which(program, path=path):
            return line
    return "see https://www.rabbitmq.com/docs/download"


def find_programs(folders: Iterable[str] = _FOLDERS, path: str | None = None) -> Programs:
    """Where RabbitMQ and Erlang's epmd are; the folder in `FUNCMQ_RABBITMQ_BIN` is looked at first.

    :raises ConfigurationError: one of them is missing; the hint is the install command for this system.
    """
    wanted = [os.environ.get("FUNCMQ_RABBITMQ_BIN", ""), *folders]
    server = next((found for folder in wanted if folder and (found := Path(folder, "rabbitmq-server")).exists()), None)
    epmd = _find_epmd(path)
    if server is None or epmd is None:
        missing = "rabbitmq-server" if server is None else "epmd (part of Erlang)"
        other = "Or use a broker that somebody runs: funcmq dev --broker amqp://HOST (see deploy/rabbitmq)."
        raise ConfigurationError(f"{missing} is not installed here.", hint=f"Install it: {install_command(path)}\n{other}")
    return Programs(server, epmd)


def _find_epmd(path: str | None) -> Path | None:
    if found := shutil.which("epmd", path=path):
        return Path(found)
    if erl := shutil.which("erl", path=path):
        root = Path(erl).resolve().parent.parent
        return next(root.glob("**/epmd"), None)
    return None


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the node listens, and where it asks."""

    amqp: int
    management: int
    distribution: int
    epmd: int
    auth: int


def configuration(ports: Ports, definitions: Path) -> str:
    """rabbitmq.conf."""
    asks = f"http://{LOOPBACK}:{ports.auth}/broker"
    lines = (
        f"listeners.tcp.1 = {LOOPBACK}:{ports.amqp}",
        f"management.tcp.ip = {LOOPBACK}",
        f"management.tcp.port = {ports.management}",
        "auth_backends.1 = internal",
        "auth_backends.2 = http",
        "auth_http.http_method = post",
        *(f"auth_http.{what}_path = {asks}/{what}" for what in QUESTIONS),
        f"load_definitions = {definitions}",
        "log.console = false",
    )
    return "\n".join(lines) + "\n"


def definitions(password: str) -> str:
    """What the node imports at every start: one vhost and one administrator.  Because of them RabbitMQ makes no `guest`."""
    content = {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": USER,
                "password_hash": hash_password(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "administrator",
            }
        ],
        "permissions": [{"user": USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    }
    return json.dumps(content)


def hash_password(password: str) -> str:
    """RabbitMQ's form: base64 of salt ‖ SHA-256(salt ‖ password), with a salt of 4 bytes."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class Guardian:
    """The process that holds servers for this one (see `funcmq.dev.guard`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, job: Job) -> Guardian:
        """Hand it the job; it begins at once."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "funcmq.dev.guard",
            "--parent",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(job.text().encode() + b"\n")
        process.stdin.close()
        return cls(process)

    async def hear(self) -> str:
        """The next thing it says; '' when it is gone.  Cancelling is safe."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def stop(self) -> None:
        """Return when it and all that it holds are gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Node:
    """See the module.  `async with Node() as node:`, or `start` and `stop`.

    :param folder: kept between starts, with all that is in the queues; None is a temporary one.
    :param auth_port: where the front door answers RabbitMQ's questions; 0 takes a free one.
    :param remove: a folder to delete when the node is gone, however it went; a temporary `folder` is deleted anyway.
    """

    def __init__(self, folder: Path | None = None, *, auth_port: int = 0, remove: Path | None = None) -> None:
        self._folder, self._remove = folder, remove
        amqp, management, distribution, epmd, auth = free_ports(5)
        self.ports = Ports(amqp, management, distribution, epmd, auth_port or auth)
        self.user = USER
        self.password = ""
        """Known once prepared."""
        self._guardian: Guardian | None = None

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def folder(self) -> Path:
        """Where all of it is."""
        assert self._folder is not None, "the node is not prepared"
        return self._folder

    @property
    def auth_port(self) -> int:
        """The port of this host that RabbitMQ asks about users that are not its own."""
        return self.ports.auth

    @property
    def address(self) -> str:
        """Its AMQP URL without credentials."""
        return f"amqp://{LOOPBACK}:{self.ports.amqp}/"

    @property
    def url(self) -> str:
        """Its AMQP URL with the credentials of the internal user: for an environment variable, never for a command line."""
        return f"amqp://{self.user}:{quote(self.password, safe='')}@{LOOPBACK}:{self.ports.amqp}/"

    @property
    def management_url(self) -> str:
        """The management API, which takes `user` and `password` too."""
        return f"http://{LOOPBACK}:{self.ports.management}"

    @property
    def broker(self) -> Broker:
        """The internal user, for an AMQP link."""
        return Broker((self.address,), self.user, self.password)

    @property
    def log(self) -> Path:
        """What the node says about itself."""
        return self.folder / "log" / "rabbitmq.log"

    @property
    def console(self) -> Path:
        """What it says before it has a log."""
        return self.folder / "log" / "console.log"

    async def start(self) -> None:
        """Return when it takes connections.

        :raises ConfigurationError: RabbitMQ is not installed, or does not start; the message has the tail of its log.
        """
        programs = find_programs()
        self.prepare()
        self._guardian = await Guardian.start(Job(self._commands(programs), str(self._remove or "")))
        try:
            said = await self._first_word()
        except BaseException:
            await self.stop()
            raise
        if said != "ready":
            log = tail(self.log) or tail(self.console)
            await self.stop()
            raise ConfigurationError(f"RabbitMQ does not start ({said}).\n{log}", hint=f"Its folder: {self.folder}")

    async def stop(self) -> None:
        """Return when nothing of it runs, and its folder is gone if it was temporary.  Doing it twice is harmless."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            await guardian.stop()
            if self._remove is not None:  # the guardian has done it, unless somebody killed it
                shutil.rmtree(self._remove, ignore_errors=True)

    async def kill(self) -> None:
        """End it as a crash would; `start` has it again, at the same ports.  Meant for a node whose folder is kept."""
        assert self._guardian is not None, "the node is not started"
        os.kill(int((self.folder / "pid").read_text()), signal.SIGKILL)
        while await self._guardian.hear():
            pass
        await self.stop()

    async def died(self) -> NoReturn:
        """Wait until the node ends by itself, then raise Unreachable with the tail of its log."""
        assert self._guardian is not None, "the node is not started"
        said = await self._guardian.hear()
        raise Unreachable(f"The private RabbitMQ node ended ({said or 'its guardian was killed'}).\n{tail(self.log)}", hint="Start again.")

    async def _first_word(self) -> str:
        assert self._guardian is not None
        try:
            async with asyncio.timeout(START_S):
                return await self._guardian.hear() or "its guardian ended"
        except TimeoutError:
            return f"not ready after {START_S:g} s"

    def prepare(self) -> None:
        """Write its folder; from then on `url` and `broker` are known.  `start` does it too, and doing it twice is harmless."""
        if self._folder is None:
            self._folder = self._remove = Path(tempfile.mkdtemp(prefix="funcmq-rabbitmq-"))
        for name in ("log", "mnesia", "conf.d"):
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.password = _keep(self.folder / "password", secrets.token_urlsafe(24))
        _keep(self.folder / ".erlang.cookie", secrets.token_hex(24), mode=0o400)
        _keep(self.folder / "definitions.json", definitions(self.password))
        self._write("rabbitmq.conf", configuration(self.ports, self.folder / "definitions.json"))
        self._write("enabled_plugins", f"[{','.join(PLUGINS)}].\n")
        self._write("advanced.config", "[].\n")

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def _commands(self, programs: Programs) -> list[Command]:
        environment = self._environment()
        epmd = [str(programs.epmd), "-address", LOOPBACK, "-port", str(self.ports.epmd)]
        log = str(self.folder / "log" / "epmd.log")
        return [
            Command("epmd", epmd, environment, log, ready_port=self.ports.epmd, grace=1),
            Command(
                "rabbitmq-server",
                [str(programs.server)],
                environment,
                str(self.console),
                ready_text="completed with",
                grace=0 if self._remove else 1,  # its stores close within 50 ms; then the management plugin waits 5 s for nothing
            ),
        ]

    def _environment(self) -> dict[str, str]:
        """The caller's, without what would lead Erlang and RabbitMQ to a system's own node."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        own = {
            "HOME": str(self.folder),
            "ERL_CRASH_DUMP_BYTES": "0",  # it would land in the caller's working directory
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_AFLAGS": "-start_epmd false",
            "RABBITMQ_NODENAME": "funcmq@localhost",
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": str(self.log),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self.folder / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ALLOW_INPUT": "1",  # the script then becomes the node instead of waiting for it
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 1:1 +SDio 4 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        return kept | own


def _keep(path: Path, text: str, mode: int = 0o600) -> str:
    """The text in this file; the first time it is this text."""
    with contextlib.suppress(FileExistsError), os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    return path.read_text()
