"""Three RabbitMQ nodes on the loopback address, set up with the files of deploy/rabbitmq as they are.

What differs from three hosts is said in one more file (`conf.d/99-here.conf`: ports, folders) and in the environment: the names broker1 to
broker3 are loopback addresses (Erlang's own table of hosts), and one epmd of its own serves all three.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from funcmq.broker.connection import Broker
from funcmq.broker.lifeline import gone
from funcmq.dev.guard import Command, Job
from funcmq.dev.ports import LOOPBACK, free_ports
from funcmq.dev.process import run, tail
from funcmq.dev.rabbitmq import USER, Guardian, definitions, find_programs

DEPLOY = Path(__file__).parent.parent / "deploy" / "rabbitmq"
NAMES = ("broker1", "broker2", "broker3")
UP_S = 120.0


class Member:
    """One node.  `port` is that of AMQP over TLS."""

    def __init__(self, name: str, folder: Path, epmd: int, password: str) -> None:
        self.name, self.folder, self._epmd = name, folder, epmd
        self.port, self.management, self.distribution = free_ports(3)
        self._guardian: Guardian | None = None
        self._write(password)

    def _write(self, password: str) -> None:
        etc = self.folder / "etc"
        shutil.copytree(DEPLOY, etc)
        for name in ("log", "mnesia"):
            (self.folder / name).mkdir()
        (etc / "definitions.json").write_text(definitions(password))
        tls = self.folder.parent / "tls" / self.name
        (etc / "conf.d" / "99-here.conf").write_text(
            f"listeners.ssl.1 = {LOOPBACK}:{self.port}\n"
            f"management.tcp.port = {self.management}\n"
            f"ssl_options.cacertfile = {tls}/ca.pem\n"
            f"ssl_options.certfile = {tls}/cert.pem\n"
            f"ssl_options.keyfile = {tls}/key.pem\n"
            f"load_definitions = {etc}/definitions.json\n"
            "log.console = false\n"
            "cluster_formation.discovery_retry_limit = 1\n"  # the first node has nobody to wait for
        )
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(password)
        cookie.chmod(0o400)

    async def start(self) -> None:
        """Return when it is a member of the cluster and takes connections."""
        console = str(self.folder / "log" / "console.log")
        server = str(find_programs().server)
        command = Command("rabbitmq-server", [server], self._environment(), console, ready_text="completed with", grace=0)
        self._guardian = await Guardian.start(Job([command]))
        async with asyncio.timeout(UP_S):
            said = await self._guardian.hear()
        assert said == "ready", f"{self.name}: {said}\n{tail(self.folder / 'log' / 'rabbitmq.log')}\n{tail(Path(console))}"

    async def kill(self) -> None:
        """kill -9; return when it is gone."""
        pid = int((self.folder / "pid").read_text())
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        await self.stop()

    async def stop(self) -> None:
        """Nothing of it runs when this returns."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            await guardian.stop()

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        etc, log = self.folder / "etc", self.folder / "log"
        return kept | {
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._epmd),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_AFLAGS": "-start_epmd false",
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_INETRC": str(self.folder.parent / "inetrc"),
            "RABBITMQ_NODENAME": f"{self.name}@{self.name}",
            "RABBITMQ_DIST_PORT": str(self.distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(log),
            "RABBITMQ_LOGS": str(log / "rabbitmq.log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(etc / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(etc / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(etc / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(etc / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(etc / "cluster" / "rabbitmq-env.conf"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +S 1:1 +SDio 4 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }


class Cluster:
    """See the module."""

    def __init__(self, folder: Path, members: list[Member], password: str) -> None:
        self.folder, self.members, self.password = folder, members, password

    @property
    def authority(self) -> Path:
        """The certificate that clients trust."""
        return self.folder / "tls" / "ca.pem"

    @property
    def broker(self) -> Broker:
        """All nodes, and the user of the front door."""
        urls = (f"amqps://localhost:{member.port}/?cafile={self.authority}" for member in self.members)
        return Broker(tuple(urls), USER, self.password)


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """A cluster that is up; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="funcmq-cluster-", ignore_cleanup_errors=True) as text:
        folder, password = Path(text), secrets.token_hex(20)
        (epmd,) = free_ports(1)
        names = ", ".join(f'"{name}"' for name in NAMES)
        (folder / "inetrc").write_text(f"{{host, {{127,0,0,1}}, [{names}]}}.\n{{lookup, [file, native]}}.\n")
        for name in NAMES:
            await make_certificate(folder / "tls", name, "localhost")
        members = []
        for name in NAMES:
            (folder / name).mkdir()
            members.append(Member(name, folder / name, epmd, password))
        async with contextlib.AsyncExitStack() as exit_stack:
            await _start_epmd(exit_stack, epmd, folder)
            for member in members:
                exit_stack.push_async_callback(member.stop)
            await members[0].start()  # as README.md says: two that are new at the same moment may each found a cluster
            async with asyncio.TaskGroup() as group:
                for member in members[1:]:
                    group.create_task(member.start())
            yield Cluster(folder, members, password)


async def make_certificate(folder: Path, *names: str) -> None:
    """Run deploy/rabbitmq/make-certificates."""
    status, said = await run([str(DEPLOY / "make-certificates"), str(folder), *names], os.environ)
    assert status == 0, said


async def _start_epmd(exit_stack: contextlib.AsyncExitStack, port: int, folder: Path) -> None:
    argv = [str(find_programs().epmd), "-address", LOOPBACK, "-port", str(port)]
    guardian = await Guardian.start(Job([Command("epmd", argv, dict(os.environ), str(folder / "epmd.log"), ready_port=port, grace=1)]))
    exit_stack.push_async_callback(guardian.stop)
    assert await guardian.hear() == "ready"


def members_listed(text: str) -> list[str]:
    """The nodes that conf.d/30-cluster.conf lists."""
    return re.findall(r"^cluster_formation\.classic_config\.nodes\.\d+ = (\S+)$", text, re.MULTILINE)
