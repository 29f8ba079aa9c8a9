"""Bundles to the task queues, and orders to the control queues."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, literal_column

from funcmq.broker import codec, topology
from funcmq.broker.errors import Busy, NotFound, Unreachable
from funcmq.broker.link import Link
from funcmq.broker.messages import Cancel, Dispatch, Order, Stored
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.prepared import Prepared, values
from funcmq.forwarder.states import State
from funcmq.forwarder.tables import bundles
from funcmq.forwarder.writer import Writer

log = logging.getLogger("funcmq.sender")

CONFIRM_S = 15.0
"""How long a submission waits for the broker; well under the reconciler's 60 s."""

_ACCEPTED: ColumnElement[int] = literal_column(str(int(State.ACCEPTED)))
_SENT = (bundles.c.seq == bindparam("seq_"), bundles.c.dispatches == bindparam("dispatches_"))
_SINCE = (bundles.c.state == _ACCEPTED, bundles.c.tried > literal_column("0"))
"""Not when it is to be sent once more already: whoever wants that sets `tried` to 0."""
_PUBLISHED = Prepared("state published seq dispatches", lambda _: bundles.update().where(*_SENT, *_SINCE).values(values("state published")))


@dataclass(frozen=True, slots=True)
class Sending:
    """One sending of one bundle; `only` are the indices to run, None for all."""

    seq: int
    endpoint: str
    dispatch: int
    only: list[int] | None
    data: bytes


class Sender:
    """Publishes on a link whose user may write everywhere."""

    def __init__(self, link: Link, write: Writer) -> None:
        self._link, self._write = link, write
        self.sent = self.sent_again = 0
        """Bundles that the broker confirmed; of these, those that were not sent for the first time."""

    async def send(self, sending: Sending) -> None:
        """Return when a majority of the broker's nodes has it; that it is published is written a little later.

        :raises Busy: the broker did not confirm; it may have it or not.
        """
        body = codec.encode(Dispatch(sending.dispatch, sending.only, sending.data))
        try:
            await self._publish(topology.TASKS, sending.endpoint, "bundle/1", body)
        except (Unreachable, NotFound) as unconfirmed:
            raise Busy(f"The broker did not confirm: {unconfirmed.message}", retry_after=1.0) from unconfirmed
        self.sent += 1
        self.sent_again += sending.dispatch > 1
        self._write.later(_PUBLISHED, (int(State.PUBLISHED), now_ms(), sending.seq, sending.dispatch))

    async def cancel(self, endpoint: str, tasks: list[bytes]) -> None:
        """Ask an endpoint to end these tasks.

        :raises Busy: the broker did not confirm.
        """
        try:
            await self._publish(topology.CONTROL, endpoint, "cancel/1", codec.encode(Cancel(1, tasks)))
        except (Unreachable, NotFound) as unconfirmed:
            raise Busy(f"The endpoint could not be asked: {unconfirmed.message}", retry_after=1.0) from unconfirmed

    async def stored(self, endpoint: str, results: list[tuple[str, str]]) -> None:
        """Tell an endpoint what became of its result bundles; when that is lost, it sends them again and is told again."""
        try:
            await self._publish(topology.CONTROL, endpoint, "stored/1", codec.encode(Stored(1, results)))
        except (Busy, Unreachable, NotFound) as lost:
            log.warning("endpoint %s was not told of %d stored bundles: %s", endpoint, len(results), lost.message)

    async def resend(self, endpoint: str) -> None:
        """Ask an endpoint for all results that are not stored; when that is lost, it is asked again later."""
        try:
            await self._publish(topology.CONTROL, endpoint, "order/1", codec.encode(Order(Order.VERSION, "resend")))
        except (Busy, Unreachable, NotFound) as lost:
            log.warning("endpoint %s was not asked for its results: %s", endpoint, lost.message)

    async def copy(self, session: str, kind: str, body: bytes) -> None:
        """Send a late listener what it may have missed; its queue may be gone, and then nobody misses anything."""
        try:
            await self._link.publish(topology.STREAMS, session, kind, body, mandatory=False, timeout=CONFIRM_S)
        except (Busy, Unreachable) as lost:
            log.warning("session %s got no copy of a result: %s", session, lost.message)

    async def _publish(self, exchange: str, endpoint: str, kind: str, body: bytes) -> None:
        try:
            await self._link.publish(exchange, endpoint, kind, body, timeout=CONFIRM_S)
        except NotFound:  # somebody deleted the queue
            log.warning("the queues of endpoint %s are made again", endpoint, extra={"action": "queues_missing"})
            await self._link.declare(topology.endpoint(endpoint))
            await self._link.publish(exchange, endpoint, kind, body, timeout=CONFIRM_S)
