"""Interpreters of other minor versions on this machine, and environments for them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = (3, 11)
HERE = sys.version_info[:2]


def _candidates() -> Iterator[Path]:
    for name in [f"python3.{minor}" for minor in range(OLDEST[1], 30)]:
        if found := shutil.which(name):
            yield Path(found)
    yield from sorted(Path.home().glob(".pyenv/versions/*/bin/python"))
    yield from sorted(Path("/usr/bin").glob("python3.[0-9]*"))


@functools.cache
def others() -> dict[tuple[int, int], Path]:
    """Interpreters by minor version that funcmq supports, without this one's."""
    found: dict[tuple[int, int], Path] = {}
    for path in _candidates():
        said = subprocess.run([path, "-c", "import sys, venv; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False)
        if said.returncode == 0 and re.fullmatch(r"\d+ \d+\n", said.stdout):
            major, minor = map(int, said.stdout.split())
            if (major, minor) >= OLDEST and (major, minor) != HERE:
                found.setdefault((major, minor), path)
    return found


def one() -> Path:
    """Another interpreter; the test is skipped where there is none."""
    if not others():
        pytest.skip(f"only Python {HERE[0]}.{HERE[1]} is on this machine: nothing can cross versions")
    return others()[min(others())]


def environment(folder: Path) -> Path:
    """The Python of a virtual environment for another interpreter, with what workers need, and with this checkout as funcmq."""
    subprocess.run([one(), "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", "--editable", f"{ROOT}[worker]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_plain())
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, program: str, *argv: str, **variables: str) -> str:
    """What a program prints."""
    done = subprocess.run([python, "-P", "-c", program, *argv], capture_output=True, text=True, check=False, env=_plain() | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
