"""deploy/rabbitmq: what a facility copies is what the code means, and three nodes with these files outlive one of them."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from pathlib import Path

import pytest

from funcmq.broker import topology
from funcmq.broker.connection import Backoff, Broker, check
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import Busy, NotAllowed, Unreachable
from funcmq.broker.ids import new_hex
from funcmq.broker.link import Link
from funcmq.dev.ports import LOOPBACK
from tests.cluster import DEPLOY, NAMES, Cluster, cluster, make_certificate, members_listed

README = (DEPLOY / "README.md").read_text()
LOSES = {"message-ttl", "expires", "max-length", "overflow", "dead-letter-exchange", "dead-letter-routing-key", "delivery-limit"}
"""What a policy must not say of a queue that holds the only copy of something."""

CONFIRM_S = 5.0
"""A channel that was opened while its queue changed leaders is given up after so long."""
PATIENCE_S = 50.0
"""For a hundred messages, with a loaded machine and a change of leaders in mind."""


def _policies() -> list[dict[str, object]]:
    policies = json.loads((DEPLOY / "policies.json").read_text())["policies"]
    assert policies
    return list(policies)


def _queues() -> dict[str, topology.Queue]:
    """Every kind of queue, by its name in this test."""
    one = new_hex()
    tasks, results, control = topology.endpoint(one).queues
    return {"tasks": tasks, "results": results, "control": control, **{queue.name: queue for queue in topology.fixed().queues}}


def test_policies_are_for_queues_that_exist() -> None:
    """Each policy applies to a kind of queue that the topology has, and no queue is under two of them."""
    for queue in _queues().values():
        assert sum(bool(re.search(str(policy["pattern"]), queue.name)) for policy in _policies()) <= 1
    for policy in _policies():
        assert any(re.search(str(policy["pattern"]), queue.name) for queue in _queues().values()), policy["name"]


def test_policies_lose_nothing() -> None:
    """No policy makes a queue drop messages: a length is set only where the queue refuses what is too much."""
    for policy in _policies():
        definition = policy["definition"]
        assert isinstance(definition, dict)
        assert not LOSES & definition.keys()
        for queue in _queues().values():
            if re.search(str(policy["pattern"]), queue.name) and "max-length-bytes" in definition:
                assert queue.arguments["x-overflow"] == "reject-publish"


def test_readme_names_the_files() -> None:
    """The README speaks of every file that is there, and of none that is not."""
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file() and path.name != "README.md"}
    named = set(re.findall(r"`((?:conf\.d/|cluster/)?[a-z0-9_-]+(?:\.conf|\.json)|enabled_plugins|make-certificates)`", README))
    assert named - {"conf.d/90-site.conf"} == files  # the site's own


def test_cluster_file_names_the_readmes_hosts() -> None:
    """The three nodes of the cluster file are those of the README, each named after its host."""
    listed = members_listed((DEPLOY / "conf.d" / "30-cluster.conf").read_text())
    assert listed == [f"{name}@{name}" for name in NAMES]
    assert all(name in README for name in NAMES)
    assert "NODENAME=$(hostname -s)@$(hostname -s)" in (DEPLOY / "cluster" / "rabbitmq-env.conf").read_text()


@pytest.mark.asyncio
async def test_certificates(tmp_path: Path) -> None:
    """The script makes what the TLS file names; keys are the owner's alone; the authority stays; no secret lies here."""
    await make_certificate(tmp_path, "broker1", "192.0.2.7", "rabbit.example.org")
    authority = (tmp_path / "ca.pem").read_bytes()
    await make_certificate(tmp_path, "broker2")
    assert (tmp_path / "ca.pem").read_bytes() == authority
    named = {Path(path).name for path in re.findall(r"= (/etc/rabbitmq/tls/\S+)", (DEPLOY / "conf.d" / "20-tls.conf").read_text())}
    for host in ("broker1", "broker2"):
        assert {path.name for path in (tmp_path / host).iterdir()} == named
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ca.key", tmp_path / "broker1" / "key.pem")} == {0o600}
    ssl.create_default_context(cafile=str(tmp_path / "ca.pem")).load_cert_chain(
        tmp_path / "broker1" / "cert.pem", tmp_path / "broker1" / "key.pem"
    )
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in DEPLOY.rglob("*") if path.is_file())


async def _refused(node: Cluster) -> None:
    """TLS only: not without it, not for another name, not by an authority that one does not know."""
    port = node.members[0].port
    with pytest.raises(Unreachable):
        await check(Broker((f"amqp://localhost:{port}/",), node.broker.user, node.password))
    with pytest.raises(Unreachable):
        await check(Broker((f"amqps://{LOOPBACK}:{port}/?cafile={node.authority}",), node.broker.user, node.password))
    with pytest.raises(Unreachable):
        await check(Broker((f"amqps://localhost:{port}/",), node.broker.user, node.password))
    with pytest.raises(NotAllowed):
        await check(Broker(node.broker.urls[:1], "guest", "guest"))


class _Flow:
    """Numbers go into a quorum queue and come out of it."""

    def __init__(self, link: Link, endpoint: str) -> None:
        self._link, self._endpoint = link, endpoint
        self._sent = 0
        self._missing: set[bytes] = set()
        self._changed = asyncio.Event()

    async def take(self, delivery: Delivery) -> None:
        """A message arrived; twice is once."""
        await delivery.ack()
        self._missing.discard(delivery.body)
        self._changed.set()

    async def send(self, number: int) -> None:
        """Publish so many more, each until it is confirmed."""
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(number):
                self._sent += 1
                body = str(self._sent).encode()
                self._missing.add(body)
                await self._publish(body)

    async def _publish(self, body: bytes) -> None:
        backoff = Backoff()
        while True:
            try:
                return await self._link.publish(topology.TASKS, self._endpoint, "test/1", body, timeout=CONFIRM_S)
            except Unreachable:
                await self._link.ready()
            except Busy:  # the queue has no majority until the node that came back has caught up
                await backoff.wait()

    async def drained(self) -> None:
        """Wait until all that was published has come out."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._missing:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{len(self._missing)} of {self._sent} confirmed messages have not come out") from None


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.asyncio
async def test_a_cluster_outlives_a_node() -> None:
    """Three nodes with exactly these files: TLS only, and when one is killed publishing and consuming go on; it comes back as a member."""
    async with cluster() as nodes, asyncio.timeout(220):
        await _refused(nodes)
        endpoint, broker, first = new_hex(), nodes.broker, Broker(nodes.broker.urls[:1], nodes.broker.user, nodes.password)
        answers = iter([first])

        async def credentials() -> Broker:
            return next(answers, broker)

        async def declare(link: Link) -> None:
            """After every connect, as the front door does, whatever node is away."""
            await link.declare(topology.fixed())
            await link.declare(topology.endpoint(endpoint))

        async with Link("test", credentials, on_up=declare) as link:
            await link.ready()
            flow = _Flow(link, endpoint)
            link.consume(topology.tasks_queue(endpoint), flow.take)
            await flow.send(100)
            await flow.drained()
            await nodes.members[0].kill()  # the one that the link is connected to
            await flow.send(100)
            await flow.drained()
            await nodes.members[0].start()
            await check(first)
            await nodes.members[1].kill()  # the one that came back makes up the majority now
            await flow.send(100)
            await flow.drained()
