"""What comes in about tasks, from the stream or from the store, and the futures that it ends.  No I/O.

A result counts only when the task's own endpoint signed it with its pinned key; before that nothing of it is unpickled.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import Any

from funcmq.broker import api, codec, messages, values
from funcmq.broker.errors import FuncmqError, InvalidRequest, NotAllowed
from funcmq.broker.messages import Failure, Outcome, Receipt, Results, Running, Signed
from funcmq.broker.signing import RESULTS, PublicKey
from funcmq.client.bundler import Sent
from funcmq.client.futures import TaskFuture
from funcmq.client.outcomes import Where, failure_to_error

log = logging.getLogger("funcmq.client")

_LATER = {"accepted": 1, "published": 2, "received": 3, "running": 4}


class Inbox:
    """The open futures of a connection.

    :param key_of: the pinned key of an endpoint, by id; None for endpoints never met.
    :param name_of: the name of an endpoint, for messages to people.
    """

    def __init__(self, key_of: Callable[[str], PublicKey | None], name_of: Callable[[str], str]) -> None:
        self._key_of, self._name_of = key_of, name_of
        self.futures: dict[bytes, TaskFuture[Any]] = {}
        self.refused = 0
        """Results that were not what they claimed to be."""
        self.last: dict[str, tuple[float, str]] = {}
        """When the stream last ended something of an endpoint (monotonic), and a task of that message."""
        self._sent: weakref.WeakValueDictionary[str, Sent] = weakref.WeakValueDictionary()

    @property
    def open(self) -> list[TaskFuture[Any]]:
        """The futures that have not ended, in the order of their submission.  Thread-safe."""
        return list(self.futures.copy().values())

    def expect(self, future: TaskFuture[Any]) -> None:
        """From now on what is said of this task reaches its future."""
        self.futures[future.task_id] = future

    def forget(self, future: TaskFuture[Any]) -> None:
        """The future has ended otherwise."""
        self.futures.pop(future.task_id, None)

    def follow(self, bundle: str, sent: Sent) -> None:
        """A receipt for this bundle is to be noted there."""
        self._sent[bundle] = sent

    def take(self, kind: str | None, body: bytes) -> None:
        """A message of the stream.

        :raises FuncmqError: it is not what it claims to be; nothing of it was believed.
        """
        message = messages.unpack(kind, body)
        if isinstance(message, Signed):
            if (last := self.results(message)) is not None:
                self.last[last.endpoint] = time.monotonic(), last.results[-1].id.hex()
        elif isinstance(message, Receipt):
            self._received(message)
        elif isinstance(message, Running):
            self._running(message)

    def results(self, signed: Signed) -> Results | None:
        """A result bundle, from the stream or the store, read and used; None where nobody waits for anything in it.

        :raises FuncmqError: it is malformed, or not signed by the endpoint that it names.
        """
        results = codec.decode(Results, signed.body)
        wanted = [outcome for outcome in results.results if outcome.id in self.futures]
        if not wanted:  # a copy too many, or somebody else's: nothing of it is used, so nothing needs to be believed
            return None
        key = self._key_of(results.endpoint)
        if key is None:
            raise NotAllowed(
                f"Results came from the endpoint {results.endpoint}, whose key is not known here.",
                hint="Submit to it by name once; see known_endpoints.",
            )
        if results.key != key.id:
            raise NotAllowed(
                f"Results of the endpoint {results.endpoint} name another key than the pinned {key.fingerprint}.",
                hint="Somebody may be answering in its place; ask its owner, then see known_endpoints.",
            )
        key.verify(RESULTS, signed)
        for outcome in wanted:
            future = self.futures[outcome.id]
            if future.endpoint_id != results.endpoint:
                self.refused += 1
                log.warning("a result of task %s came from the endpoint %s, which does not have it; refused", future.id, results.endpoint)
                continue
            self._end(future, outcome)
        return results

    def _end(self, future: TaskFuture[Any], outcome: Outcome) -> None:
        del self.futures[outcome.id]
        try:
            if outcome.state == "succeeded":
                value = _value(outcome)
            else:
                error = failure_to_error(outcome.state, outcome.failure, self._where(future, outcome.host))
                future.finish(outcome.state, error=error, outcome=outcome)
                return
        except FuncmqError as broken:
            broken.add_note(f"({self._where(future, outcome.host)})")
            future.finish("succeeded", error=broken, outcome=outcome)
            return
        future.finish("succeeded", value, outcome=outcome)

    def _where(self, future: TaskFuture[Any], host: str = "") -> Where:
        return Where(future.id, future.name, future.endpoint_id, self._name_of(future.endpoint_id), host)

    def _received(self, receipt: Receipt) -> None:
        for bundle in receipt.bundles:
            if sent := self._sent.get(bundle):
                sent.state = "received"

    def _running(self, running: Running) -> None:
        for task in running.tasks:
            future = self.futures.get(task)
            if future is not None and future.endpoint_id == running.endpoint:
                future.started()
                future.place = running.at, running.host

    def answer(self, answer: api.QueryAnswer) -> None:
        """What the store knows: whole signed bundles, and ends that the front door itself wrote."""
        for data in answer.bundles:
            try:
                self.results(codec.decode(Signed, data))
            except FuncmqError as wrong:
                self.refused += 1
                log.warning("the store gave a result bundle that is refused: %s", wrong.message)
        later = set(answer.more)
        for task in answer.tasks:
            future = self.futures.get(bytes.fromhex(task.id))
            if future is not None and task.id not in later:
                self._told(future, task)

    def _told(self, future: TaskFuture[Any], task: api.TaskState) -> None:
        if task.state not in api.ENDS:
            if _LATER[task.state] > _LATER.get(future.state, 0):
                future.known = task.state
            return
        self.forget(future)
        if task.failure is not None or task.state in ("cancelled", "expired", "lost"):
            failure = Failure(*task.failure) if task.failure else None
            future.finish(task.state, error=failure_to_error(task.state, failure, self._where(future)))  # type: ignore[arg-type]
            return
        missing = NotAllowed(
            f"Task {future.id} has {task.state}, but there is no result of it that its endpoint's pinned key has signed.",
            hint="The result is no longer kept, or somebody else wrote it; see known_endpoints.",
        )
        future.finish(task.state, error=missing)


def _value(outcome: Outcome) -> Any:
    if outcome.value is None:
        raise InvalidRequest("The endpoint says that the task succeeded, but sent no value.", hint="Is its release older than this one?")
    return values.unpack(outcome.value)
