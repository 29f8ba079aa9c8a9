"""The connection of one Client: everything behind it that lives on one event loop.

Order of life: the front door is asked who we are, then listener, sender, sweep, canceller and the asker for reasons run side by side in
one TaskGroup until `close`.  Shutdown is the reverse: nothing new is sent, the stream is left, and futures that are still open end with
`Unreachable`, because nobody is there any more to resolve them; their tasks go on.  A Fabric connects once; what failed is replaced by a
new one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from funcmq.broker import api, values
from funcmq.broker.errors import Busy, ConfigurationError, FuncmqError, Unreachable
from funcmq.broker.functions import Recorded, Recorder
from funcmq.broker.http import Api
from funcmq.broker.ids import created_at, is_hash, new_id, short
from funcmq.broker.link import Delivery
from funcmq.broker.messages import MAX_INLINE, FunctionRef
from funcmq.broker.settings import Settings, config_dir
from funcmq.broker.signing import PrivateKey, PublicKey
from funcmq.client.bundler import Bundler
from funcmq.client.cancels import Canceller, Reasons
from funcmq.client.directory import Directory
from funcmq.client.futures import FutureAsArgument, TaskFuture, cancelled_error
from funcmq.client.inbox import Inbox
from funcmq.client.known import KnownEndpoints
from funcmq.client.options import ByValue, Scope
from funcmq.client.outcomes import copy
from funcmq.client.sender import Identity, Parts, Sender, Trouble, persist
from funcmq.client.stream import Listener

log = logging.getLogger("funcmq.client")

PATIENCE_S = 5.0
"""How long the very first request is repeated before the fabric counts as unreachable."""
SWEEP_S = 30.0
SWEEP = 10_000
"""Tasks in one sweep; the next one goes on with the others."""
QUERY = 1000
"""Tasks in one question to the store."""

Function = Callable[..., Any] | str | Recorded
"""What can be submitted: a function, the id of one, or a record made before."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is while connected."""

    front: Api
    identity: Identity
    directory: Directory
    listener: Listener
    sender: Sender
    canceller: Canceller
    reasons: Reasons


