"""A whole private fabric on this machine: RabbitMQ node, `funcmq serve`, one endpoint.

All are processes of their own in one data folder (`funcmq.dev.folder`), with ports of the loopback address.  They start side by side,
because RabbitMQ takes the longest, and are taken down one by one: daemon, front door, broker.  When the owner is killed the hard way, the
node ends with it by its guardian, and ours by `FUNCMQ_EXIT_WITH` (`funcmq.broker.lifeline`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from funcmq.broker import api, lifeline
from funcmq.broker.connection import Broker, check
from funcmq.broker.errors import ConfigurationError, FuncmqError, NotAllowed, Unreachable
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.dev import account, daemon
from funcmq.dev.brokers import Source, choose, refused
from funcmq.dev.databases import is_shared
from funcmq.dev.folder import Folder
from funcmq.dev.ports import LOOPBACK
from funcmq.dev.process import Child, run, tail
from funcmq.dev.rabbitmq import Node

ENDPOINT = "dev"
POOL = "local"
START_S = 60.0
SERVE_GRACE_S = 15.0
LISTENS = b"listening on"
"""What `funcmq serve` logs when it does."""
PROBE_S = 0.05
"""Between two questions to a process that starts; there is nothing else to wait on from outside."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the stack is to be.

    `data` None is a temporary folder; `port` 0 a free one; `workers` 0 one for each core, at least two; `broker` '' is a private RabbitMQ
    node, otherwise the URL of a prepared one with the credentials of its internal user; `database` '' is a SQLite file in the data
    folder, otherwise a URL with credentials: PostgreSQL's tables are made, and any number of front doors may share it.
    """

    data: Path | None = None
    port: int = 0
    workers: int = 0
    broker: str = ""
    database: str = ""


class Environment(Protocol):
    """Where variables can be set: pytest's MonkeyPatch is one."""

    def setenv(self, name: str, value: str) -> None: ...


