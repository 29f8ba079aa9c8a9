"""Laws of `funcmq endpoint`: what it makes is private, what it starts runs and answers, and every refusal says what to do."""

import asyncio
import json
import os
import re
import shutil
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.lifeline import gone
from funcmq.dev.stack import Stack
from funcmq.endpoint import config

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

NAME = "other"


async def funcmq(stack: Stack, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in the stack."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "funcmq",
        "endpoint",
        *arguments,
        env=os.environ | stack.environment | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def seen(stack: Stack, name: str, word: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """Status as a table and as JSON, once the table has this word: what a daemon is now, a heartbeat tells a moment later."""
    async with asyncio.timeout(60):
        while word not in (table := (await funcmq(stack, "status", name, **variables))[1]):
            pass
    return table, json.loads((await funcmq(stack, "status", name, "-o", "json", **variables))[1])


async def test_an_endpoint_from_init_to_delete(stack: Stack, tmp_path: Path) -> None:
    """Init, start, status, a second start, drain, stop, delete: each does what it says, once."""
    status, _, said = await funcmq(stack, "init", NAME, "--workers", "1", "--yes", "--journal-dir", str(tmp_path / "journal"))
    assert (status, "funcmq endpoint start other" in said) == (0, True)
    folder = Path(stack.environment["FUNCMQ_HOME"]) / "endpoints" / NAME
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (await funcmq(stack, "init", NAME, "--yes"))[0] == 6
    try:
        assert (await funcmq(stack, "start", NAME))[0] == 0
        shown = json.loads((await funcmq(stack, "status", NAME, "-o", "json"))[1])
        assert (shown["online"], shown["state"], shown["pools"][0]["capacity"]) == (True, "connected", 1)
        os.kill(shown["pid"], 0)
        again = await funcmq(stack, "start", NAME)
        assert (again[0], str(shown["pid"]) in again[2]) == (6, True)
        assert (await funcmq(stack, "delete", NAME, "--yes"))[0] == 6
        assert NAME in (await funcmq(stack, "list"))[1]
        assert (await funcmq(stack, "drain", NAME))[0] == 0
    finally:
        assert (await funcmq(stack, "stop", NAME))[0] == 0
    assert (await funcmq(stack, "stop", NAME))[0] == 6
    assert not json.loads((await funcmq(stack, "status", NAME, "-o", "json"))[1])["online"]
    assert (await funcmq(stack, "delete", NAME, "--yes"))[0] == 0
    assert not folder.exists()


async def test_from_another_host(stack: Stack, tmp_path: Path) -> None:
    """Where none of its files are, its owner sees it, reads its log, has it drain and stop, and hears which host obeys."""
    elsewhere = {"FUNCMQ_HOME": str(tmp_path / "elsewhere")}
    await funcmq(stack, "init", "far", "--workers", "1", "--yes", "--journal-dir", str(tmp_path / "journal"))
    try:
        assert (await funcmq(stack, "start", "far"))[0] == 0
        _, shown = await seen(stack, "far", "connected", **elsewhere)
        assert (shown["online"], shown["host"]) == (True, socket.gethostname())
        os.kill(shown["pid"], 0)
        status, out, err = await funcmq(stack, "logs", "far", "-n", "3", **elsewhere)
        assert (status, len(out.splitlines()) <= 3, socket.gethostname() in err) == (0, True, True)
        assert out.splitlines()[-1] in (await funcmq(stack, "logs", "far"))[1]
        assert socket.gethostname() in (await funcmq(stack, "drain", "far", **elsewhere))[2]
        table, _ = await seen(stack, "far", "draining", **elsewhere)
        assert not re.search(r"\b\d{13}\b", table + (await funcmq(stack, "list"))[1]), "milliseconds are for programs"
    finally:
        status, _, err = await funcmq(stack, "stop", "far", **elsewhere)
    assert (status, f"has ended on {socket.gethostname()}" in err) == (0, True)
    async with asyncio.timeout(30):
        await gone(shown["pid"])
    for verb in ("stop", "drain", "logs"):
        assert (await funcmq(stack, verb, "far", **elsewhere))[0] == 6
    assert (await funcmq(stack, "logs", "far"))[0] == 0, "what its last run has left on its own host"
    assert (await funcmq(stack, "delete", "far", "--yes"))[0] == 0


async def test_pools_are_taken_from_a_file(stack: Stack, tmp_path: Path) -> None:
    """`--from` takes the pools of an existing file as they are, comments included, and refuses a wrong one before anything is made."""
    file = tmp_path / "endpoint.toml"
    file.write_text('[endpoint]\nid = "old"\n[pools.one]  # ours\nworkers_per_node = 1\n[pools.two]\nidle = "3m"\n')
    status, _, err = await funcmq(stack, "init", "copy", "--from", str(file), "--yes", "--journal-dir", str(tmp_path / "journal"))
    assert status == 0, err
    folder = Path(stack.environment["FUNCMQ_HOME"]) / "endpoints" / "copy"
    text = (folder / "endpoint.toml").read_text()
    made = config.parse(text, folder)
    assert ([pool.name for pool in made.pools], made.pools[1].idle, "# ours" in text, made.name) == (["one", "two"], 180.0, True, "copy")
    assert (await funcmq(stack, "delete", "copy", "--yes"))[0] == 0
    file.write_text("[pools.one]\nworker_per_node = 1\n")
    status, _, err = await funcmq(stack, "init", "copy", "--from", str(file), "--yes")
    assert (status, "line 2" in err, "workers_per_node" in err, folder.exists()) == (2, True, True, False)


async def test_a_unit_for_systemd(stack: Stack, tmp_path: Path) -> None:
    """`install-service` writes a unit that starts this endpoint in the foreground, and says what is left to do."""
    status, _, err = await funcmq(stack, "install-service", "dev", XDG_CONFIG_HOME=str(tmp_path))
    unit = (tmp_path / "systemd" / "user" / "funcmq-endpoint-dev.service").read_text()
    assert (status, "loginctl enable-linger" in err) == (0, True)
    assert f"{sys.executable} -P -m funcmq endpoint start dev --foreground" in unit
    assert f"FUNCMQ_HOME={stack.environment['FUNCMQ_HOME']}" in unit


async def test_trust_by_fingerprint(stack: Stack) -> None:
    """A key is trusted, listed and trusted no more by its fingerprint; what is nobody's is not found, what is no fingerprint is usage."""
    (mine,) = json.loads((await funcmq(stack, "trust", "list", "dev", "-o", "json"))[1])
    file = Path(stack.environment["FUNCMQ_HOME"]) / "endpoints" / "dev" / "trusted_keys"
    before = file.read_text()
    try:
        assert (await funcmq(stack, "trust", "remove", "dev", mine["fingerprint"]))[0] == 0
        assert json.loads((await funcmq(stack, "trust", "list", "dev", "-o", "json"))[1]) == []
        assert (await funcmq(stack, "trust", "remove", "dev", mine["fingerprint"]))[0] == 6
        assert (await funcmq(stack, "trust", "add", "dev", "0123:4567:89ab:cdef"))[0] == 6
        status, _, err = await funcmq(stack, "trust", "add", "dev")
        assert (status, mine["fingerprint"] in err) == (2, True), "shown, and left to the person"
        assert (await funcmq(stack, "trust", "dev", mine["fingerprint"].upper()))[0] == 0
        (again,) = json.loads((await funcmq(stack, "trust", "list", "dev", "-o", "json"))[1])
        assert (again["key"], again["user"]) == (mine["key"], mine["user"])
    finally:
        file.write_text(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "content", "check"),
    [
        ("token", "", "key"),
        ("key", "-----BEGIN PRIVATE KEY-----\nMC4CAQ", "key"),
        ("trusted_keys", "", "trust"),
        ("endpoint.toml", "[endpoint]\nname = ", "file"),
    ],
)
async def test_half_written_files(stack: Stack, tmp_path: Path, name: str, content: str, check: str) -> None:
    """Each is told by its name with what to do, by `start` and by the doctor; nothing is overwritten."""
    home = tmp_path / "home"
    shutil.copytree(stack.environment["FUNCMQ_HOME"], home)
    file = home / "endpoints" / "dev" / name
    file.write_text(content)
    status, out, _ = await funcmq(stack, "doctor", "dev", "-o", "json", FUNCMQ_HOME=str(home))
    found = next(finding for finding in json.loads(out) if finding["check"] == check)
    assert (found["verdict"] != "ok", bool(found["hint"]), str(file) in found["said"] or name == "trusted_keys") == (True, True, True)
    if name != "trusted_keys":
        status, _, err = await funcmq(stack, "start", "dev", "--foreground", FUNCMQ_HOME=str(home))
        assert (status, str(file) in err, "Traceback" in err) == (78, True, False)
    assert file.read_text() == content


async def test_refusals_say_what_to_do(stack: Stack) -> None:
    """A missing endpoint is a configuration error (78), an unknown one is NotFound (6), a bad key usage (2)."""
    missing = await funcmq(stack, "start", "nothing")
    assert (missing[0], "funcmq endpoint init nothing" in missing[2]) == (78, True)
    assert (await funcmq(stack, "status", "nothing"))[0] == 6
    assert (await funcmq(stack, "trust", "dev", "AAAA", "--yes"))[0] == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('[pools.local]\nworkers = 3\nprovider = "local"', "line 6: pools.local.workers is not known"),
        ("[pools.local]\nworker_per_node = 3", "Did you mean workers_per_node?"),
        ("idle = 3\n[pools.local]", "line 5: endpoint.idle is not known"),
        ('[pools.a]\nidle = 3\n[pools.b]\nidle = "x"', "line 8: pools.b.idle must be"),
        ('[pools.local]\nworkers_per_node = "two"', "line 6: pools.local.workers_per_node must be a whole number"),
        ('[pools.local]\nprovider = "sge"', "pools.local.provider must be"),
        ('[pools.local]\nidle = "soon"', "pools.local.idle must be a duration"),
        ("[pools.local]\nmin_blocks = 3", "min_blocks must be at most max_blocks"),
        ("[pool.local]\n", "pool is not known"),
        ("", "pools must be"),
        ("[pools.local", "is not TOML"),
    ],
)
async def test_the_file_is_read_strictly(tmp_path: Path, wrong: str, said: str) -> None:
    """Every mistake in endpoint.toml is told with its key; nothing is guessed."""
    text = f'[endpoint]\nname = "x"\nid = "{"a" * 32}"\nurl = "http://localhost"\n{wrong}\n'
    with pytest.raises(ConfigurationError) as refused:
        config.parse(text, tmp_path)
    assert said in str(refused.value)
    assert refused.value.exit == 78


async def test_the_template_is_valid(tmp_path: Path) -> None:
    """What `init` writes is read back as it was meant, with the defaults filled in."""
    made = config.parse(config.template("x", "a" * 32, "http://localhost:1/", 3), tmp_path)
    assert (made.name, made.pools[0].workers_per_node, made.run_dir, made.stop_grace) == ("x", 3, tmp_path / "run", 30.0)
