"""Free ports on the loopback address."""

from __future__ import annotations

import contextlib
import random
import socket

LOOPBACK = "127.0.0.1"
_LOWEST, _HIGHEST = 20_000, 32_000
"""Below the range from which systems take ports for outgoing connections: what is free now stays free until a server binds it."""


def free_ports(number: int) -> tuple[int, ...]:
    """So many different ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        return tuple(_hold(held) for _ in range(number))


def _hold(held: contextlib.ExitStack) -> int:
    for _ in range(1000):
        port = random.randrange(_LOWEST, _HIGHEST)
        probe = held.enter_context(socket.socket())
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            continue
        return port
    raise OSError("There is no free port on 127.0.0.1.")
