"""`funcmq dev` as people use it: what a command inside it gets, what is left afterwards, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from funcmq.broker.lifeline import VARIABLE, gone
from funcmq.dev.command import PROGRAM
from funcmq.dev.ports import free_ports
from funcmq.dev.rabbitmq import Node

FUNCMQ = (sys.executable, "-m", "funcmq")
READY = re.compile(r"ready at (http://\S+) after ([0-9.]+) s")
READY_S = 45.0
"""Three times what it may take on a quiet machine: other tests run beside this one."""
GONE_S = 25.0

INSIDE = """
import json, os, subprocess, sys
from funcmq import Executor
with Executor() as fabric:
    first = fabric.submit(pow, 3, 4).result(60)
status = json.loads(subprocess.run(["funcmq", "endpoint", "status", "dev", "-o", "json"], check=True, capture_output=True).stdout)
os.kill(status["pid"], 9)
subprocess.run(["funcmq", "endpoint", "start", os.environ["FUNCMQ_ENDPOINT"]], check=True)
with Executor() as fabric:
    second = fabric.submit(pow, 2, 5).result(60)
print(json.dumps({"results": [first, second], "token": os.environ["FUNCMQ_TOKEN"]}))
sys.exit(7)
"""


def _environment(home: Path, **more: str) -> dict[str, str]:
    """That of a person with this home and nothing configured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FUNCMQ_", "XDG_"))}
    return kept | {"HOME": str(home)} | more


