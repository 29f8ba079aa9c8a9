"""Listening to groups: one session with the front door, and the link that consumes its stream.

The order is the front door's (bind, then the listener's row) and then the reader's: whoever calls `listen` reads the store after it has
returned, so that between stream and store nothing can fall through.  A session that has expired is replaced by a new one that listens to
the same groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from funcmq.broker import api
from funcmq.broker.connection import Broker
from funcmq.broker.consumer import Consumer, Delivery
from funcmq.broker.errors import FuncmqError, NotFound, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.link import Link
from funcmq.broker.transport import Ways

log = logging.getLogger("funcmq.client")

SILENT_S = 15.0
"""How long a link may be up without its queue before the session counts as expired."""
AGAIN_S = 5.0
"""Pause after a session was refused; meanwhile the sweep finds results."""
PREFETCH = 64
MOST_GROUPS = 1000


class _Expired(Exception):
    """The session is gone."""


class _LoggedOut(Exception):
    """The token works no more, said the front door, and so nothing of this client does."""


class Listener:
    """Keeps a session for the groups listened to.

    :param handle: gets every delivery.
    :param caught_up: runs after every (re)connect: what was missed is in the store.
    :raises ConfigurationError: `FUNCMQ_TRANSPORT` names no way to connect.
    """

    def __init__(self, front: Api, handle: Callable[[Delivery], Awaitable[None]], caught_up: Callable[[], Awaitable[None]]) -> None:
        self._front, self._handle, self._caught_up = front, handle, caught_up
        self._ways = Ways.by(front)
        self._groups: set[str] = set()
        self._names: dict[str, str] = {}
        """What their user calls groups, by id."""
        self._session: api.SessionAnswer | None = None
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._standing: tuple[Link, Consumer] | None = None

    @property
    def connected(self) -> bool:
        """Whether results come in by themselves now."""
        return self._standing is not None and self._standing[0].up and self._standing[1].ready.is_set()

    async def renew(self, group: str) -> None:
        """As `listen`, also where this group is listened to already: results that are on their way to the store, and were on the stream
        before, come once more.  For whoever asks the store next about tasks that nobody here waited for.
        """
        async with self._lock:
            if self._session is not None and group in self._groups:
                await self._repeat(self._session, group)
        await self.listen(group)

    async def listen(self, group: str, name: str = "") -> None:
        """Return when everything that is said of this group from now on reaches the stream.  `name`: what its user calls it, if anything.

        :raises FuncmqError: as the front door says; nothing has changed then, and the call may be repeated.
        """
        if group in self._groups and self._session is not None:
            return
        if name:
            self._names[group] = name
        async with self._lock:
            if self._session is not None:
                await self._extend(group)
            if self._session is None:
                await self._open(self._groups | {group})
            self._groups.add(group)

    async def _open(self, groups: set[str]) -> None:
        first, *others = _pages(groups)
        session = await self._front.call("POST", "/sessions", self._request(first), api.SessionAnswer)
        for page in others:
            await self._listen(session, page)
        self._session = session
        self._changed.set()

    async def _extend(self, group: str) -> None:
        """One more group; a session that is gone is forgotten."""
        assert self._session is not None
        if group not in self._groups:
            await self._repeat(self._session, group)

    async def _repeat(self, session: api.SessionAnswer, group: str) -> None:
        try:
            await self._ask(session, {group})
        except NotFound:
            if await self._lives(session):
                raise  # it is the group that is not ours
            self._session = None

    async def _lives(self, session: api.SessionAnswer) -> bool:
        try:
            await self._ask(session, self._groups)
        except NotFound:
            return False
        return True

    async def _ask(self, session: api.SessionAnswer, groups: set[str]) -> None:
        for page in _pages(groups):
            await self._listen(session, page)

    async def _listen(self, session: api.SessionAnswer, groups: list[str]) -> None:
        await self._front.tell("POST", f"/sessions/{session.id}/groups", self._request(groups))

    def _request(self, groups: list[str]) -> api.SessionRequest:
        return api.SessionRequest(groups=groups, names={group: self._names[group] for group in groups if group in self._names})

    async def run(self) -> None:
        """Consume until cancelled.

        :raises NotLoggedIn: the token works no more.
        """
        while True:
            self._changed.clear()
            session = self._session
            if session is None and self._groups:
                await self._renew()
            elif session is None:
                await self._changed.wait()
            else:
                await self._follow(session)

    async def _renew(self) -> None:
        try:
            async with self._lock:
                if self._session is None:
                    await self._open(self._groups)
        except NotLoggedIn:
            raise
        except FuncmqError as refused:
            log.warning("cannot listen for results: %s", refused.message)
            await asyncio.sleep(AGAIN_S)

    async def _follow(self, session: api.SessionAnswer) -> None:
        """Consume one session, until it has expired or was replaced."""
        try:
            async with asyncio.TaskGroup() as group:
                consuming = group.create_task(self._consume(session), name="consume results")
                await self._changed.wait()
                consuming.cancel()
        except* _Expired:
            log.info("the session %s has expired; a new one is made", session.id)
            if self._session is session:
                self._session = None
        except* _LoggedOut:
            raise NotLoggedIn from None
        finally:
            self._standing = None

    async def _consume(self, session: api.SessionAnswer) -> None:
        stream = session.streams[0]
        up = asyncio.Event()
        rounds = 0

        async def broker() -> Broker:
            nonlocal rounds
            rounds += 1
            try:
                if rounds > 1 and not await self._lives(session):
                    raise _Expired
            except NotLoggedIn:
                raise _LoggedOut from None  # what a link takes for a FuncmqError it would try again
            return Broker(tuple(stream.urls), stream.user, stream.password)

        async def on_up(_: Link) -> None:
            up.set()

        async with Link("funcmq client", broker, on_up=on_up, ways=self._ways) as link, asyncio.TaskGroup() as group:
            self._standing = link, link.consume(stream.queue, self._handle, prefetch=PREFETCH)
            group.create_task(link.ended(), name="the stream's end")
            await self._greet(up, *self._standing)

    async def _greet(self, up: asyncio.Event, link: Link, consumer: Consumer) -> None:
        """After every connect: when the queue is really consumed, read the store; a queue that cannot be consumed is gone."""
        while True:
            await up.wait()
            up.clear()
            try:
                async with asyncio.timeout(SILENT_S):
                    await link.ready()
                    await consumer.ready.wait()
            except TimeoutError:
                if link.up:
                    raise _Expired from None
                continue
            await self._caught_up()


def _pages(groups: set[str]) -> list[list[str]]:
    """As many groups at a time as the front door takes."""
    every = sorted(groups)
    return [every[at : at + MOST_GROUPS] for at in range(0, len(every), MOST_GROUPS)]