class Stack:
    """See the module.  `async with Stack(...) as stack:` has it running, with the endpoint online, or raises what is wrong."""

    def __init__(self, options: Options = Options(), note: Callable[[str], None] = lambda _: None) -> None:
        self.options, self._note = options, note
        self.started_s = 0.0
        """Seconds it took to start."""
        self._exit = contextlib.AsyncExitStack()
        self._folder: Folder | None = None
        self._source: Source | None = None
        self._serves: list[Child] = []
        self._daemon: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._port, self._token, self._endpoint_id = 0, "", ""

    async def __aenter__(self) -> Stack:
        began = time.monotonic()
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        self.started_s = time.monotonic() - began
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exit.aclose()

    @property
    def folder(self) -> Folder:
        """Its data folder."""
        assert self._folder is not None, "the stack is not started"
        return self._folder

    @property
    def url(self) -> str:
        """The front door."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def token(self) -> str:
        """The administrator's token."""
        return self._token

    @property
    def endpoint_id(self) -> str:
        """The id of its one endpoint, whose name is `dev`."""
        return self._endpoint_id

    @property
    def environment(self) -> dict[str, str]:
        """What a program inside the stack gets on top of the caller's environment."""
        return {
            "FUNCMQ_URL": self.url,
            "FUNCMQ_TOKEN": self.token,
            "FUNCMQ_KEY": str(self.folder.key),
            "FUNCMQ_ENDPOINT": ENDPOINT,
            "FUNCMQ_HOME": str(self.folder.home),
            lifeline.VARIABLE: str(os.getpid()),
        }

    def use(self, environment: Environment) -> None:
        """Make this stack what is configured: `stack.use(monkeypatch)`."""
        for name, value in self.environment.items():
            environment.setenv(name, value)

    @property
    def source(self) -> Source:
        """Its RabbitMQ."""
        assert self._source is not None, "the stack is not started"
        return self._source

    async def died(self) -> NoReturn:
        """Wait until broker or a front door end by themselves, then raise Unreachable with its log. The daemon may come and go."""
        broker = asyncio.ensure_future(self.source.died())
        serves = {asyncio.ensure_future(serve.ended()): serve for serve in self._serves}
        try:
            await asyncio.wait({broker, *serves}, return_when=asyncio.FIRST_COMPLETED)
            if broker.done():
                broker.result()
            ended = next(future for future in serves if future.done())
            raise self._ended(serves[ended], ended.result())
        finally:
            for future in (broker, *serves):
                future.cancel()

    @property
    def front_doors(self) -> list[int]:
        """The process ids of the front doors that run, oldest first."""
        return [serve.pid for serve in self._serves if serve.alive]

    async def kill_front_door(self, pid: int = 0) -> None:
        """`kill -9` this one, or the oldest; returns when it is gone."""
        serve = next(serve for serve in self._serves if serve.alive and pid in (0, serve.pid))
        os.kill(serve.pid, signal.SIGKILL)
        await serve.ended()
        self._serves.remove(serve)

    async def start_front_door(self) -> int:
        """One more front door at the same address, where none is left or the database can be shared; its process id, when it listens."""
        await self._start_serve()
        return self._serves[-1].pid

    async def restart_broker(self) -> None:
        """`kill -9` the private RabbitMQ node and start it again at the same ports, with all that was in its queues.

        Meant for a stack whose data folder is kept.
        """
        assert isinstance(self.source, Node), "a prepared broker is somebody else's"
        await self.source.kill()
        await self.source.start()

    async def until_online(self) -> None:
        """Return when the front door has heard of the endpoint lately."""
        await self._until(self._online, "the endpoint", None)

    async def kill_daemon(self) -> int:
        """`kill -9` the daemon; returns how many tasks its journal says were handed to the pool at that moment."""
        if pid := daemon.holder(self.folder.journal):
            await daemon.kill(pid)
        return daemon.launched(self.folder.journal)

    async def start_daemon(self) -> None:
        """Start the daemon as a person would: `funcmq endpoint start dev`, which detaches.  Returns when it is online."""
        await self._command("endpoint", "start", ENDPOINT)
        await self.until_online()

    async def _start(self) -> None:
        folder = self._folder = Folder.open(self.options.data)
        self._exit.enter_context(folder.lock())
        if folder.temporary:
            self._exit.callback(shutil.rmtree, folder.path, ignore_errors=True)
        self._port = folder.choose_port(self.options.port)
        remove = folder.path if folder.temporary else None
        source = self._source = choose(self.options.broker, folder.rabbitmq, remove)
        self._exit.push_async_callback(source.stop)
        self._note(
            "starting RabbitMQ, the front door and an endpoint" if not self.options.broker else "starting the front door and an endpoint"
        )
        source.prepare()
        await _both(source.start(), self._start_ours(folder))
        assert self._daemon is not None, "after _start_ours"
        await self._check_rights()
        await self._until(self._online, "the endpoint", self._daemon)
        self._watch = asyncio.create_task(self._report(self._daemon), name="watch the daemon")
        self._exit.callback(self._watch.cancel)

    async def _start_ours(self, folder: Folder) -> None:
        """Front door and daemon start while the broker does: each waits for it by itself."""
        self._code.unlink(missing_ok=True)
        if is_shared(self.options.database):
            await self._upgrade()
        await self._start_serve()
        self._token = await account.token(self.url, folder, self._code)
        await self._init_endpoint()
        await self._start_endpoint()

    async def _start_serve(self) -> None:
        argv = _funcmq("serve", "--code-file", str(self._code))
        name = "serve.log" if not self.front_doors else f"serve-{len(self.front_doors) + 1}.log"
        log = self.folder.logs / name
        before = log.stat().st_size if log.exists() else 0
        serve = await Child.start("funcmq serve", argv, self._serve_environment(), log)
        self._serves.append(serve)
        self._exit.push_async_callback(serve.end, SERVE_GRACE_S)

        async def listens() -> bool:  # its own word: where several share the port, another one would answer
            with log.open("rb") as said:
                said.seek(before)
                return LISTENS in said.read()

        await self._until(listens, "funcmq serve", serve)

    def _serve_environment(self) -> dict[str, str]:
        folder, source = self.folder, self.source
        return os.environ | {
            "FUNCMQ_HOST": LOOPBACK,
            "FUNCMQ_PORT": str(self._port),
            "FUNCMQ_BROKER_AUTH_HOST": LOOPBACK,
            "FUNCMQ_BROKER_AUTH_PORT": str(source.auth_port),
            "FUNCMQ_BROKER_URL": source.url,
            "FUNCMQ_PUBLIC_BROKER_URLS": "",
            "FUNCMQ_MANAGEMENT_URL": source.management_url,
            "FUNCMQ_DATABASE_URL": self.options.database or f"sqlite:///{folder.database}",
            lifeline.VARIABLE: str(os.getpid()),
        }

    async def _init_endpoint(self) -> None:
        file = self.folder.endpoint_file(ENDPOINT)
        if not file.exists():
            await self._command("endpoint", "init", ENDPOINT, *self._endpoint_options())
        daemon.adjust(file, self.url, self.options.workers)

    async def _start_endpoint(self) -> None:
        self._exit.push_async_callback(daemon.end, self.folder.journal)
        argv = _funcmq("endpoint", "start", ENDPOINT, "--foreground")
        self._daemon = await Child.start("the endpoint daemon", argv, os.environ | self.environment, self.folder.logs / "endpoint.log")
        self._exit.push_async_callback(self._daemon.end, daemon.GRACE_S)

    def _endpoint_options(self) -> tuple[str, ...]:
        workers = self.options.workers or max(2, os.cpu_count() or 2)
        folder = self.folder
        return ("--workers", str(workers), "--run-dir", str(folder.run), "--journal-dir", str(folder.journal), "--yes")

    async def _report(self, child: Child) -> None:
        status = await child.ended()
        self._note(f"the endpoint daemon ended with {status}; `funcmq endpoint start {ENDPOINT}` starts it again")

    @property
    def _code(self) -> Path:
        """Where `serve` leaves the first administrator's one-time code."""
        return self.folder.path / "code"

    async def _check_rights(self) -> None:
        """A prepared broker must ask our front door: a short-lived user of ours logs in.

        :raises ConfigurationError: it refuses them; the hint says what to set.
        """
        if not self.options.broker:
            return
        async with Api(self.url, self.token) as door:
            session = await door.call("POST", "/sessions", api.SessionRequest(groups=[new_hex()]), api.SessionAnswer)
        stream = session.streams[0]
        try:
            await check(Broker(tuple(stream.urls), stream.user, stream.password))
        except NotAllowed:
            raise refused(self.source.auth_port) from None

    async def _upgrade(self) -> None:
        """Make the tables of this release; a file has them made by `serve`.

        :raises ConfigurationError: the database cannot be used; the message is what `funcmq db upgrade` said.
        """
        status, said = await run(_funcmq("db", "upgrade"), self._serve_environment())
        if status:
            raise ConfigurationError(f"The database given cannot be used.\n{said}", hint="Check --database and FUNCMQ_DATABASE_URL.")

    async def _online(self) -> bool:
        async with Api(self.url, self.token) as door:
            found = [view for view in await door.list("/endpoints", api.EndpointView) if view.name == ENDPOINT]
        self._endpoint_id = found[0].id if found else ""
        return bool(found and found[0].online)

    async def _until(self, ready: Callable[[], Awaitable[bool]], what: str, child: Child | None) -> None:
        """Ask until the answer is yes.

        :raises Unreachable: the process ended, or START_S went by; with the tail of its log.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while not await ready():
                    if child is not None and not child.alive:
                        raise self._ended(child, await child.ended())
                    await asyncio.sleep(PROBE_S)
                return
        log = tail(child.log) if child else ""
        raise Unreachable(f"{what} is not ready after {START_S:g} s.\n{log}", hint=f"Its log is in {self.folder.logs}.")

    def _ended(self, child: Child, status: int) -> FuncmqError:
        return Unreachable(f"{child.name} ended with {status}.\n{tail(child.log)}", hint="Start again.")

    async def _command(self, *words: str) -> str:
        """Run a funcmq command inside the stack.

        :raises ConfigurationError: it failed; the message is what it said.
        """
        status, said = await run(_funcmq(*words), os.environ | self.environment)
        if status:
            raise ConfigurationError(f"`funcmq {' '.join(words)}` ended with {status}.\n{said}", hint="Please report this.")
        return said


async def _both(one: Coroutine[Any, Any, None], other: Coroutine[Any, Any, None]) -> None:
    """Run both; the first error ends the other and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(one)
            group.create_task(other)
    except* FuncmqError as failed:
        raise failed.exceptions[0] from None


def _funcmq(*words: str) -> list[str]:
    return [sys.executable, "-m", "funcmq", *words]
