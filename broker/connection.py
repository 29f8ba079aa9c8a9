"""One connection to RabbitMQ: whom to log in as, how to get there, and what aio-pika raises when it goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import FieldTable
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from funcmq.broker.errors import NotAllowed, Unreachable

for _chatty in ("aiormq", "aio_pika"):  # what they log with a traceback is a lost connection, of which the link tells in one line
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)

HEARTBEAT_S = 10
CONNECT_S = 10.0
CLOSE_S = 5.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 15.0
GROWTH = 1.3

LOST = (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, asyncio.TimeoutError)
"""What aio-pika raises when a connection or channel goes away under a call.  Among them: RuntimeError is its 'closed' in some places, and
StopAsyncIteration is what aiormq raises when the wire is cut in the middle of a handshake."""


@dataclass(frozen=True, slots=True)
class Broker:
    """The nodes of one broker cluster (`amqp://host:port/vhost`, no credentials) and the user to log in as."""

    urls: tuple[str, ...]
    user: str
    password: str = field(repr=False)

    def login(self, url: str) -> str:
        """The URL with credentials: never logged, never shown."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return urlunsplit(parts._replace(netloc=f"{credentials}@{host}"))


class Dialler(Protocol):
    """The way to a broker: given its URL, how one connection to it is opened, for as long as the context lasts.

    Entering it, or opening the connection, raises one of LOST where there is no way.  `funcmq.broker.tunnel` has another one.
    """

    def __call__(self, url: str) -> contextlib.AbstractAsyncContextManager[TransportFactory]: ...


@contextlib.asynccontextmanager
async def direct(url: str) -> AsyncIterator[TransportFactory]:
    """No detour."""
    yield TLSTransportFactory() if urlsplit(url).scheme == "amqps" else TCPTransportFactory()


class Backoff:
    """Waits between tries: longer each time, with jitter, so that a thousand clients do not come back in the same moment."""

    def __init__(self) -> None:
        self._next = FIRST_WAIT_S

    def reset(self) -> None:
        """It worked: the next wait is short again."""
        self._next = FIRST_WAIT_S

    async def wait(self) -> None:
        """Until the next try."""
        now, self._next = self._next, min(self._next * GROWTH, LONGEST_WAIT_S)
        await asyncio.sleep(now * random.uniform(0.5, 1.5))


async def open_connection(login: str, name: str, how: TransportFactory) -> AbstractConnection:
    """A connection to the broker at a URL with credentials; `name` is what the broker's list shows.  Raises what aio-pika raises.

    aio_pika.connect leaves a connection that failed to its finaliser, which may run in a thread without an event loop.
    """
    properties: FieldTable = {"connection_name": name}
    connection = aio_pika.Connection(URL(login), client_properties=properties, heartbeat=HEARTBEAT_S)
    connection.kwargs["transport_factory"] = how  # aio-pika passes it on to aiormq, but lets no caller of its own name it
    try:
        async with asyncio.timeout(CONNECT_S):  # aio-pika's own limit leaves out what it waits for after the handshake
            await connection.connect()
    except BaseException:
        await close(connection)
        raise
    return connection


async def close(what: AbstractConnection | AbstractChannel) -> None:
    with contextlib.suppress(*LOST):
        async with within(CLOSE_S):
            await what.close()


def gone(connection: AbstractConnection) -> bool:
    """Whether it has ended.  aio-pika's own `is_closed` is about who closed it: it stays False when the broker did."""
    return connection.transport is None or connection.transport.connection.is_closed


@contextlib.asynccontextmanager
async def within(seconds: float | None) -> AsyncIterator[None]:
    """Around calls of aio-pika: they raise one of LOST, or what the broker refused; TimeoutError after so many seconds.

    A connection that closes without a reason rejects what waits on it with a bare `Exception`, or cancels it; both become ConnectionError.
    A cancel that aiormq lost is raised when they are done: a task that loops around them would never end.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
        heed_cancel()
    except asyncio.CancelledError:
        heed_cancel()
        raise ConnectionError("the connection was closed") from None
    except Exception as error:
        if type(error) is Exception:
            raise ConnectionError("the connection was closed") from None
        raise


def heed_cancel() -> None:
    """End the task if it was cancelled while aiormq waited for an answer.

    The cancel may be lost there: `asyncio.wait_for` of Python 3.11 returns the answer if that came in the same turn of the loop, and
    aiormq may raise an error of its own instead.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def say(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")


async def check(broker: Broker, dial: Dialler = direct) -> None:
    """Log in once and leave.

    :raises NotAllowed: user and password are refused.
    :raises Unreachable: none of the URLs answers.
    """
    said = "no URL"
    for url in broker.urls:
        try:
            async with within(None), dial(url) as how:
                await close(await open_connection(broker.login(url), "check", how))
        except aiormq.exceptions.ProbableAuthenticationError:
            raise NotAllowed(
                f"{url} refuses the user {broker.user}.",
                hint="Its password is wrong or was withdrawn; that of `funcmq serve` is in FUNCMQ_BROKER_URL.",
            ) from None
        except LOST as broken:
            said = f"{url}: {say(broken)}"
        else:
            return
    raise Unreachable(f"No broker answers ({said}).")
