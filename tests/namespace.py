"""A network of its own, from which this host can be reached at one address and nothing else anywhere."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from funcmq.dev.process import run


@dataclass(frozen=True)
class Namespace:
    """`host` is this host's address as seen from inside."""

    name: str
    host: str

    def inside(self, *words: str) -> list[str]:
        """The command line that runs a program inside."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--", *words]


@contextlib.asynccontextmanager
async def namespace() -> AsyncIterator[Namespace]:
    """One for as long as the context lasts; skips the test, with the reason, where this may not be made."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a network namespace")
    if not (shutil.which("ip") and shutil.which("nsenter")):
        pytest.skip("there is no ip or no nsenter here (iproute2, util-linux)")
    name, net = f"fq{secrets.token_hex(4)}", f"198.18.{random.randrange(256)}"
    status, said = await run(["ip", "netns", "add", name], os.environ)
    if status:
        pytest.skip(f"no network namespace can be made: {said}")
    try:
        host, inner = f"{name}a", f"{name}b"
        for line in (
            f"ip link add {host} type veth peer name {inner} netns {name}",
            f"ip address add {net}.1/24 dev {host}",
            f"ip link set {host} up",
            f"ip -n {name} address add {net}.2/24 dev {inner}",
            f"ip -n {name} link set {inner} up",
            f"ip -n {name} link set lo up",
        ):
            status, said = await run(line.split(), os.environ)
            if status:
                pytest.skip(f"no network between namespaces can be made: {line}: {said}")
        yield Namespace(name, f"{net}.1")
    finally:
        await run(["ip", "netns", "del", name], os.environ)
