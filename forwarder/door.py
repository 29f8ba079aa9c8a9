"""What every handler of the front door works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from funcmq.broker.errors import NotLoggedIn
from funcmq.broker.link import Link
from funcmq.broker.signing import PrivateKey, PublicKey
from funcmq.forwarder import people
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.database import Database
from funcmq.forwarder.live import Live
from funcmq.forwarder.management import Management
from funcmq.forwarder.memo import Memo
from funcmq.forwarder.metrics import Metrics
from funcmq.forwarder.people import Caller
from funcmq.forwarder.sender import Sender
from funcmq.forwarder.settings import ServeSettings
from funcmq.forwarder.tally import Submitted

TTL_S = 3.0
"""How long another front door's revocation may stay unnoticed here where its notice was lost."""


@dataclass(frozen=True, slots=True)
class Access:
    """An endpoint as a submission sees it; `trusted` is None before its first lease."""

    id: str
    name: str
    owner: str
    trusted: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Known:
    """What was read lately.  Function owners and group owners never change; the rest is forgotten when rights change."""

    callers: Memo[str, Caller] = field(default_factory=lambda: Memo(TTL_S))
    keys: Memo[tuple[str, str], PublicKey] = field(default_factory=lambda: Memo(TTL_S))
    access: Memo[tuple[str, str], Access] = field(default_factory=lambda: Memo(TTL_S))
    functions: Memo[tuple[str, str], bool] = field(default_factory=lambda: Memo(3600, 100_000))
    groups: Memo[str, str] = field(default_factory=lambda: Memo(3600, 100_000))
    endpoint_functions: Memo[tuple[str, str], bool] = field(default_factory=lambda: Memo(3600, 100_000))
    pythons: Memo[str, str] = field(default_factory=lambda: Memo(3600, 100_000))
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called when rights change, here or at another front door."""
    tellers: list[Callable[[], None]] = field(default_factory=list)
    """Called when they change here."""

    def forget_rights(self) -> None:
        """Somebody's rights changed here; the other front doors are told."""
        self.look_again()
        for tell in self.tellers:
            tell()

    def look_again(self) -> None:
        """Somebody's rights changed somewhere."""
        for memo in (self.callers, self.keys, self.access):
            memo.clear()
        for watcher in self.watchers:
            watcher()


@dataclass(frozen=True, slots=True)
class Door:
    """The parts of a front door.

    :param watch: called with the id and key of every new endpoint, whose results somebody must take in; `unwatch` with the id of a deleted
        one.
    :param key: signs for users without keys, where endpoints trust it; None: nothing is signed here.
    :param send_soon: the reconciler, wherever it runs, should look now: bundles wait to be sent again.
    """

    settings: ServeSettings
    database: Database
    link: Link
    management: Management
    sender: Sender
    live: Live
    watch: Callable[[str, PublicKey], None]
    unwatch: Callable[[str], Awaitable[None]]
    send_soon: Callable[[], None]
    submitted: Submitted
    metrics: Metrics
    key: PrivateKey | None
    known: Known = field(default_factory=Known)

    async def caller(self, token: str) -> Caller:
        """Who holds this token.

        :raises NotLoggedIn: nobody, or not any more.
        """
        found = self.known.callers.get(token)
        if found is None or (found.expires and found.expires <= now_ms()):
            async with self.database.read() as connection:
                found = await people.find_token(connection, token, now_ms())
            if found is None:
                raise NotLoggedIn
            self.known.callers.put(token, found)
        return found
