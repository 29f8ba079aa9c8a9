"""Function records on the pool's shared folder: fetched once by id, checked, and written so that a reader never sees half of one."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from funcmq.broker import codec
from funcmq.broker.errors import Busy, FuncmqError, InvalidRequest, NotLoggedIn, Unreachable
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord

log = logging.getLogger("funcmq.functions")

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0


class Functions:
    """The records at hand.

    :param fetch: the bytes of a record from the front door.
    """

    def __init__(self, folder: Path, fetch: Callable[[str], Awaitable[bytes]]) -> None:
        self._folder, self._fetch = folder, fetch
        self._known: set[str] = set()
        self._needs: dict[str, str] = {}

    def has(self, function: str) -> bool:
        """Whether workers can read it now."""
        if function in self._known:
            return True
        if not (self._folder / function).exists():
            return False
        self._known.add(function)
        return True

    def needs(self, function: str) -> str:
        """The minor version of Python that a function at hand needs, '' any."""
        found = self._needs.get(function)
        if found is None:
            try:
                found = codec.decode(FunctionRecord, (self._folder / function).read_bytes()).needs
            except (OSError, FuncmqError):  # the worker will say what is wrong with it
                return ""
            self._needs[function] = found
        return found

    async def get(self, function: str) -> None:
        """Bring it here, however long the front door is away or the disk is full.  Cancelling is safe.

        :raises FuncmqError: it cannot be had: the front door does not know it, or what it has is something else.
        """
        wait = FIRST_WAIT_S
        while True:
            try:
                data = await self._fetch(function)
                if sha256(data) != function:
                    raise InvalidRequest("The front door's record of this function is not what its id says.", hint="Register it again.")
                await asyncio.to_thread(write_whole, self._folder / function, data)
            except (Unreachable, Busy, NotLoggedIn, OSError) as later:
                log.warning("the function %s waits: %s", function[:16], later, extra={"action": "function_waits"})
            else:
                self._known.add(function)
                return
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_S)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all, readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_bytes(data)
    draft.rename(path)
