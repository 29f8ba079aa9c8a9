"""Bundles on their way to the front door: a few at a time, each repeated with the same bytes until the answer is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from funcmq.broker import api, environment
from funcmq.broker.errors import Busy, EnvironmentMismatch, FuncmqError, InvalidRequest, NotFound, NotLoggedIn, Unreachable, rebuild
from funcmq.broker.http import Api
from funcmq.broker.ids import group_id, is_id
from funcmq.broker.signing import PrivateKey
from funcmq.client.bundler import Address, Bundle, Bundler, Sealed
from funcmq.client.directory import Directory
from funcmq.client.functions import Functions
from funcmq.client.futures import TaskFuture
from funcmq.client.inbox import Inbox
from funcmq.client.names import Names
from funcmq.client.outcomes import copy
from funcmq.client.stream import Listener

log = logging.getLogger("funcmq.client")
T = TypeVar("T")

IN_FLIGHT = 4
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0


@dataclass(slots=True)
class Trouble:
    """Why nothing gets through at the moment; `since` is seconds since the epoch, 0 while all is well."""

    since: float = 0.0
    said: str = ""

    def begin(self, error: FuncmqError) -> None:
        """A request failed and is tried again."""
        if not self.since:
            self.since = time.time()
            log.warning("%s Trying again.", error.message)
        self.said = error.message

    def end(self) -> None:
        """One got through."""
        if self.since:
            log.warning("The front door answers again after %.0f s.", time.time() - self.since)
        self.since, self.said = 0.0, ""


async def persist(call: Callable[[], Awaitable[T]], deadline: float, trouble: Trouble) -> T:
    """The answer to a request that may safely be repeated; after `deadline` (seconds since the epoch) the last error stands.

    :raises FuncmqError: what the other side named, or `Busy` or `Unreachable` after the deadline.
    """
    wait = FIRST_WAIT_S
    while True:
        try:
            answer = await call()
        except (Busy, Unreachable) as error:
            asked = error.retry_after if isinstance(error, Busy) and error.details else 0.0
            pause = max(wait * random.uniform(0.5, 1.5), asked)
            if time.time() + pause > deadline:
                raise
            trouble.begin(error)
            await asyncio.sleep(pause)
            wait = min(wait * 2, LONGEST_WAIT_S)
        else:
            trouble.end()
            return answer


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is logged in, and with what this machine signs; `name` is the unnamed group's."""

    user: str
    name: str
    max_inline: int
    key: PrivateKey
    unnamed: str

    def group(self, group: str) -> str:
        """Id of a group given by id, by name, or as '' for the unnamed one."""
        return group if is_id(group) else group_id(self.user, group or self.unnamed)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a sender works with."""

    front: Api
    identity: Identity
    directory: Directory
    listener: Listener
    bundler: Bundler
    inbox: Inbox
    functions: Functions
    names: Names
    trouble: Trouble


Moved = Callable[[TaskFuture[Any], api.Verdict], Awaitable[None]]


class Sender:
    """Takes bundles from the bundler and gets them accepted.

    :param accepted: called with every bundle that was, except for the tasks whose verdict says otherwise.
    :param moved: called with a future that stands for an earlier task from now on, and the verdict that says so.
    """

    def __init__(self, parts: Parts, accepted: Callable[[Bundle], None], moved: Moved) -> None:
        self._parts, self._accepted, self._moved = parts, accepted, moved
        self._free = asyncio.Semaphore(IN_FLIGHT)
        self._registering = asyncio.Lock()
        self._bell = Bell()
        self._under_way = 0
        self._idle = asyncio.Event()

    def wake(self) -> None:
        """There is something to take.  Thread-safe."""
        self._bell.ring()

    async def flush(self) -> None:
        """Return when all that was submitted before is accepted or has failed."""
        while self._under_way or len(self._parts.bundler):
            self._idle.clear()
            await self._idle.wait()

    async def run(self) -> None:
        """Send until cancelled.

        :raises NotLoggedIn: the token works no more.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                await self._free.acquire()  # before taking: what is submitted while we wait here joins the bundle
                bundle = self._parts.bundler.take()
                if bundle is None:
                    self._free.release()
                    self._settle()
                    await self._bell.wait()
                    continue
                self._under_way += 1
                group.create_task(self._send(bundle), name="send a bundle")

    def _settle(self) -> None:
        if not self._under_way and not len(self._parts.bundler):
            self._idle.set()

    async def _send(self, bundle: Bundle) -> None:
        try:
            await self._submit(bundle)
        except FuncmqError as error:
            self._fail(bundle.futures, error)
            if isinstance(error, NotLoggedIn):
                raise  # it is not about these tasks
        finally:
            self._under_way -= 1
            self._free.release()
            self._settle()

    async def _submit(self, bundle: Bundle) -> None:
        parts = self._parts
        patience = time.time() + min(future.scope.expires_s for future in bundle.futures if future.scope)
        sealed = await persist(lambda: self._seal(bundle), patience, parts.trouble)
        if sealed is None:
            return
        parts.inbox.follow(sealed.id, bundle.sent)

        def post() -> Awaitable[api.SubmitAnswer]:
            return parts.front.send_raw("/tasks", sealed.data, api.SubmitAnswer)

        answer = await persist(post, sealed.not_after / 1000, parts.trouble)
        bundle.sent.accepted = time.time()
        if bundle.sent.state == "pending":
            bundle.sent.state = "accepted"
        self._accepted(bundle)
        for verdict in answer.verdicts:
            await self._judge(bundle.futures[verdict.index], verdict)

    async def _seal(self, bundle: Bundle) -> Sealed | None:
        """Everything that must be so before the request leaves: endpoint known, its Python right, group listened to, functions registered.
        None: nothing of it is to be sent.
        """
        parts, (group, wanted, offline) = self._parts, bundle.lane
        await self._name(bundle)
        view = await parts.directory.resolve(wanted, offline, len(bundle.futures))
        address = Address(parts.identity.user, parts.identity.key, view.id, parts.identity.group(group))
        for future in bundle.futures:
            future.endpoint_id, future.group = view.id, address.group
        await self._weed(bundle, view)
        if not bundle.futures:
            return None
        await self._register({future.function for future in bundle.futures})
        await parts.listener.listen(address.group, group if group and not is_id(group) else "")
        return parts.bundler.seal(bundle, address, time.time())

    async def _name(self, bundle: Bundle) -> None:
        """Put ids in the place of names; who names a function that is not there is taken out, and fails."""
        for future in [future for future in bundle.futures if "/" in future.function]:
            try:
                future.function = await self._parts.names.find(future.function)
            except (NotFound, InvalidRequest) as unknown:
                bundle.futures.remove(future)
                self._fail([future], unknown)

    async def _weed(self, bundle: Bundle, view: api.EndpointView) -> None:
        """Take out, and fail, what no pool of the endpoint could run; what is known of it may be old, so it is looked at anew first."""
        if any(self._misfit(future, view) for future in bundle.futures):
            view = await self._parts.directory.renewed(view)
            for future in list(bundle.futures):
                if error := self._misfit(future, view):
                    bundle.futures.remove(future)
                    self._fail([future], error)

    def _misfit(self, future: TaskFuture[Any], view: api.EndpointView) -> EnvironmentMismatch | None:
        needs, why = self._parts.functions.needs(future.function)
        if not needs or not view.online or future.scope is None:
            return None
        return environment.check(environment.Wanted(future.name, needs, why), view.name, view.pools, future.scope.how.pool)

    async def _register(self, functions: set[str]) -> None:
        records = self._parts.functions.unsent
        if records.keys().isdisjoint(functions):
            return
        async with self._registering:
            for function in functions & records.keys():
                await self._parts.front.send_raw("/functions", records[function], api.FunctionAnswer)
                del records[function]

    async def _judge(self, future: TaskFuture[Any], verdict: api.Verdict) -> None:
        if verdict.verdict == "refused":
            self._fail([future], rebuild(verdict.code, verdict.message, verdict.hint, {"task": future.id}))
        elif verdict.id and verdict.id != future.id:
            with contextlib.suppress(Busy, Unreachable):  # the sweep looks again
                await self._moved(future, verdict)

    def _fail(self, futures: list[TaskFuture[Any]], error: FuncmqError) -> None:
        for future in futures:
            self._parts.inbox.forget(future)
            future.finish("failed", error=copy(error))


class Bell:
    """Rings one event loop, from any thread; ringing again before it was heard costs next to nothing."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._event = asyncio.Event()
        self._rung = False

    def ring(self) -> None:
        """Thread-safe."""
        if self._rung:
            return
        self._rung = True
        if threading.get_ident() == self._thread:
            self._event.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Until it was rung since the last wait."""
        await self._event.wait()
        self._event.clear()
        self._rung = False
