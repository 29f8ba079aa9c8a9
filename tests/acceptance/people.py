"""Persons at terminals: each with an account, a home and commands as one types them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from funcmq.broker.lifeline import VARIABLE

BIN = Path(sys.executable).parent
UIDS = {"ada": 58231, "bob": 58232}
"""Accounts that no system gives to anybody."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command has answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its data."""
        return json.loads(self.out)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at one machine; `uid` 0 is the account of the tests."""

    name: str
    uid: int
    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def at(self, machine: str) -> Person:
        """The same person at another machine: another home folder, where nothing is configured."""
        home = self.home / machine
        home.mkdir()
        if self.uid:
            os.chown(home, self.uid, self.uid)
        return replace(self, home=home)

    async def types(self, line: str, **variables: str) -> Said:
        """Type a line, and read what it answers."""
        process = await self.begins(line, **variables)
        async with asyncio.timeout(120):
            out, err = await process.communicate()
        return Said(process.returncode or 0, out.decode(), err.decode())

    async def begins(self, line: str, **variables: str) -> asyncio.subprocess.Process:
        """Type a line that takes its time."""
        environment = {
            "HOME": str(self.home),
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LANG": "C.UTF-8",
            VARIABLE: str(os.getpid()),
        }
        return await asyncio.create_subprocess_exec(
            *_account(self.uid),
            "/bin/sh",
            "-c",
            line,
            cwd=self.home,
            env={**environment, **self.variables, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


@contextmanager
def people(*names: str) -> Iterator[list[Person]]:
    """Persons with accounts of their own, where the tests may give them any (as root, with an interpreter that everybody can read);
    elsewhere with homes of their own in the account of the tests.
    """
    root = Path(tempfile.mkdtemp(prefix="funcmq-people-"))
    root.chmod(0o755)
    try:
        yield [_person(name, root) for name in names]
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _person(name: str, root: Path) -> Person:
    home = root / name
    home.mkdir(mode=0o700)
    uid = UIDS[name] if separate() else 0
    if uid:
        os.chown(home, uid, uid)
    return Person(name, uid, home)


@cache
def separate() -> bool:
    """Whether accounts of their own can be had here, in which funcmq can be imported."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    tried = [*_account(UIDS["ada"]), "/bin/sh", "-c", f"{BIN}/funcmq --help"]
    return subprocess.run(tried, cwd="/", env={"PATH": os.defpath}, capture_output=True, check=False).returncode == 0


def _account(uid: int) -> list[str]:
    """What a command line begins with that runs as this user."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"] if uid else []
