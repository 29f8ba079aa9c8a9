"""The private RabbitMQ node of `funcmq dev` and of these tests."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from funcmq.broker import topology
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import ConfigurationError, NotAllowed
from funcmq.broker.ids import new_hex
from funcmq.broker.lifeline import gone
from funcmq.broker.link import Link
from funcmq.dev.brokers import AUTH_PORT, MANAGEMENT_PORT, Prepared
from funcmq.dev.rabbitmq import PLUGINS, Node, Ports, configuration, find_programs, install_command

DEPLOY = Path(__file__).parents[2] / "deploy" / "rabbitmq"
IPV4_LOOPBACK, IPV6_LOOPBACK = "0100007F", "00000000000000000000000001000000"
LOOPBACKS = {IPV4_LOOPBACK, IPV6_LOOPBACK}
PRIVATE_ONLY = {"load_definitions", "log.console"}
"""What a private node has and a facility's broker need not: its user comes from a file, its log goes to one place."""

OWNER = """
import asyncio, sys
from funcmq.dev.rabbitmq import Node
async def main():
    async with Node() as node:
        print(node.folder, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def _lines(text: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processes(folder: str) -> list[int]:
    """Every process whose environment names this folder: node, epmd, their helpers."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if folder.encode() in environment:
                found.append(int(entry.name))
    return found


def _listening(port: int) -> set[str]:
    """The local addresses, in the kernel's hexadecimal, on which somebody listens on this port."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}


@pytest.mark.asyncio
async def test_internal_user_logs_in(broker: Broker) -> None:
    """A started node takes its internal user."""
    await check(broker)


@pytest.mark.asyncio
@pytest.mark.parametrize(("user", "password"), [("guest", "guest"), ("funcmq", "wrong"), ("ep." + "0" * 32 + ".1", "x")])
async def test_nobody_else_logs_in(rabbitmq: Node, user: str, password: str) -> None:
    """There is no `guest`, no other password, and whom the front door does not vouch for stays out, also while no front door answers."""
    with pytest.raises(NotAllowed):
        await check(Broker((rabbitmq.address,), user, password))


@pytest.mark.asyncio
async def test_topology_needs_no_policy(rabbitmq: Node, broker: Broker) -> None:
    """Everything that funcmq declares is declared on a node without policies, twice with the same outcome."""

    async def credentials() -> Broker:
        return broker

    endpoint, session, group = topology.endpoint(new_hex()), new_hex(), new_hex()
    async with Link("test", credentials) as link:
        await link.ready()
        for _ in range(2):
            await link.declare(topology.fixed())
            await link.declare(endpoint)
            await link.declare(topology.stream(session, (group,)))
        await link.delete(endpoint)
        await link.delete(topology.stream(session))
    assert await _ask(rabbitmq, "/api/policies") == []


async def _ask(node: Node, path: str) -> object:
    headers = {"Authorization": aiohttp.encode_basic_auth(node.user, node.password)}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(node.management_url + path) as answer:
        assert answer.status == 200
        return await answer.json()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_listens_on_loopback_only(rabbitmq: Node) -> None:
    """Every port of the node, Erlang's included, is bound to loopback addresses only."""
    ports = rabbitmq.ports
    for port in (ports.amqp, ports.management, ports.distribution, ports.epmd):
        assert _listening(port) <= LOOPBACKS
        assert IPV4_LOOPBACK in _listening(port)


