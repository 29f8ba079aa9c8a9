"""The parts of `funcmq dev` that need no broker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tomllib
from pathlib import Path

import pytest

from funcmq.broker import lifeline
from funcmq.broker.errors import AlreadyRunning, InvalidRequest
from funcmq.dev import daemon, databases
from funcmq.dev.brokers import with_credentials
from funcmq.dev.folder import Folder, write_secret
from funcmq.dev.guard import Command, Job
from funcmq.dev.ports import free_ports
from funcmq.dev.process import Child, run, tail

WAIT = "import sys, time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


def test_free_ports_differ() -> None:
    """Ports asked for together are different, and can be bound."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", ports[0]))


def test_folder_is_private_and_used_once(tmp_path: Path) -> None:
    """A data folder can be read by its owner only, and a second user of it is told who holds it."""
    folder = Folder.open(tmp_path / "data")
    assert folder.path.stat().st_mode & 0o077 == 0
    assert not folder.temporary
    with folder.lock(), pytest.raises(AlreadyRunning, match=str(os.getpid())):
        folder.lock()
    folder.lock().close()


def test_folder_remembers_its_port(tmp_path: Path) -> None:
    """A data folder has the same port the next time, another one where that is taken, and always the one asked for."""
    folder = Folder.open(tmp_path)
    port = folder.choose_port(0)
    assert folder.choose_port(0) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert folder.choose_port(0) != port
    assert folder.choose_port(12345) == 12345


def test_secrets_are_private(tmp_path: Path) -> None:
    """A secret's file is its owner's alone from the first moment, also where it replaces another."""
    path = tmp_path / "token"
    path.write_text("old")
    path.chmod(0o644)
    write_secret(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_passwords_stay_out_of_command_lines() -> None:
    """`--broker` takes its credentials from FUNCMQ_BROKER_URL, for the same place only, and refuses a password of its own."""
    whole = "amqp://funcmq:secret@broker.example.org:5672/"
    assert with_credentials("", whole) == ""
    assert with_credentials("amqp://broker.example.org:5672", whole) == whole
    with pytest.raises(InvalidRequest, match="can be read by everybody"):
        with_credentials(whole, whole)
    with pytest.raises(InvalidRequest, match="no credentials for"):
        with_credentials("amqp://other.example.org:5672", whole)
    with pytest.raises(InvalidRequest, match="no credentials for"):
        with_credentials("amqp://broker.example.org:5672", "")


@pytest.mark.parametrize(
    "url", ["garbage", "mysql://h/d", "postgresql://h", "postgresql://h:x/d", "sqlite://", "postgresql://u:secret@h/d"]
)
def test_what_is_no_database_is_refused_before_anything_starts(url: str) -> None:
    """Garbage, an unknown kind, a missing name and a password in the command line are usage errors that show no password."""
    with pytest.raises(InvalidRequest) as refused:
        databases.with_credentials(url, "")
    assert refused.value.exit == 2
    assert "secret" not in str(refused.value)


def test_the_password_of_a_database_comes_from_the_environment() -> None:
    """The variable's URL is taken where it is of the same place, and only there."""
    whole = "postgresql://u:secret@h:5432/d"
    assert databases.with_credentials("postgresql://h/d", whole) == whole
    assert databases.with_credentials("postgresql://h/e", whole) == "postgresql://h/e"
    assert databases.with_credentials("", whole) == ""


def test_jobs_travel_whole() -> None:
    """A guardian reads the job that was written, in one line."""
    job = Job([Command("a", ["b", "c\nd"], {"E": "é"}, "log", ready_text="up", grace=0.5)], "folder")
    assert Job.parse(job.text()) == job
    assert "\n" not in job.text()


def test_endpoint_file_is_adjusted(tmp_path: Path) -> None:
    """URL, workers and the wait at the end are written into an existing endpoint.toml, and nothing else is changed."""
    file = tmp_path / "endpoint.toml"
    file.write_text(
        '[endpoint]\nurl = "http://127.0.0.1:1"\n# stop_grace = "30s"    # how long\n\n[pools.local]\nworkers_per_node = 3\nidle = "2m"\n'
    )
    daemon.adjust(file, "http://127.0.0.1:2", 0)
    assert tomllib.loads(file.read_text()) == {
        "endpoint": {"url": "http://127.0.0.1:2", "stop_grace": "3s"},
        "pools": {"local": {"workers_per_node": 3, "idle": "2m"}},
    }
    daemon.adjust(file, "http://127.0.0.1:2", 8)
    assert tomllib.loads(file.read_text())["pools"]["local"]["workers_per_node"] == 8
    assert "# how long" in file.read_text()


def test_nobody_holds_a_journal_that_is_not_there(tmp_path: Path) -> None:
    """A missing or free journal has no holder."""
    assert daemon.holder(tmp_path / "none") == 0
    (tmp_path / "lock").write_text(f"pid {os.getpid()} on here")
    assert daemon.holder(tmp_path) == 0


def test_tail_of_a_log(tmp_path: Path) -> None:
    """The tail is the last lines; a log that does not exist has none."""
    log = tmp_path / "log"
    log.write_text("\n".join(map(str, range(100))))
    assert tail(log, 2) == "98\n99"
    assert tail(tmp_path / "none") == ""


async def _start(program: str, log: Path) -> Child:
    child = await Child.start("test", [sys.executable, "-c", program], os.environ, log)
    while not log.stat().st_size:
        await asyncio.sleep(0.01)
    return child


@pytest.mark.asyncio
@pytest.mark.parametrize(("program", "grace", "status"), [(WAIT, 10.0, -signal.SIGTERM), (STUBBORN, 0.2, -signal.SIGKILL)])
async def test_children_end(program: str, grace: float, status: int, tmp_path: Path) -> None:
    """A child is asked to end, and made to end when it does not; its output is in its log."""
    child = await _start(program, tmp_path / "log")
    await child.end(grace)
    assert await child.ended() == status
    assert not child.alive
    assert tail(child.log) == "up"


@pytest.mark.asyncio
async def test_run_gives_status_and_words() -> None:
    """A short command gives its exit status and what it said on both streams."""
    program = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    assert await run([sys.executable, "-c", program], os.environ) == (3, "out\nerr")


@pytest.mark.asyncio
async def test_lifeline_ends_with_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`parent_gone` returns when the process named by the environment is gone, not before, and at once when it is gone already."""
    child = await _start(WAIT, tmp_path / "log")
    monkeypatch.setenv(lifeline.VARIABLE, str(child.pid))
    waiting = asyncio.create_task(lifeline.parent_gone())
    await asyncio.sleep(0)
    assert not waiting.done()
    await child.end(0)
    async with asyncio.timeout(5):
        await waiting
        await lifeline.parent_gone()


@pytest.mark.asyncio
@pytest.mark.parametrize("value", [None, "", "no number"])
async def test_lifeline_of_nobody(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process to watch, `parent_gone` never returns, and can be cancelled."""
    monkeypatch.delenv(lifeline.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(lifeline.VARIABLE, value)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await lifeline.parent_gone()
