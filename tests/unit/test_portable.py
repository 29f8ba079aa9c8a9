"""`broker` and `client` run where POSIX is not.  Names of modules and functions are banned by ruff (`banned-api` in pyproject.toml)."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("broker", "client") for path in (ROOT / room).rglob("*.py"))
MODULES = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
METHODS = {"add_reader", "add_writer", "add_signal_handler", "create_unix_connection", "create_unix_server"}
"""Of event loops, which on Windows raise NotImplementedError; a linter cannot know whose they are."""
GUARDED = {("broker/lifeline.py", "add_reader"): "of a pidfd, which only Linux has"}

BLOCKED = """
import asyncio, importlib.metadata, shutil, subprocess, sys, zipfile  # of the standard library, which has another way on Windows


class Windows:
    # says of POSIX's own modules what Windows says
    def find_spec(self, name, path=None, target=None):
        if name in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


for name in {modules!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Windows())

import funcmq
from funcmq import Client, Executor, TaskFuture, errors, function
from funcmq.cli import COMMANDS
for entry in COMMANDS.values():
    if entry.target.startswith("funcmq.client"):
        entry.load()
print("ok")
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loops_are_asked_for_nothing_that_windows_lacks(path: Path) -> None:
    """No event loop is asked for what that of Windows cannot do, but behind a test of the platform."""
    name = str(path.relative_to(ROOT))
    used = {node.attr for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)} & METHODS
    assert {method for method in used if (name, method) not in GUARDED} == set()


def test_linter_knows_the_modules() -> None:
    """The linter bans every module that Windows lacks, in these two rooms."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert set(MODULES) <= set(lint["flake8-tidy-imports"]["banned-api"])
    excused = [pattern for pattern, rules in lint["per-file-ignores"].items() if "TID251" in rules]
    assert "TID251" in lint["select"]
    assert not any(room in pattern for room in ("broker", "client") for pattern in excused)


def test_client_is_imported_without_posix_modules() -> None:
    """Everything that a user imports, and the users' commands, load where none of these modules exists."""
    program = BLOCKED.format(modules=tuple(name for name in MODULES if name != "posix"))  # without which Python itself does not run
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
