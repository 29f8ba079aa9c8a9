"""The endpoints this user has met, and the key of each: pinned at first use, as ssh does with hosts.

A line of `known_endpoints` is `ID ed25519 BASE64 NAME`.  Only ids and keys count; the name is for people.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from funcmq.broker.api import EndpointView
from funcmq.broker.errors import EndpointOffline, FuncmqError, InvalidRequest, NotAllowed, NotFound
from funcmq.broker.ids import is_id
from funcmq.broker.signing import PublicKey

log = logging.getLogger("funcmq.client")

NONE: Mapping[str, int] = {}


class KnownEndpoints:
    """Pins, read once and appended to.  A file that cannot be written is a warning: the pins then last as long as the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys = dict(_read(path))

    def key(self, endpoint: str) -> PublicKey | None:
        """The pinned key of an endpoint, by its id."""
        return self._keys.get(endpoint)

    def pin(self, view: EndpointView) -> PublicKey:
        """The key to check this endpoint's results with; remembered for ever at first use.

        :raises NotAllowed: the front door now names another key than the pinned one.
        """
        claimed = PublicKey.parse(view.key)
        pinned = self._keys.get(view.id)
        if pinned is None:
            self._remember(view, claimed)
            return claimed
        if pinned != claimed:
            raise NotAllowed(
                f"The key of endpoint {view.name!r} has changed: {pinned.fingerprint} is pinned, now it is {claimed.fingerprint}.",
                hint=f"Somebody may be answering in its place. If its owner made it anew, remove the line {view.id} from {self._path}.",
            )
        return pinned

    def _remember(self, view: EndpointView, key: PublicKey) -> None:
        self._keys[view.id] = key
        name = "".join(letter if letter.isprintable() else "?" for letter in view.name)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{view.id} ed25519 {key.text} {name}\n")
        except OSError as broken:
            log.warning("cannot write %s (%s): the key of %s is pinned for this process only", self._path, broken.strerror, view.name)


def _read(path: Path) -> Iterable[tuple[str, PublicKey]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split(maxsplit=3)
        if len(words) >= 3 and is_id(words[0]) and words[1] == "ed25519":
            try:
                yield words[0], PublicKey.parse(words[2])
            except FuncmqError:
                log.warning("%s: the line of %s holds no key; remove it", path, words[0])


def choose(views: Iterable[EndpointView], wanted: str | tuple[str, ...], sent: Mapping[str, int] = NONE) -> EndpointView:
    """The endpoint that is meant by a name or an id; of several, the online one with most free capacity.

    :param sent: tasks that each has been sent since it was seen like this, by id.

    :raises NotFound: none of this name is visible.
    :raises InvalidRequest: nothing is named, or several endpoints that others share have this name.
    """
    views = list(views)
    if isinstance(wanted, tuple):
        return max((choose(views, one) for one in wanted), key=lambda view: free(view, sent.get(view.id, 0)))
    names = ", ".join(sorted(view.name for view in views)) or "none"
    if not wanted:
        raise InvalidRequest("No endpoint is named.", hint=f"Use on('NAME') or set FUNCMQ_ENDPOINT; you can use: {names}.")
    found = [view for view in views if view.id == wanted] or [view for view in views if view.name == wanted]
    if not found:
        raise NotFound(f"There is no endpoint {wanted!r} that you can use.", hint=f"You can use: {names}.")
    if len(found) > 1:
        owners = ", ".join(f"{view.id} of {view.owner_name}" for view in found)
        raise InvalidRequest(f"Several endpoints are called {wanted!r}.", hint=f"Use an id: {owners}.")
    return found[0]


def free(view: EndpointView, sent: int = 0) -> tuple[bool, int]:
    """How attractive an endpoint is for more work, with so many tasks on their way to it; larger is better."""
    capacity = sum(max(pool.capacity, pool.workers) for pool in view.pools if not pool.reason)
    return view.online, capacity - view.queued - view.running - sent


def check_online(view: EndpointView) -> None:
    """:raises EndpointOffline: it is not connected, and waiting was declined."""
    if not view.online:
        raise EndpointOffline(f"The endpoint {view.name!r} is offline{f' ({view.host})' if view.host else ''}.")