def _processes(*marks: str) -> set[int]:
    """Every process whose environment or command line has one of these marks."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue
            if any(mark.encode() in said for mark in marks):
                found.add(int(entry.name))
    return found


async def _all_gone(*marks: str) -> None:
    async with asyncio.timeout(GONE_S):
        while left := _processes(*marks):
            for pid in left:
                await gone(pid)


@dataclass(slots=True)
class Running:
    """A `funcmq dev` that is ready, and what it has said on stderr so far."""

    process: asyncio.subprocess.Process
    url: str
    seconds: float
    said: list[str] = field(default_factory=list)

    @property
    def mark(self) -> str:
        """What all its processes have in their environment."""
        return f"{VARIABLE}={self.process.pid}"

    async def rest(self) -> tuple[str, str]:
        """What it says until its end, on both streams."""
        async with asyncio.timeout(GONE_S):
            out, err = await self.process.communicate()
        return out.decode(), "".join(self.said) + err.decode()


@asynccontextmanager
async def _dev(environment: Mapping[str, str], *words: str) -> AsyncIterator[Running]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *FUNCMQ, "dev", "--workers", "2", *words, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        while line := (await process.stderr.readline()).decode():
            said.append(line)
            if ready := READY.search(line):
                yield Running(process, ready[1], float(ready[2]), said)
                break
        else:
            raise AssertionError("".join(said))
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


@pytest.mark.timeout(120)
@pytest.mark.asyncio
async def test_a_command_inside(tmp_path: Path) -> None:
    """A command gets a fabric, may kill the daemon and start it again, has stdout for itself, and passes its status on; nothing runs on."""
    data = str(tmp_path / "data")
    async with _dev(_environment(tmp_path), "--data", data, "--", "python", "-c", INSIDE) as dev:
        out, err = await dev.rest()
        assert dev.process.returncode == 7, err
        answer = json.loads(out)
        assert answer["results"] == [81, 32]
    await _all_gone(dev.mark, data)
    async with _dev(_environment(tmp_path), "--data", data) as dev:
        assert dev.seconds < READY_S
        dev.process.terminate()
        out, err = await dev.rest()
    assert dev.process.returncode == 128 + signal.SIGTERM, err
    assert f"export FUNCMQ_TOKEN={answer['token']}\n" in out
    await _all_gone(dev.mark, data)


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_a_person_outside(tmp_path: Path) -> None:
    """While it runs it is the profile `dev`: the program it prints works as pasted; after a kill -9 nothing runs and no data is left."""
    environment = _environment(tmp_path)
    profile = tmp_path / ".config" / "funcmq" / "dev.json"
    async with _dev(environment) as dev:
        assert dev.process.stderr is not None
        while "import platform" not in "".join(dev.said):
            dev.said.append((await dev.process.stderr.readline()).decode())
        assert profile.stat().st_mode & 0o777 == 0o600
        out = await _output(environment, sys.executable, "-c", PROGRAM)
        assert out.splitlines()[-1] == "[3, 2, 1, 0, 1, 2, 3]"
        folder = Path(json.loads(profile.read_text())["key"]).parents[2]
        dev.process.kill()
        await dev.process.wait()
        await _all_gone(dev.mark, str(folder), f"--parent {dev.process.pid}")
        assert not folder.exists()
    with pytest.raises(AssertionError, match="No fabric is configured"):
        await _output(environment, *FUNCMQ, "whoami")


async def _output(environment: Mapping[str, str], *argv: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, env=dict(environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return out.decode()


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_ctrl_c_takes_everything_down(tmp_path: Path) -> None:
    """Ctrl-C takes everything down: no process, no folder, no profile; the exit status says so."""
    async with _dev(_environment(tmp_path)) as dev:
        profile = tmp_path / ".config" / "funcmq" / "dev.json"
        folder = Path(json.loads(profile.read_text())["key"]).parents[2]
        dev.process.send_signal(signal.SIGINT)
        out, err = await dev.rest()
    assert dev.process.returncode == 130, err
    assert f"export FUNCMQ_URL={dev.url}\n" in out
    assert _processes(dev.mark, str(folder)) == set()
    assert not folder.exists()
    assert not profile.exists()


@pytest.mark.timeout(60)
@pytest.mark.asyncio
async def test_says_which_part_died(tmp_path: Path) -> None:
    """When RabbitMQ dies under it, it ends the command, says which part died with the tail of its log, and leaves nothing."""
    async with _dev(_environment(tmp_path), "--data", str(tmp_path / "data"), "--", "sleep", "600") as dev:
        node = [pid for pid in _processes(str(tmp_path / "data")) if "beam" in Path(f"/proc/{pid}/comm").read_text()]
        os.kill(node[0], signal.SIGKILL)
        _, err = await dev.rest()
    assert dev.process.returncode == 3
    assert "RabbitMQ node ended (died: rabbitmq-server)" in err
    await _all_gone(dev.mark, str(tmp_path / "data"))


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_a_prepared_broker(tmp_path: Path) -> None:
    """`--broker` uses a broker that asks this front door, and refuses one that asks elsewhere, with what to set."""
    (other,) = free_ports(1)
    async with Node() as node:
        environment = _environment(tmp_path, FUNCMQ_BROKER_URL=node.url, FUNCMQ_MANAGEMENT_URL=node.management_url)
        right = environment | {"FUNCMQ_BROKER_AUTH_PORT": str(node.auth_port)}
        words = ("dev", "--workers", "2", "--broker", node.address, "--")
        out = await _output(right, *FUNCMQ, *words, "funcmq", "whoami", "-o", "json")
        assert json.loads(out)["name"] == "admin"
        wrong = environment | {"FUNCMQ_BROKER_AUTH_PORT": str(other)}
        with pytest.raises(AssertionError, match=f"auth_http.user_path = http://127.0.0.1:{other}/broker/user"):
            await _output(wrong, *FUNCMQ, *words, "true")


@pytest.mark.asyncio
async def test_wrong_words_start_nothing(tmp_path: Path) -> None:
    """A command that does not exist and a data folder in use are refused before anything is started."""
    with pytest.raises(AssertionError, match="There is no program 'no-such-program'"):
        await _output(_environment(tmp_path), *FUNCMQ, "dev", "--", "no-such-program")
    assert not (tmp_path / ".config").exists()
