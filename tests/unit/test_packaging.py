"""What is installed, and what `import funcmq` and `funcmq --help` cost."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import funcmq
from funcmq import errors
from funcmq.broker.errors import TABLE
from funcmq.cli import COMMANDS, status

ROOT = Path(__file__).parents[2]
ROOMS = ("funcmq", "broker", "forwarder", "endpoint", "client")
HEAVY = {"aiohttp", "aio_pika", "sqlalchemy", "parsl", "cryptography", "rich", "asyncio"}
HELP_CPU_S = 0.2

HELP_PROGRAM = """
import json, os, sys
from funcmq.cli import status
code = status(["--help"])
times = os.times()
print(json.dumps({"code": code, "cpu": times.user + times.system, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def _setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def _listed(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _folders() -> set[str]:
    inits = [init for room in ROOMS for init in (ROOT / room).rglob("__init__.py")]
    names = [".".join(init.parent.relative_to(ROOT).parts) for init in inits]
    return {name if name.split(".")[0] == "funcmq" else f"funcmq.{name}" for name in names}


def test_packages_listed_are_the_folders() -> None:
    """Every package folder is installed, and nothing else is."""
    packages = _listed(_setup()["options"]["packages"])
    assert sorted(packages) == sorted(_folders())
    assert len(packages) == len(set(packages))


def test_every_folder_of_python_is_a_package() -> None:
    """No module of ours lies in a folder that would not be installed."""
    modules = [module for room in ROOMS for module in (ROOT / room).rglob("*.py")]
    assert [str(module) for module in modules if not (module.parent / "__init__.py").exists()] == []


def test_parsl_is_pinned_exactly() -> None:
    """Parsl's internals are used, so one release of it is named."""
    worker = _listed(_setup()["options.extras_require"]["worker"])
    assert any(re.fullmatch(r"parsl==[0-9.]+", line) for line in worker)


def test_exported_names_work() -> None:
    """Every exported name is there, and `dir` shows it."""
    assert [name for name in funcmq.__all__ if getattr(funcmq, name, None) is None] == []
    assert set(funcmq.__all__) <= set(dir(funcmq))
    assert funcmq.__version__ == importlib.metadata.version("funcmq")


def test_unknown_names_are_attribute_errors() -> None:
    """A name that funcmq does not have is an AttributeError that names it."""
    with pytest.raises(AttributeError, match="'Clinet'"):
        _ = funcmq.Clinet  # type: ignore[attr-defined]


def test_errors_are_the_whole_table() -> None:
    """`funcmq.errors` has every error of the table and nothing else."""
    assert sorted(errors.__all__) == sorted(TABLE)
    assert all(getattr(errors, name) is TABLE[name] for name in TABLE)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_exist(name: str) -> None:
    """Every command of the table can be loaded, has a help, and keeps its one-line help in the table."""
    command = COMMANDS[name].load()
    assert command.help
    assert COMMANDS[name].help.endswith(".")


def test_help_is_quick_and_imports_little() -> None:
    """`funcmq --help` takes less than 0.2 s of CPU time, interpreter included, and imports no library of the rooms."""
    runs = [_help() for _ in range(3)]
    assert {run["code"] for run in runs} == {0}
    assert min(float(str(run["cpu"])) for run in runs) < HELP_CPU_S
    assert HEAVY & set(runs[0]["modules"]) == set()


def _help() -> dict[str, list[str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "PYTHON"))}
    done = subprocess.run([sys.executable, "-c", HELP_PROGRAM], capture_output=True, text=True, check=True, env=environment, timeout=30)
    assert all(name in done.stdout for name in COMMANDS)
    read: dict[str, list[str]] = json.loads(done.stderr)
    return read


def test_usage_errors_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that does not exist is a usage error on stderr."""
    assert status(["no-such-command"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "no-such-command" in said.err


@pytest.mark.parametrize(
    "raised", [errors.NotAllowed("Not yours."), ExceptionGroup("", [errors.NotAllowed("Not yours.")])], ids=["plain", "in a group"]
)
def test_errors_are_said_once(raised: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """A FuncmqError ends a command with its message, its hint and its own exit status, without a traceback."""

    @click.command()
    def refuse() -> None:
        raise raised

    assert status([], refuse) == 4
    assert capsys.readouterr().err == "Error: Not yours.\nAsk the owner for access.\n"


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends a command with 130 and says nothing."""

    @click.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert status([], wait) == 130
    assert capsys.readouterr().err.strip() == ""
