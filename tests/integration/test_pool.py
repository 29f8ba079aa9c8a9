"""Laws of a pool, with a real interchange and real worker processes: every packet is answered or lost, and nothing outlives the daemon."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from funcmq.broker import codec
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import Inline
from funcmq.endpoint import leftovers
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import Place
from funcmq.endpoint.pool import Pool
from funcmq.endpoint.worker.packet import Member, Packet, Report

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORKERS = 2
STAND_IN = '''
"""A worker function that does what the name of a task says, without a child process."""
import os, socket, time
from funcmq.broker import codec
from funcmq.endpoint.worker.packet import Done, Packet, Report

def run(buffer):
    packet = codec.decode(Packet, buffer)
    done = []
    for member in packet.members:
        if member.name == "raise":
            raise ModuleNotFoundError("no such thing")
        if member.name == "exit":
            os._exit(3)
        if member.name.startswith("sleep"):
            open(member.name.partition(" ")[2] or os.devnull, "w").close()
            time.sleep(60)
        done.append(Done(member.id, "succeeded", member.args, None, 1, 2, 0.0, os.environ.get("FUNCMQ_TOKEN", "")))
    return codec.encode(Report(1, socket.gethostname(), os.getpid(), done))
'''


class Owner:
    """Waits for what a pool says of each packet."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.answers: dict[int, asyncio.Future[Report | str]] = {}
        self.changed = asyncio.Condition()
        self.open = 1
        self.telling: set[asyncio.Task[None]] = set()

    def answered(self, pool: str, number: int, payload: bytes) -> None:
        self.answers[number].set_result(codec.decode(Report, payload))

    def lost(self, pool: str, number: int, reason: str) -> None:
        self.answers[number].set_result(reason)

    def workers_changed(self, pool: str) -> None:
        task = asyncio.create_task(self.tell())
        self.telling.add(task)
        task.add_done_callback(self.telling.discard)

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def demand(self, pool: str) -> int:
        return self.open

    async def workers(self, count: int, seconds: float = 30.0) -> None:
        assert self.pool is not None
        pool = self.pool
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(lambda: pool.workers == count)

    def submit(self, *names: str) -> asyncio.Future[Report | str]:
        assert self.pool is not None
        members = [Member(new_id(), "0" * 64, name, [], "call", Inline("msgpack", b"\xc0"), 0.0, 1) for name in names]
        number = len(self.answers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        self.pool.submit(number, codec.encode(Packet(1, members, "/", "", "", 1)))
        return self.answers[number]


async def outcome(answer: asyncio.Future[Report | str], seconds: float = 30.0) -> Report | str:
    async with asyncio.timeout(seconds):
        return await answer


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    """One pool for the module: it has to recover from whatever the test before did to it."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "standin.py").write_text(STAND_IN)
    os.environ["FUNCMQ_TOKEN"] = "secret"
    owner = Owner()
    config = PoolConfig("local", workers_per_node=WORKERS, min_blocks=1, worker_init=f"export PYTHONPATH={folder}")
    mark = new_hex()
    async with Pool(config, Place(folder / "run", "127.0.0.1", mark), owner, "standin.run") as pool:
        owner.pool = pool
        running = asyncio.create_task(pool.run())
        await owner.workers(WORKERS)
        yield owner
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    del os.environ["FUNCMQ_TOKEN"]
    assert leftovers.find(mark) == []


async def test_bytes_come_back(owner: Owner) -> None:
    """What the worker function returned arrives as it was, for every member in order."""
    report = await outcome(owner.submit("a", "b"))
    assert isinstance(report, Report)
    assert [done.value for done in report.members] == [Inline("msgpack", b"\xc0")] * 2


async def test_tasks_see_no_secrets(owner: Owner) -> None:
    """Credentials in the daemon's environment are not in the workers'."""
    report = await outcome(owner.submit("a"))
    assert isinstance(report, Report)
    assert report.members[0].stdout == ""


async def test_folders_are_private(owner: Owner) -> None:
    """Certificates, scripts and everything above them can be read by their owner only."""
    assert owner.pool is not None
    certificates = owner.pool.certificates
    assert {path.stat().st_mode & 0o077 for path in (certificates, certificates.parent, certificates.parents[2])} == {0}


async def test_a_burst_is_answered(owner: Owner) -> None:
    """Far more packets than workers, submitted at once, are all answered once."""
    answers = [owner.submit("a") for _ in range(300)]
    assert all(isinstance(report, Report) for report in await asyncio.gather(*answers))
    assert owner.pool is not None
    assert owner.pool.in_flight == 0


async def test_an_error_of_the_worker_function_is_a_loss_with_a_reason(owner: Owner) -> None:
    """An exception that escapes the worker function loses the packet, is never unpickled, and harms no other packet."""
    first, second = owner.submit("raise"), owner.submit("a")
    reason = await outcome(first)
    assert isinstance(reason, str)
    assert "not taken" in reason
    assert isinstance(await outcome(second), Report)


async def test_a_dead_worker_loses_its_packet(owner: Owner) -> None:
    """A worker process that ends under a packet is told within the heartbeat, and replaced."""
    began = time.monotonic()
    reason = await outcome(owner.submit("exit"))
    assert isinstance(reason, str)
    assert "worker process" in reason
    assert time.monotonic() - began < 15
    assert isinstance(await outcome(owner.submit("a")), Report)


async def test_a_dead_interchange_is_seen_at_once(owner: Owner) -> None:
    """When the interchange is killed, all packets are lost within a second, the old workers end, and new ones come."""
    assert owner.pool is not None
    answers = [owner.submit("sleep") for _ in range(3)]
    began = time.monotonic()
    os.kill(owner.pool.interchange, signal.SIGKILL)
    for answer in answers:
        assert isinstance(await outcome(answer), str)
    assert time.monotonic() - began < 4
    await owner.workers(WORKERS)
    assert isinstance(await outcome(owner.submit("a")), Report)


def processes(mark: str, block: str) -> dict[int, tuple[int, str]]:
    """Parent and command line of every process of a block."""
    found = {}
    for pid in leftovers.find(mark, block):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found[pid] = parent, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


async def test_a_killed_manager_takes_everything_along_and_is_replaced(owner: Owner, tmp_path: Path) -> None:
    """kill -9 of a manager, with a worker that runs and one that idles: its fork server and they are gone at once, so that nothing is
    left that nobody would end, and a new block comes without the daemon being told.
    """
    pool = owner.pool
    assert pool is not None
    block, old = f"local-{pool.managers[0].block}", pool.managers[0].id
    owner.submit(f"sleep {tmp_path / 'runs'}")
    async with asyncio.timeout(30):
        while not (tmp_path / "runs").exists():
            await asyncio.sleep(0.01)
    alive = processes(pool._place.mark, block)
    manager = next(pid for pid, (_, command) in alive.items() if "-m funcmq.endpoint.worker.node" in command and "bash" not in command)
    server = next(pid for pid, (parent, command) in alive.items() if parent == manager and "forkserver" in command)
    workers = [pid for pid, (parent, _) in alive.items() if parent == server]
    assert len(workers) >= WORKERS
    gone = [os.pidfd_open(pid) for pid in (server, *workers)]
    os.kill(manager, signal.SIGKILL)
    for handle in gone:
        assert (await asyncio.to_thread(select.select, [handle], [], [], 4))[0]
        os.close(handle)
    async with asyncio.timeout(50), owner.changed:
        await owner.changed.wait_for(lambda: any(manager.id != old for manager in pool.managers))


HOLDER = """
import asyncio, sys
from pathlib import Path
from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.executor import Place
from funcmq.endpoint.pool import Pool
class Owner:
    def workers_changed(self, pool):
        if self.pool.workers: print(self.pool.interchange, flush=True)
    def demand(self, pool): return 1
async def main():
    owner = Owner()
    place = Place(Path(sys.argv[1]), "127.0.0.1", sys.argv[2])
    async with Pool(PoolConfig("local", workers_per_node=1, min_blocks=1), place, owner) as pool:
        owner.pool = pool
        await pool.run()
asyncio.run(main())
"""


async def test_a_killed_daemon_leaves_no_interchange_and_the_next_one_ends_the_rest(tmp_path: Path) -> None:
    """After kill -9 of the process that holds a pool its interchange is gone at once; the sweep of the next start ends the workers, and
    only those.
    """
    mark = new_hex()
    daemon = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run"), mark], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    interchange = int(await asyncio.to_thread(daemon.stdout.readline))
    bystander = subprocess.Popen(["/bin/sleep", "60"], env={leftovers.MARK: new_hex()})
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    async with asyncio.timeout(5):
        while Path(f"/proc/{interchange}/cmdline").exists() and Path(f"/proc/{interchange}/cmdline").read_bytes():
            await asyncio.sleep(0.01)
    assert leftovers.find(mark)
    assert await asyncio.to_thread(leftovers.end, mark) > 0
    assert leftovers.find(mark) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
