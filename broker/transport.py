"""Which way a link takes: straight to the broker's AMQP port, or through a WebSocket of the front door, where a firewall lets nothing else
out.

The laws, kept by `Choice`:

1. The direct way is asked first.  The tunnel is taken when no broker has answered there for 5 s: a broker that is only restarting is not
   a firewall, so 30 s where the direct way has worked before in this process.
2. What worked last is what is tried first.
3. From the tunnel the direct way is looked at again after a minute, then after two, four … up to an hour, and every half minute while the
   tunnel itself is broken; when it answers, the link goes back to it.

`FUNCMQ_TRANSPORT=websocket` or `amqp` allows one of the two only.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiormq
from aiormq.connection import TransportFactory
from yarl import URL

from funcmq.broker.connection import LOST, Broker, Dialler, close, direct, heed_cancel, open_connection, say, within
from funcmq.broker.errors import ConfigurationError
from funcmq.broker.http import Api
from funcmq.broker.tunnel import Tunnel

log = logging.getLogger("funcmq.link")

VARIABLE = "FUNCMQ_TRANSPORT"
ANSWER_S = 5.0
RELAPSE_S = 30.0
FIRST_LOOK_S = 60.0
LONGEST_LOOK_S = 3600.0
LEAST_S = 2.0
"""Where a cluster has many nodes they share the 5 s, but each has this long."""


class Way(enum.Enum):
    """The values are what `FUNCMQ_TRANSPORT` may say."""

    DIRECT = "amqp"
    TUNNEL = "websocket"


def allowed(environ: Mapping[str, str] = os.environ) -> Way | None:
    """The one way that `FUNCMQ_TRANSPORT` allows; None: both.

    :raises ConfigurationError: it says something else.
    """
    text = environ.get(VARIABLE, "").strip().lower()
    if text in ("", "auto"):
        return None
    try:
        return Way(text)
    except ValueError:
        raise ConfigurationError(f"{VARIABLE} is {text!r}.", hint="It is amqp, websocket, or unset.") from None


class Choice:
    """The laws of the module, without I/O.  `clock` gives seconds that only grow; `look_s` is the minute of the third law."""

    def __init__(self, only: Way | None = None, clock: Callable[[], float] = time.monotonic, look_s: float = FIRST_LOOK_S) -> None:
        self.only = only
        self.last = only or Way.DIRECT
        """What worked last."""
        self._clock = clock
        self._silent_since: float | None = None
        self._allowance = ANSWER_S
        self._look_at = 0.0
        self._interval = look_s

    def round(self) -> Iterator[Way]:
        """The ways to try, one after the other, until one works.  What is said of one decides about the next."""
        yield self.last
        if self.only is not None:
            return
        if self.last is Way.TUNNEL and self.look_in <= 0:
            yield Way.DIRECT
        elif self.last is Way.DIRECT and self._silent_since is not None and self._clock() - self._silent_since >= self._allowance:
            yield Way.TUNNEL

    @property
    def look_in(self) -> float:
        """Seconds until the direct way should be looked at from the tunnel; endless where it may not be taken."""
        return float("inf") if self.only else self._look_at - self._clock()

    def failed(self, way: Way, began: float) -> None:
        """Nobody answered there; the try began at this time."""
        now = self._clock()
        if way is Way.TUNNEL:
            self._look_at = min(self._look_at, now + RELAPSE_S)
        elif self.last is Way.DIRECT:
            self._silent_since = began if self._silent_since is None else self._silent_since
        else:
            self._interval = min(self._interval * 2, LONGEST_LOOK_S)
            self._look_at = now + self._interval

    def answered(self, way: Way) -> None:
        """Somebody is there, though he may refuse us."""
        if way is Way.DIRECT:
            self._silent_since = None

    def worked(self, way: Way) -> bool:
        """A link stands this way; whether that is new."""
        self.answered(way)
        new, self.last = way is not self.last, way
        if way is Way.DIRECT:
            self._allowance = RELAPSE_S
        elif new:
            self._look_at = self._clock() + self._interval
        return new


@dataclass(frozen=True, slots=True)
class Route:
    """One way to one broker."""

    way: Way
    url: str
    dial: Dialler


class Ways:
    """What a link asks how to connect; kept for as long as its owner lives, because it remembers what worked.

    :param tunnel: the other dialler; None: only the direct way is known.
    """

    def __init__(self, tunnel: Tunnel | None = None, choice: Choice | None = None) -> None:
        self._tunnel = tunnel
        self._choice = choice or Choice(None if tunnel else Way.DIRECT)
        self._why = f"{VARIABLE}={self._choice.only.value}" if tunnel and self._choice.only else ""

    @classmethod
    def by(cls, front: Api) -> Ways:
        """Direct or through this front door, as `FUNCMQ_TRANSPORT` allows.

        :raises ConfigurationError: as `allowed` says.
        """
        return cls(Tunnel(front), Choice(allowed()))

    def routes(self, urls: tuple[str, ...]) -> Iterator[Route]:
        """What to try in one round, in this order, each after the one before has been reported as failed."""
        for way in self._choice.round():
            if way is Way.TUNNEL and self._tunnel is not None:
                yield Route(way, random.choice(urls), self._tunnel)
            else:
                dial = direct if self._choice.only else _within(max(ANSWER_S / len(urls), LEAST_S))
                yield from (Route(way, url, dial) for url in random.sample(urls, len(urls)))

    def failed(self, route: Route, began: float, why: str) -> None:
        """As `Choice.failed`."""
        self._choice.failed(route.way, began)
        if route.way is Way.DIRECT and not self._choice.only:
            self._why = f"{route.url} does not answer: {why}"

    def answered(self, route: Route) -> None:
        """As `Choice.answered`."""
        self._choice.answered(route.way)

    def worked(self, route: Route) -> str:
        """How the link is connected, in words for the log."""
        self._choice.worked(route.way)
        if route.way is Way.DIRECT:
            return f"{route.url}{f' ({self._why})' if self._choice.only and self._why else ''}"
        return f"{route.url} through {self._tunnel}{f' ({self._why})' if self._why else ''}"

    async def direct_answers(self, broker: Broker) -> None:
        """Return when a link that goes through the tunnel should go back to the direct way.  Cancelling is safe."""
        while self._choice.last is Way.TUNNEL and not self._choice.only:
            await asyncio.sleep(max(0.0, self._choice.look_in))
            for url in broker.urls:
                if await self._look(broker.login(url), url):
                    self._choice.worked(Way.DIRECT)
                    return
                heed_cancel()
            self._choice.failed(Way.DIRECT, time.monotonic())
        await asyncio.Event().wait()

    async def _look(self, login: str, url: str) -> bool:
        try:
            async with within(None):
                await close(await open_connection(login, "looks for the direct way", _Patient(ANSWER_S)))
        except (*LOST, aiormq.exceptions.AMQPError) as silent:  # also if it refuses us: then the tunnel would have been as good
            log.debug("%s does not answer: %s", url, say(silent))
            return False
        log.info("%s answers: the link goes back to it", url)
        return True


def _within(seconds: float) -> Dialler:
    """The direct way, given up when nothing has come from the broker by then."""

    @contextlib.asynccontextmanager
    async def dial(url: str) -> AsyncIterator[TransportFactory]:  # noqa: ARG001 - as a Dialler is called
        yield _Patient(seconds)

    return dial


class _Patient(TransportFactory):
    """The port must let us in, and say its first byte, within so many seconds each: some firewalls take a connection and say nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert url.host and url.port, "aiormq has filled it in"
        loop = asyncio.get_running_loop()
        reader = _Listening()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            async with asyncio.timeout(self._seconds):
                context = await options["ssl_context_provider"].get_context() if url.scheme == "amqps" else None
                transport, _ = await loop.create_connection(lambda: protocol, url.host, url.port, ssl=context)
        except TimeoutError:
            raise ConnectionError(f"nothing came within {self._seconds:g} s") from None
        loop.call_later(self._seconds, reader.give_up, transport)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Listening(asyncio.StreamReader):
    """Knows whether anything has come."""

    heard = False

    def feed_data(self, data: Any) -> None:
        self.heard = True
        super().feed_data(data)

    def give_up(self, transport: asyncio.Transport) -> None:
        """End a connection that says nothing."""
        if not self.heard:
            transport.abort()