class Fabric:
    """See the module.  `submit` and what is said to be thread-safe may be called from anywhere, coroutines on the loop of `run` only.

    :param unnamed: name of the unnamed group.
    """

    def __init__(self, settings: Settings, unnamed: str) -> None:
        self.settings, self.unnamed = settings, unnamed
        self.thread = 0
        self.closed = False
        self.trouble = Trouble()
        self.inbox = Inbox(self._key_of, self._name_of)
        self.pid = os.getpid()
        self._bundler = Bundler(self._wake)
        self._records: dict[str, bytes] = {}
        self._recorders: dict[int | str, tuple[ByValue, Recorder]] = {}
        self._room = threading.Condition()
        self._waiters = 0
        self._standing: Standing | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._dead: FuncmqError | None = None
        self._unknown: asyncio.Queue[TaskFuture[Any]] = asyncio.Queue()
        self.root: asyncio.Task[None] | None = None
        """The task in which `run` runs."""

    # Submitting: any thread

    def submit(self, scope: Scope, function: Function, value: list[Any]) -> TaskFuture[Any]:
        """A future for one task whose argument slot carries `value`.  What cannot be sent is the future's own error.

        :raises TypeError: the function cannot be called, or an argument is a TaskFuture.
        :raises RuntimeError: the client is closed, or belongs to the process that this one was forked from.
        """
        self._check_alive()
        name, function_id = "", ""
        try:
            function_id, name = self._known(function, scope)
            slot = values.pack(value, f"value of the arguments of {name}", self._max_inline())
        except FuncmqError as broken:
            if isinstance(broken.__cause__, FutureAsArgument):
                raise broken.__cause__ from None
            future: TaskFuture[Any] = TaskFuture(self, new_id(), name, scope)
            future.finish("failed", error=broken.with_traceback(None))
            return future
        future = TaskFuture(self, new_id(), name, scope, (function_id, slot))
        if scope.key:
            future.key = scope.key
        self.inbox.expect(future)
        self._bundler.add(future, scope)
        return future

    def _check_alive(self) -> None:
        if self.closed:
            raise RuntimeError("cannot submit: this client is closed")
        if os.getpid() != self.pid:
            raise RuntimeError("cannot submit: this client belongs to the parent process; make a new one after a fork")

    def _max_inline(self) -> int:
        return self._standing.identity.max_inline if self._standing else MAX_INLINE

    def _known(self, function: Function, scope: Scope) -> tuple[str, str]:
        """Id and name of a function, which the front door will have before a task names it."""
        if isinstance(function, str):
            if not is_hash(function):
                raise TypeError(f"{function!r} is neither a function nor the id of one (64 hex digits).")
            self._bundler.know(FunctionRef(function, short(function)))
            return function, short(function)
        recorded = function if isinstance(function, Recorded) else self.record(function, scope)
        if recorded.id not in self._bundler.refs:
            self._records[recorded.id] = recorded.record
            self._bundler.know(recorded.ref)
        return recorded.id, recorded.name

    def record(self, function: Callable[..., Any], scope: Scope) -> Recorded:
        """The record of a function, from the cache where that is safe.

        :raises TypeError: it cannot be called.
        :raises NotSerializable: it refers to something that cannot be sent.
        """
        if not callable(function):
            raise TypeError(f"A function is needed, or the id of one; {type(function).__name__} cannot be called.")
        by_value = scope.by_value
        at = by_value if isinstance(by_value, str | bool) else id(by_value)
        found = self._recorders.get(at)
        if found is None:
            found = self._recorders[at] = (by_value, Recorder(by_value))
        return found[1].record(function)

    def cancel_task(self, future: TaskFuture[Any]) -> bool:
        """See `TaskFuture.cancel`.  Thread-safe."""
        if self._bundler.withdraw(future):
            self.inbox.forget(future)
            future.finish("cancelled", error=cancelled_error(future))
            self.make_room()
            return True
        future.cancel_wanted = True
        if self._standing is not None:
            self._standing.canceller.want(future)
        return False

    def wait_for_room(self, most: int) -> None:
        """Block the calling thread while `most` tasks or more are open; never blocks the loop's own thread."""
        if len(self.inbox.futures) < most or threading.get_ident() == self.thread:
            return
        with self._room:
            self._waiters += 1
            try:
                self._room.wait_for(lambda: len(self.inbox.futures) < most or self.closed)
            finally:
                self._waiters -= 1

    def make_room(self) -> None:
        """Futures have ended.  Thread-safe."""
        if self._waiters:
            with self._room:
                self._room.notify_all()

    @property
    def open(self) -> list[TaskFuture[Any]]:
        """The futures that have not ended, in the order of their submission.  Thread-safe."""
        return list(self.inbox.futures.copy().values())

    def _wake(self) -> None:
        if self._standing is not None:
            self._standing.sender.wake()

    # What futures and the inbox ask

    def endpoint_name(self, future: TaskFuture[Any]) -> str:
        """Name of a task's endpoint, '' while it is not known."""
        return self._name_of(future.endpoint_id) if future.endpoint_id else ""

    def explain(self, future: TaskFuture[Any]) -> str:
        """See `TaskFuture.waiting_for`."""
        return self._standing.reasons.explain(future) if self._standing else f"connecting to {self.settings.url}"

    def _name_of(self, endpoint: str) -> str:
        return self._standing.directory.name(endpoint) if self._standing else endpoint

    def _key_of(self, endpoint: str) -> PublicKey | None:
        return self._standing.directory.key(endpoint) if self._standing else None

    # Life

    @property
    def standing(self) -> Standing:
        """The parts of the connection.

        :raises Unreachable: not connected.
        """
        if self._standing is None:
            raise Unreachable("The client is not connected.", hint="Use it in `async with`, or await something of it first.")
        return self._standing

    def start(self) -> None:
        """Run on the event loop of this thread, unless that was begun already."""
        if self.root is None:
            self.root = asyncio.get_running_loop().create_task(self.run(), name="funcmq client")

    async def ready(self) -> Standing:
        """Wait until `run` is connected.

        :raises FuncmqError: the first contact failed.
        """
        self.start()
        assert self.root is not None
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait({waiting, self.root}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._dead is not None:
            raise copy(self._dead)
        return self.standing

    async def run(self) -> None:
        """Connect, and serve until closed.  Ends all open futures when it returns, for whatever reason."""
        self.thread = threading.get_ident()
        try:
            async with Api(self.settings.url, self.settings.token) as front:
                self._standing = await self._connect(front)
                await self._serve(self._standing)
        except FuncmqError as error:
            self._dead = error
        finally:
            self.close()
            self._end_open()
            self._standing = None
            self.thread = 0
            self.make_room()

    async def _connect(self, front: Api) -> Standing:
        me = await persist(lambda: front.call("GET", "/me", None, api.Me), time.time() + PATIENCE_S, self.trouble)
        if self.settings.key is None:
            raise ConfigurationError("No signing key is configured.", hint="Run `funcmq login URL`, or set FUNCMQ_KEY to the path of one.")
        identity = Identity(me.user, me.name, me.max_inline, PrivateKey.load(self.settings.key), self.unnamed)
        directory = Directory(front, KnownEndpoints(config_dir() / "known_endpoints"))
        listener = Listener(front, self._handle, self._caught_up)
        canceller = Canceller(front, self.inbox, self.trouble)
        parts = Parts(front, identity, directory, listener, self._bundler, self.inbox, self._records, self.trouble)
        sender = Sender(parts, lambda bundle: canceller.accepted(bundle.futures), self._moved)
        return Standing(front, identity, directory, listener, sender, canceller, Reasons(front, self.inbox, directory, self.trouble))

    async def _serve(self, standing: Standing) -> None:
        parts = {"listen": standing.listener.run, "send": standing.sender.run, "cancel": standing.canceller.run}
        parts |= {"explain": standing.reasons.run, "sweep": self._sweep, "find": self._find}
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(), name=f"funcmq client: {name}") for name, run in parts.items()]
            self._ready.set()
            await self._closing.wait()
            for task in tasks:
                task.cancel()

    def close(self) -> None:
        """End `run`; what was not sent by now never is."""
        self.closed = True
        self._closing.set()

    def _end_open(self) -> None:
        unsent = self._bundler.take_all()
        if unsent and self._dead is None:
            log.warning("%d tasks were not sent: the client was closed before", len(unsent))
        while not self._unknown.empty():
            self.inbox.expect(self._unknown.get_nowait())
        for future in self.open:
            self.inbox.forget(future)
            future.finish("failed" if self._dead else future.state, error=copy(self._dead) if self._dead else _left(future))

    # What comes in

    async def _handle(self, delivery: Delivery) -> None:
        try:
            self.inbox.take(delivery.kind, delivery.body)
        except FuncmqError as wrong:
            self.inbox.refused += 1
            log.warning("a message on the result stream is refused: %s", wrong.message)
        self.make_room()
        await delivery.ack()

    async def _caught_up(self) -> None:
        """The stream stands again: read what may have been missed."""
        try:
            await self.query([future.task_id for future in self.open if future.state != "pending"])
        except (Busy, Unreachable) as error:
            log.info("cannot read the store now, the sweep will: %s", error.message)

    async def query(self, tasks: Iterable[bytes]) -> None:
        """Read from the store how these tasks stand, and end the futures whose results are there."""
        waiting = [task.hex() for task in tasks]
        while waiting:
            asked, waiting = waiting[:QUERY], waiting[QUERY:]
            answer = await self.standing.front.call("POST", "/tasks/query", api.TasksRequest(tasks=asked), api.QueryAnswer)
            self.inbox.answer(answer)
            self.make_room()
            if len(answer.more) < len(asked):
                waiting += answer.more

    async def _sweep(self) -> None:
        """The backstop: loss on the stream is allowed and silent, so only a timer can notice it."""
        at = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            before = time.time() - SWEEP_S
            old = [future.task_id for future in self.open if future.state != "pending" and created_at(future.task_id) < before]
            at = at if at < len(old) else 0
            try:
                await self.query(old[at : at + SWEEP])
            except FuncmqError as error:
                log.info("the sweep failed, and is repeated: %s", error.message)
            at += SWEEP

    # Tasks submitted elsewhere or earlier

    async def _moved(self, future: TaskFuture[Any], verdict: api.Verdict) -> None:
        """This key was used before: the future stands for that earlier task, wherever it runs."""
        self.inbox.forget(future)
        future.task_id = bytes.fromhex(verdict.id)
        await self._find_one(future)

    def look_up(self, task: str) -> TaskFuture[Any]:
        """A future for a task of which only the id is known."""
        future: TaskFuture[Any] = TaskFuture(self, bytes.fromhex(task), "")
        self._unknown.put_nowait(future)
        return future

    def future_of(self, task: str) -> TaskFuture[Any]:
        """The open future of a task, or a new one that `adopt` is to be told of."""
        identifier = bytes.fromhex(task)
        return self.inbox.futures.get(identifier) or TaskFuture(self, identifier, "")

    async def _find(self) -> None:
        while True:
            await self._find_one(await self._unknown.get())

    async def _find_one(self, future: TaskFuture[Any]) -> None:
        """Where there is no such task, the future ends as the front door says."""
        try:
            await self.adopt([(future, await self.standing.front.call("GET", f"/tasks/{future.id}", None, api.TaskView))])
        except FuncmqError as error:
            self.inbox.forget(future)
            future.finish("failed", error=error)

    async def adopt(self, tasks: Iterable[tuple[TaskFuture[Any], api.TaskView]]) -> None:
        """Let futures stand for these tasks: their groups are listened to first, the store is read then."""
        new: list[TaskFuture[Any]] = []
        for future, view in tasks:
            future.task_id, future.endpoint_id, future.group, future.sent = bytes.fromhex(view.id), view.endpoint, view.group, None
            future.known = "accepted" if view.state in api.ENDS else view.state
            future.name = future.name or view.function_name
            other = self.inbox.futures.get(future.task_id)
            if other is not None and other is not future:
                other.add_done_callback(_follower(future))
                continue
            await self.standing.directory.meet(view.endpoint)
            self.inbox.expect(future)
            new.append(future)
        for group in {future.group for future in new}:
            await self.standing.listener.listen(group)
        await self.query([future.task_id for future in new])


def _left(future: TaskFuture[Any]) -> Unreachable:
    if future.state == "pending":
        return Unreachable(f"The client was closed before it had sent task {future.id}.", hint="Submit it again.")
    message = f"The client that waited for task {future.id} is closed; the task itself goes on."
    return Unreachable(message, hint=f"See it again: `async for task in client.attach({future.group!r})`.")


def _follower(future: TaskFuture[Any]) -> Callable[[Any], None]:
    """Ends this future as another one for the same task has ended."""

    def follow(done: TaskFuture[Any]) -> None:
        error = done.exception(0)
        future.finish(done.end, None if error else done.result(0), error, done.outcome)

    return follow
