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
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from funcmq.broker import api, functions
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import ConfigurationError, FuncmqError, Unreachable
from funcmq.broker.http import Api
from funcmq.broker.ids import new_id
from funcmq.broker.messages import MAX_INLINE, FunctionRef, Slot
from funcmq.broker.settings import Settings, config_dir
from funcmq.broker.signing import PrivateKey, PublicKey
from funcmq.client.again import Again
from funcmq.client.bundler import Bundler
from funcmq.client.cancels import Canceller, Reasons
from funcmq.client.directory import Directory
from funcmq.client.functions import Function, Functions, Named
from funcmq.client.futures import FutureAsArgument, TaskFuture, cancelled_error
from funcmq.client.inbox import Inbox
from funcmq.client.known import KnownEndpoints
from funcmq.client.names import Names
from funcmq.client.options import Scope
from funcmq.client.outcomes import copy
from funcmq.client.reader import Reader
from funcmq.client.sender import Identity, Parts, Sender, Trouble, persist
from funcmq.client.stream import Listener

log = logging.getLogger("funcmq.client")

PATIENCE_S = 5.0
"""How long the very first request is repeated before the fabric counts as unreachable."""
TAILS = 256
"""Random halves of ids that are made at a time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What there is while connected."""

    front: Api
    identity: Identity
    directory: Directory
    listener: Listener
    reader: Reader
    sender: Sender
    canceller: Canceller
    reasons: Reasons
    names: Names

    async def group(self, given: str) -> str:
        """Id of a group that exists, by its id or its name.

        :raises NotFound: you have no such group.
        """
        return (await self.front.call("GET", f"/groups/{quote(given, safe='')}?tasks=false", None, api.GroupAnswer)).id


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
        self.guard = threading.Lock()
        self.max_inline = MAX_INLINE
        self._tails: list[bytes] = []
        self._bundler = Bundler(self._wake)
        self.functions = Functions(self._bundler.know)
        self._room = threading.Condition()
        self._waiters = 0
        self._standing: Standing | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._dead: FuncmqError | None = None
        self._unknown: list[tuple[TaskFuture[Any], str]] = []
        self.root: asyncio.Task[None] | None = None
        """The task in which `run` runs."""

    # Submitting: any thread

    def submit(self, scope: Scope, function: Function, value: list[Any]) -> TaskFuture[Any]:
        """A future for one task whose argument slot carries `value`.  What cannot be sent is the future's own error.

        :raises TypeError: the function cannot be called, or an argument is a TaskFuture.
        :raises RuntimeError: the client is closed, or belongs to the process that this one was forked from.
        """
        self._check_alive()
        ref = None
        try:
            ref = self.functions.ref(function, scope.by_value, scope.strategy)
            slot = functions.pack(value, "value of the arguments", self.max_inline, by_value=scope.by_value)
        except FuncmqError as broken:
            if isinstance(broken.__cause__, FutureAsArgument):
                raise broken.__cause__ from None
            return self._failed(ref.name if ref else "", broken)
        return self._put_in(scope, ref, slot)

    def submit_again(self, again: Again) -> TaskFuture[Any]:
        """A new task for a call that was signed before."""
        self._check_alive()
        return self._put_in(again.scope, self.functions.know(again.function), again.args)

    def _put_in(self, scope: Scope, ref: FunctionRef | Named, slot: Slot) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture(self, self._new_id(), ref.name, scope, (ref.id, slot))
        if scope.key:
            future.key = scope.key
        self.inbox.futures[future.task_id] = future
        self._bundler.add(future, scope)
        return future

    def _failed(self, name: str, error: FuncmqError) -> TaskFuture[Any]:
        """A future that has ended before it began."""
        if name:
            error.add_note(f"(function {name})")
        future: TaskFuture[Any] = TaskFuture(self, self._new_id(), name)
        future.finish("failed", error=error.with_traceback(None))
        return future

    def _new_id(self) -> bytes:
        """As `ids.new_id`, with random bytes fetched for many at a time; a forked child never gets here with ours."""
        try:
            tail = self._tails.pop()
        except IndexError:
            self._tails += [new_id()[6:] for _ in range(TAILS)]
            tail = self._tails.pop()
        return int(time.time() * 1000).to_bytes(6, "big") + tail

    def _check_alive(self) -> None:
        if self.closed:
            raise RuntimeError("cannot submit: this client is closed")
        if os.getpid() != self.pid:
            raise RuntimeError("cannot submit: this client belongs to the parent process; make a new one after a fork")

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
        except Exception as broken:
            self._dead = _known(broken)
            if self._dead is None:
                log.exception("the client broke: please report this")
                self._dead = FuncmqError(f"The client broke: {broken!r}.")
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
        self.max_inline = me.max_inline
        identity = Identity(me.user, me.name, me.max_inline, PrivateKey.load(self.settings.key), self.unnamed)
        directory = Directory(front, KnownEndpoints(config_dir() / "known_endpoints"))
        reader = Reader(front, self.inbox, directory, self.make_room)
        listener = reader.listener = Listener(front, self._handle, reader.caught_up)
        for future, task in self._unknown:
            reader.unknown.put_nowait((future, task))
        names = Names(front, self.functions)
        canceller = Canceller(front, self.inbox, self.trouble)
        reader.cancel = canceller.want
        parts = Parts(front, identity, directory, listener, self._bundler, self.inbox, self.functions, names, self.trouble)
        sender = Sender(parts, lambda bundle: canceller.accepted(bundle.futures), reader.moved)
        reasons = Reasons(front, self.inbox, directory, self.trouble)
        return Standing(front, identity, directory, listener, reader, sender, canceller, reasons, names)

    async def _serve(self, standing: Standing) -> None:
        parts = {"listen": standing.listener.run, "send": standing.sender.run, "cancel": standing.canceller.run}
        parts |= {"explain": standing.reasons.run, "sweep": standing.reader.sweep, "find": standing.reader.find}
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
        for future, _ in self._unknown:
            self.inbox.expect(future)
        for future in self.inbox.open:
            self.inbox.forget(future)
            future.finish("failed" if future.state == "pending" else future.state, error=_left(future, self._dead))

    # What comes in

    async def _handle(self, delivery: Delivery) -> None:
        try:
            self.inbox.take(delivery.kind, delivery.body)
        except FuncmqError as wrong:
            self.inbox.refused += 1
            log.warning("a message on the result stream is refused: %s", wrong.message)
        self.make_room()
        await delivery.ack()

    # Tasks submitted elsewhere or earlier

    def look_up(self, task: str) -> TaskFuture[Any]:
        """A future for a task of which only the id is known, or the end of it."""
        open_here = [future for future in self.inbox.open if future.id.endswith(task)]
        if len(open_here) == 1:
            return open_here[0]
        future: TaskFuture[Any] = TaskFuture(self, bytes.fromhex(task.zfill(32)), "")
        if self._standing is not None:
            self._standing.reader.unknown.put_nowait((future, task))
        else:
            self._unknown.append((future, task))
        return future

    def as_seen(self, view: api.TaskView) -> api.TaskView:
        """The same task, running where the stream has said so here before the store heard of it."""
        future = self.inbox.futures.get(bytes.fromhex(view.id))
        if future is None or future.state != "running" or view.state in (*api.ENDS, "running"):
            return view
        since, host = future.place
        return msgspec.structs.replace(view, state="running", started=since, host=host, waiting_for=future.waiting_for, why=None)

    def future_of(self, task: str) -> TaskFuture[Any]:
        """The open future of a task, or a new one that `Reader.adopt` is to be told of."""
        identifier = bytes.fromhex(task)
        return self.inbox.futures.get(identifier) or TaskFuture(self, identifier, "")


def _left(future: TaskFuture[Any], dead: FuncmqError | None) -> FuncmqError:
    """What a future ends with that nobody can resolve any more: why the connection ended, if it was not closed."""
    attach = f"See it again: `async for task in client.attach({future.group!r})`."
    if dead is not None:
        error = copy(dead)
        if future.state != "pending":
            error.add_note(f"The task {future.id} itself goes on. {attach}")
        return error
    if future.state == "pending":
        return Unreachable(f"The client was closed before it had sent task {future.id}.", hint="Submit it again.")
    return Unreachable(f"The client that waited for task {future.id} is closed; the task itself goes on.", hint=attach)


def _known(broken: BaseException) -> FuncmqError | None:
    """The error of ours among those with which the parts of a connection ended."""
    if isinstance(broken, BaseExceptionGroup):
        return next((found for inner in broken.exceptions if (found := _known(inner)) is not None), None)
    return broken if isinstance(broken, FuncmqError) else None
