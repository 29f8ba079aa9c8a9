"""Laws of the `funcmq` command: quick to help, kind to typing errors, and exact in how it ends."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.settings import born, resolve
from funcmq.cli import COMMANDS, status
from funcmq.dev.profile import Profile
from funcmq.endpoint.schedulers import detect
from funcmq.forwarder.settings import load as load_serve

HELP_S = 0.2
"""What interface.md promises of a machine that does nothing else."""
LOADED = 4
"""How much slower tests may run."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person for whom nothing is configured."""
    for name in ("URL", "TOKEN", "KEY", "ENDPOINT", "PROFILE", "LOGIN_CODE", "ENROLMENT"):
        monkeypatch.delenv(f"FUNCMQ_{name}", raising=False)
    monkeypatch.setenv("FUNCMQ_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick(command: str) -> None:
    """Every command helps in under 0.2 s of processor time (four times that here), and imports nothing that takes longer."""
    before = _cpu_s()
    done = subprocess.run([sys.executable, "-m", "funcmq", *command.split(), "--help"], capture_output=True, text=True, check=True)
    assert "Usage: funcmq" in done.stdout
    assert _cpu_s() - before < HELP_S * LOADED


@pytest.mark.parametrize(
    ("words", "meant"), [("tsk", "task"), ("endpont list", "endpoint"), ("endpoint stat", "start"), ("task lst", "list"), ("key ad", "add")]
)
def test_a_misspelt_command_is_told_the_right_one(words: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and the name of the command that is nearest."""
    assert status(words.split()) == 2
    assert meant in capsys.readouterr().err.partition("Did you mean")[2]


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        ("whoami", 2, "No fabric is configured"),
        ("whoami --profile nope", 2, "There is no profile 'nope'"),
        ("login http://127.0.0.1:9", 2, "FUNCMQ_LOGIN_CODE"),
        ("login nonsense", 2, "is not the URL of a front door"),
        ("login http://a:b@127.0.0.1:9", 2, "URLs carry no password"),
        ("profile use nope", 6, "There is no profile"),
        ("endpoint start nothing", 78, "funcmq endpoint init nothing"),
        ("endpoint trust list nothing", 2, "funcmq endpoint init nothing"),
        ("endpoint init x --url http://127.0.0.1:9 --enrolment-code", 2, "FUNCMQ_ENROLMENT"),
        ("doctor", 6, "failed"),
    ],
)
def test_how_it_ends(
    home: Path, words: str, expected: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 for usage, 6 for what is refused, 78 for the configuration of a daemon; without a terminal nobody is asked for anything."""
    with open(os.devnull) as nobody:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdin", nobody)
        assert status(words.split()) == expected
    out, err = capsys.readouterr()
    assert said in out + err


def test_nobody_answers(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A front door that is not there is status 3 for a command, and a failed line with a hint for the doctor."""
    monkeypatch.setenv("FUNCMQ_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("FUNCMQ_TOKEN", "x")
    assert status(["whoami"]) == 3
    assert status(["doctor"]) == 6
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("failed   http"))
    assert "→" in line


def test_profiles_are_listed_and_chosen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`use` makes one the default and keeps the others; a file that is cut in half is told by line, and stays as it is."""
    file = home / "config.toml"
    file.write_text('default = "a"\n[profiles.a]\nurl = "http://a"\ntoken = "t"\n[profiles.b]\nurl = "http://b"\n')
    assert status(["profile", "use", "b"]) == 0
    assert resolve().url == "http://b"
    assert (resolve(profile="a").url, resolve(profile="a").token) == ("http://a", "t")
    assert status(["profile", "list"]) == 0
    assert "*  b" in capsys.readouterr().out
    half = file.read_text()[:-5]
    file.write_text(half)
    assert status(["profile", "use", "a"]) == 2
    assert "line" in capsys.readouterr().err
    assert file.read_text() == half


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[profiles.a]\nurll = "http://a"', "line 2: profiles.a.urll is not known"),
        ("[profiles.a]\nurl = 3", "line 2: profiles.a.url must be text"),
        ("profiles = 3", "line 1: profiles must be tables"),
        ("default = 3", "line 1: default must be the name of a profile"),
        ("[profiles]\na = 3", "line 2: profiles.a must be a table"),
    ],
)
def test_a_broken_config_is_told_by_line_and_key(home: Path, text: str, said: str) -> None:
    """Whatever stands in config.toml: a ConfigurationError that says where."""
    (home / "config.toml").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        resolve()
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('host = "::1"\nprot = 3', "line 2: prot is not known"),
        ('\nport = "8600"', "line 2: port must be a port"),
        ("port = 86000", "line 1: port must be a port"),
        ("broker_url = 3", "line 1: broker_url must be text"),
        ('host = "', "is not TOML"),
    ],
)
def test_the_settings_of_serve_are_told_by_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    """As those of endpoints: file, line, key, and what was probably meant."""
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        load_serve({}, {}, file)
    assert said in refused.value.message
    assert str(file) in refused.value.message


# -- the profile `dev` ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_one_at_a_time_is_the_profile_dev(home: Path) -> None:
    """A second one waits, and is it when the first has given it back; meanwhile everybody sees the first."""
    first, second = ({"url": f"http://127.0.0.1:{port}"} for port in (1, 2))
    one, other = Profile(first, home / "dev.json"), Profile(second, home / "dev.json")
    assert one.take()
    assert not other.take()
    assert resolve().url == "http://127.0.0.1:1"
    one.give_back()
    await other.wait()
    assert resolve().url == "http://127.0.0.1:2"
    other.give_back()
    with pytest.raises(ConfigurationError, match="No fabric"):
        resolve()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"pid": "x"}',
        '{"pid": 4194303999, "url": "http://x"}',
        '{"pid": 0, "url": "http://x"}',
        '{"pid": OURS, "born": "1", "url": "http://x"}',
    ],
)
def test_what_a_killed_dev_has_left_is_ignored(home: Path, text: str) -> None:
    """Half a file, a pid that is nobody's, and a pid that was given out again since: as if there were no file, and it is replaced."""
    (home / "dev.json").write_text(text.replace("OURS", str(os.getpid())))
    with pytest.raises(ConfigurationError, match="No fabric"):
        resolve()
    profile = Profile({"url": "http://127.0.0.1:1"}, home / "dev.json")
    assert profile.take()
    assert resolve().url == "http://127.0.0.1:1"
    profile.give_back()


def test_a_process_has_a_birth() -> None:
    """The same at every look, '' for none."""
    assert born(os.getpid()) == born(os.getpid()) != ""
    assert born(2**31 - 1) == ""


@pytest.mark.parametrize(
    ("programs", "name", "missing"),
    [
        ("", None, ()),
        ("sbatch squeue scancel", "slurm", ()),
        ("sbatch", "slurm", ("squeue", "scancel")),
        ("qsub qstat qdel", "pbs", ()),
        ("qsub qstat qdel cqwait", "cobalt", ()),
    ],
)
def test_schedulers_are_told_by_their_programs(programs: str, name: str | None, missing: tuple[str, ...]) -> None:
    """Slurm by sbatch, PBS by qsub, Cobalt by a qsub that has cqwait beside it; what should be there with it is named."""
    found = detect({program: f"/usr/bin/{program}" for program in programs.split()}.get)
    assert (found.name if found else None) == name
    assert found is None or found.missing == missing
