"""The connection that a Client shares with all its views: one fabric at a time, replaced where it failed."""

from __future__ import annotations

import asyncio
import threading

from funcmq.broker.errors import FuncmqError
from funcmq.broker.ids import new_hex
from funcmq.broker.settings import Settings
from funcmq.client.fabric import Fabric, Standing


class Connection:
    """What a client and all its views share: settings, the unnamed group, and the fabric that is connected now.

    :param loop: the loop to live on; None: the one that runs at first use.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.settings = settings
        self.unnamed = new_hex()
        self.left = False
        self._loop = loop
        self._lock = threading.Lock()
        self._fabric = Fabric(settings, self.unnamed)

    @property
    def fabric(self) -> Fabric:
        """The fabric of now, connecting at least; one that failed is replaced.  Thread-safe.

        :raises RuntimeError: no event loop runs here, or the client was left.
        """
        if self._fabric.root is not None and not self._fabric.closed:
            return self._fabric
        if self.left:
            raise RuntimeError("this client is closed")
        with self._lock:
            if self._fabric.closed:
                self._fabric = Fabric(self.settings, self.unnamed)
            self._start(self._fabric)
            return self._fabric

    def _start(self, fabric: Fabric) -> None:
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        self._loop = self._loop or running
        if self._loop is None:
            raise RuntimeError("A Client works inside a running event loop; in plain scripts use Executor.")
        if self._loop is running:
            fabric.start()
        elif self._loop.is_closed():
            self._loop = None
            self._start(fabric)
        else:
            self._loop.call_soon_threadsafe(fabric.start)

    @property
    def last(self) -> Fabric:
        """The fabric of now, or the last one there was."""
        return self._fabric

    async def ready(self) -> Standing:
        """The parts of the connection, connected if need be."""
        return await self.fabric.ready()

    async def leave(self, patience: float | None) -> None:
        """Send what was submitted, for `patience` seconds at most, and disconnect."""
        self.left = True
        fabric = self._fabric
        if fabric.root is None:
            return
        try:
            async with asyncio.timeout(patience):
                if not fabric.root.done():
                    await (await fabric.ready()).sender.flush()
        except (TimeoutError, FuncmqError):
            pass
        finally:
            fabric.close()
            await asyncio.wait({fabric.root})

    def group_id(self, group: str) -> str:
        """Id of a group; while the user is unknown, its name, which `attach` takes as well."""
        try:
            return self._fabric.standing.identity.group(group)
        except FuncmqError:
            return group or self.unnamed
