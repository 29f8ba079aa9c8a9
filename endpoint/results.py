"""Forming result bundles: who ended, by user and group, in pieces that fit, signed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from funcmq.broker import codec
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_BUNDLE, MAX_TASKS, Inline, Outcome, Refused, Results
from funcmq.broker.signing import REFUSED, RESULTS, PrivateKey
from funcmq.broker.topology import refused_key, results_key
from funcmq.endpoint.tasks import Task

_FRAME = 160
"""Bytes of an outcome beside its value and texts, at most; of a bundle beside its outcomes, a few of these."""


@dataclass(frozen=True, slots=True)
class Formed:
    """A signed message that is to reach the store: its id, routing key and exact bytes; `tasks` is the run of its task ids."""

    id: str
    key: str
    data: bytes
    tasks: bytes


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs for an endpoint."""

    endpoint: str
    journal: str
    key: PrivateKey

    def form(self, ended: Iterable[tuple[Task, Outcome]], now: int) -> list[Formed]:
        """Result bundles of these ends, in their order within a user and group."""
        groups: dict[tuple[str, str], list[Outcome]] = {}
        for task, outcome in ended:
            work = task.bundle.work
            groups.setdefault((work.user, work.group), []).append(outcome)
        return [self._sign(user, group, piece, now) for (user, group), outcomes in groups.items() for piece in _pieces(outcomes)]

    def refuse(self, bundle: str, code: str, message: str, now: int) -> bytes:
        """The signed word that nothing of this bundle is run."""
        body = codec.encode(Refused(Refused.VERSION, self.endpoint, self.key.public.id, now, bundle, code, message))
        return self.key.sign(REFUSED, body)

    @property
    def refused_key(self) -> str:
        """Routing key of refusals."""
        return refused_key(self.endpoint)

    def _sign(self, user: str, group: str, outcomes: list[Outcome], now: int) -> Formed:
        body = codec.encode(Results(Results.VERSION, self.endpoint, self.key.public.id, self.journal, user, group, now, outcomes))
        data = self.key.sign(RESULTS, body)
        return Formed(sha256(body), results_key(self.endpoint, group), data, b"".join([outcome.id for outcome in outcomes]))


def _pieces(outcomes: list[Outcome]) -> Iterable[list[Outcome]]:
    """At most `MAX_TASKS` outcomes and `MAX_BUNDLE` bytes each, or one that is larger."""
    piece: list[Outcome] = []
    size = 4 * _FRAME
    for outcome in outcomes:
        weight = _weight(outcome)
        if piece and (len(piece) >= MAX_TASKS or size + weight > MAX_BUNDLE):
            yield piece
            piece, size = [], 4 * _FRAME
        piece.append(outcome)
        size += weight
    if piece:
        yield piece


def _weight(outcome: Outcome) -> int:
    """Bytes at most; a text has up to four for each character."""
    weight = _FRAME + 4 * (len(outcome.host) + len(outcome.stdout) + len(outcome.stderr))
    if isinstance(outcome.value, Inline):
        weight += len(outcome.value.data)
    if (failure := outcome.failure) is not None:
        texts = (failure.code, failure.message, failure.type_name, failure.traceback, failure.hint)
        weight += _FRAME + 4 * sum(len(text) for text in texts) + len(failure.args or b"")
    return weight
