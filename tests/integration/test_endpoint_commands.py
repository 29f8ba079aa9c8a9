"""Laws of `funcmq endpoint`: what it makes is private, what it starts runs and answers, and every refusal says what to do."""

import asyncio
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from funcmq.broker.errors import ConfigurationError
from funcmq.dev.stack import Stack
from funcmq.endpoint import config

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

NAME = "other"


async def funcmq(stack: Stack, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command in the stack."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "funcmq",
        "endpoint",
        *arguments,
        env=os.environ | stack.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


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


async def test_refusals_say_what_to_do(stack: Stack) -> None:
    """A missing endpoint is a configuration error (78), an unknown one is NotFound (6), a bad key usage (2)."""
    missing = await funcmq(stack, "start", "nothing")
    assert (missing[0], "funcmq endpoint init nothing" in missing[2]) == (78, True)
    assert (await funcmq(stack, "status", "nothing"))[0] == 6
    assert (await funcmq(stack, "trust", "dev", "AAAA", "--yes"))[0] == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('[pools.local]\nworkers = 3\nprovider = "local"', "pools.local.workers is not known"),
        ('[pools.local]\nworkers_per_node = "two"', "pools.local.workers_per_node must be a whole number"),
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
