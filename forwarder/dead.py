"""The consumer of the queue `dead`: what the broker took out of a task queue, and why (design §5).

The broker's own word decides, which it writes into the headers of a dead letter:

- *delivery limit*: the daemon went away too often while it had the message.  Bundles that were near the guilty one die with it, so a bundle
  is sent again, alone, and only the third time its tasks fail as `TaskPoisoned`.
- *rejected*: the daemon did not take it.  Its signed refusal, which comes with the results, ends the tasks; the letter is only listed.
- anything else (a policy of the operator's): it is listed, and missing, which the reconciler sees from the queue.

What does not match a bundle in the store by its id, and by the queue that it died in, is listed and changes no task: nobody vouches for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import codec, messages, topology
from funcmq.broker.consumer import Delivery
from funcmq.broker.errors import FuncmqError
from funcmq.broker.ids import sha256
from funcmq.broker.link import Link
from funcmq.broker.messages import Dispatch, Signed
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.letters import Letter, keep, trim
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundles, tasks
from funcmq.forwarder.tasks import end_here

log = logging.getLogger("funcmq.dead")

MOST_DEATHS = 3
PREFETCH = 32
RETRY_S = 1.0
TRIM_EVERY = 500
LIMIT = "delivery_limit"


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message died, and in which queue; '' where it does not say."""

    reason: str
    queue: str

    @property
    def endpoint(self) -> str:
        """Whose task queue that is; '' if it is none."""
        identifier = self.queue.removeprefix("endpoint.").removesuffix(".tasks")
        return identifier if self.queue == topology.tasks_queue(identifier) else ""


@dataclass(frozen=True, slots=True)
class Corpse:
    """A dead letter as it came.  `bundle` is the id of the bundle inside, '' where there is none to be read."""

    death: Death
    message: str
    kind: str
    key: str
    body: bytes
    bundle: str


def read_death(headers: Mapping[str, Any]) -> Death:
    """The newest reason.  `x-death` has it first, in every release since 3.10; 4.x also writes it by itself."""
    table = headers.get("x-death")
    first = table[0] if isinstance(table, list) and table and isinstance(table[0], Mapping) else {}
    reason = first.get("reason") or headers.get("x-last-death-reason") or headers.get("x-first-death-reason")
    queue = first.get("queue") or headers.get("x-last-death-queue") or headers.get("x-first-death-queue")
    return Death(_text(reason), _text(queue))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def read_corpse(delivery: Delivery) -> Corpse:
    """What can be read of it: anything may be in it."""
    kind = delivery.kind or ""
    corpse = Corpse(read_death(delivery.headers), delivery.message_id, kind, delivery.key, delivery.body, "")
    try:
        dispatch = messages.unpack(kind, delivery.body)
        bundle = sha256(codec.decode(Signed, dispatch.bundle).body) if isinstance(dispatch, Dispatch) else ""
    except FuncmqError:
        return corpse
    return Corpse(corpse.death, corpse.message, kind, delivery.key, delivery.body, bundle)


async def bury(connection: AsyncConnection, corpse: Corpse, now: int) -> bool:
    """Write what follows from a dead letter; whether a bundle waits to be sent again."""
    row = await _match(connection, corpse)
    if row is None:
        said = "It matches no bundle of its endpoint." if corpse.bundle else "It is no bundle."
        letter = Letter(
            sha256(corpse.body), None, "", corpse.death.endpoint, corpse.death.reason, said, corpse.message, corpse.kind, corpse.body
        )
        await keep(connection, letter, now)
        return False
    if row.state not in (State.ACCEPTED, State.PUBLISHED, State.REFUSED):
        return False  # its endpoint has another copy of it, or it has ended
    limit, deaths = corpse.death.reason == LIMIT and row.state != State.REFUSED, row.deaths + 1
    said = _say(deaths) if limit else _OTHERS.get(corpse.death.reason, "Its queue gave it up.")
    letter = Letter(row.id, row.seq, row.user_id, row.endpoint_id, corpse.death.reason, said, corpse.message, corpse.kind)
    if not await keep(connection, letter, now) or not limit:
        return False
    if deaths < MOST_DEATHS:
        again = {"deaths": deaths, "state": int(State.ACCEPTED), "tried": 0}
        await connection.execute(update(bundles).where(bundles.c.seq == row.seq).values(again))
        return True
    await _poison(connection, row.seq, deaths, now)
    return False


async def _match(connection: AsyncConnection, corpse: Corpse) -> Any:
    columns = (bundles.c.seq, bundles.c.id, bundles.c.user_id, bundles.c.endpoint_id, bundles.c.state, bundles.c.deaths)
    row = (await connection.execute(select(*columns).where(bundles.c.id == corpse.bundle))).first()
    return row if row is not None and corpse.death.endpoint == row.endpoint_id else None


_OTHERS = {"rejected": "Its endpoint did not take it; its tasks say why."}


def _say(deaths: int) -> str:
    before = f"Its endpoint went away {topology.DELIVERY_LIMIT} times while it had this bundle"
    return f"{before}, {deaths} times over." if deaths >= MOST_DEATHS else f"{before}; it is sent again, alone."


async def _poison(connection: AsyncConnection, seq: int, deaths: int, now: int) -> None:
    waiting = select(tasks.c.id).where(tasks.c.bundle == seq, tasks.c.state == int(State.ACCEPTED))
    ids = [row.id for row in await connection.execute(waiting)]
    await end_here(connection, ids, State.POISONED, "TaskPoisoned", _say(deaths), now)
    await connection.execute(update(bundles).where(bundles.c.seq == seq).values(deaths=deaths, state=int(State.POISONED)))


class DeadLetters:
    """See the module.  Several front doors may take from the queue at the same time.

    :param again: called when a bundle waits to be sent.
    """

    def __init__(self, database: Database, again: Callable[[], None]) -> None:
        self._database, self._again = database, again
        self.seen = 0
        """Letters that came."""

    def start(self, link: Link) -> None:
        """Take them for as long as the link lives."""
        link.consume(topology.DEAD, self._take, prefetch=PREFETCH)

    async def _take(self, delivery: Delivery) -> None:
        corpse = read_corpse(delivery)
        log.warning(
            "a message to endpoint %s died: %s",
            corpse.death.endpoint or corpse.key,
            corpse.death.reason or "nobody says why",
            extra={"action": "dead_letter"},
        )
        while True:
            try:
                again = await self._database.write(lambda connection: bury(connection, corpse, now_ms()))
                break
            except FuncmqError as failed:
                log.warning("a dead letter waits for the database: %s", failed.message)
                await asyncio.sleep(RETRY_S)
        if again:
            self._again()
        await delivery.ack()
        self.seen += 1
        if self.seen % TRIM_EVERY == 1:
            await self._database.write(trim)