def test_no_secret_in_a_command_line(rabbitmq: Node) -> None:
    """The password is in no process's arguments, and in no file that others can read."""
    for pid in _processes(str(rabbitmq.folder)):
        assert rabbitmq.password.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    readable = [path for path in rabbitmq.folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert rabbitmq.folder.stat().st_mode & 0o077 == 0
    assert all(rabbitmq.password.encode() not in path.read_bytes() for path in readable)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.asyncio
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_gone_with_its_owner(number: signal.Signals) -> None:
    """Nothing of a temporary node is left when its owner is killed, whichever way: no process, no folder."""
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    folder = (await owner.stdout.readline()).decode().strip()
    pids = _processes(folder)
    guardians = {int(_parent(pid)) for pid in pids} - set(pids)
    assert len(pids) >= 2
    owner.send_signal(number)
    await owner.wait()
    async with asyncio.timeout(20):
        for pid in [*pids, *guardians]:
            await gone(pid)
    assert not Path(folder).exists()
    assert _processes(folder) == []


def _parent(pid: int) -> str:
    found = re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return found[1] if found else "0"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.asyncio
async def test_gone_with_its_guardian() -> None:
    """Nobody runs on when the guardian itself is killed, and the owner hears that the node is gone."""
    async with Node() as node:
        pids = _processes(str(node.folder))
        guardian = next(int(_parent(pid)) for pid in pids if int(_parent(pid)) not in pids)
        os.kill(guardian, signal.SIGKILL)
        async with asyncio.timeout(20):
            with pytest.raises(Exception, match="guardian was killed"):
                await node.died()
            for pid in pids:
                await gone(pid)
    assert _processes(str(node.folder)) == []
    assert not node.folder.exists()


@pytest.mark.asyncio
async def test_keeps_its_folder(tmp_path: Path) -> None:
    """A node in a folder of one's own keeps queues, messages and password from one start to the next."""
    endpoint = new_hex()
    passwords = []
    for start in range(2):
        async with Node(tmp_path / "node") as node, asyncio.timeout(50):
            passwords.append(node.password)
            broker = node.broker

            async def credentials(broker: Broker = broker) -> Broker:
                return broker

            async with Link("test", credentials) as link:
                await link.ready()
                if not start:
                    await link.declare(topology.fixed())
                    await link.declare(topology.endpoint(endpoint))
                    await link.publish(topology.TASKS, endpoint, "test/1", b"kept")
                else:
                    arrived: asyncio.Queue[bytes] = asyncio.Queue()

                    async def keep(delivery: object, arrived: asyncio.Queue[bytes] = arrived) -> None:
                        arrived.put_nowait(delivery.body)  # type: ignore[attr-defined]

                    link.consume(topology.tasks_queue(endpoint), keep)
                    assert await arrived.get() == b"kept"
    assert passwords[0] == passwords[1]
    assert (tmp_path / "node").exists()


def test_configured_as_deployed() -> None:
    """A private node and a facility's broker have the same configuration; the deployed one asks at `serve`'s default port."""
    ports = Ports(amqp=5672, management=MANAGEMENT_PORT, distribution=1, epmd=2, auth=AUTH_PORT)
    private = _lines(configuration(ports, Path("/definitions.json")))
    deployed = _lines((DEPLOY / "rabbitmq.conf").read_text())
    assert {key: value for key, value in private.items() if key not in PRIVATE_ONLY} == deployed
    assert (DEPLOY / "enabled_plugins").read_text().strip() == f"[{','.join(PLUGINS)}]."


def test_missing_server_names_the_command(tmp_path: Path) -> None:
    """Without RabbitMQ the error says what is missing and the line that installs it on this system."""
    (tmp_path / "dnf").touch(mode=0o755)
    with pytest.raises(ConfigurationError, match="rabbitmq-server is not installed") as caught:
        find_programs(folders=(), path=str(tmp_path))
    assert "sudo dnf install rabbitmq-server" in caught.value.hint
    (tmp_path / "apt-get").touch(mode=0o755)
    assert install_command(str(tmp_path)) == "sudo apt-get install --no-install-recommends rabbitmq-server"


@pytest.mark.parametrize("url", ["http://funcmq:x@host/", "amqp://host/", "amqp://funcmq@host/", "host:5672"])
def test_prepared_broker_needs_a_whole_url(url: str) -> None:
    """A prepared broker's URL without user or password is refused with its form."""
    with pytest.raises(Exception, match="amqp://USER:PASSWORD@HOST"):
        Prepared(url)
