"""The endpoints that this user can reach, as the front door lists them, behind the pins of this machine."""

from __future__ import annotations

import sys
import time
from collections import Counter

from funcmq.broker.api import EndpointView, Waiting
from funcmq.broker.http import Api
from funcmq.broker.signing import PublicKey
from funcmq.broker.waiting import sentence
from funcmq.client.known import KnownEndpoints, check_online, choose

FRESH_S = 5.0
"""Age of a list from which one chooses by free capacity."""


class Directory:
    """Looks endpoints up by name or id.  An answer is kept: an endpoint's id and key do not change under a name within one connection."""

    def __init__(self, front: Api, known: KnownEndpoints) -> None:
        self._front, self._known = front, known
        self._views: dict[str, EndpointView] = {}
        self._chosen: dict[str | tuple[str, ...], str] = {}
        self._told: set[str] = set()
        self._listed = 0.0
        self._sent: Counter[str] = Counter()
        """Tasks sent since the last list, by endpoint: they take room that the list still calls free."""

    async def refresh(self) -> list[EndpointView]:
        """All endpoints that this user may use, as of now."""
        views = await self._front.list("/endpoints", EndpointView)
        self._views = {view.id: view for view in views}
        self._listed = time.monotonic()
        self._sent.clear()
        return views

    async def resolve(self, wanted: str | tuple[str, ...], offline: str = "wait", tasks: int = 0) -> EndpointView:
        """The endpoint that is meant, with its key pinned; of several, the online one with most free capacity.

        :param tasks: how many will be sent there.

        :raises NotFound: there is none of this name.
        :raises EndpointOffline: it is not connected, and `offline` is "fail".
        :raises NotAllowed: its key has changed.
        """
        choosing = isinstance(wanted, tuple) or offline == "fail"
        if not choosing and (known := self._views.get(self._chosen.get(wanted, ""))):
            return known
        if not choosing or time.monotonic() - self._listed > FRESH_S:
            await self.refresh()
        view = choose(self._views.values(), wanted, self._sent)
        self._sent[view.id] += tasks
        self._known.pin(view)
        self._chosen[wanted] = view.id
        self._mention(view, offline)
        return view

    async def renewed(self, view: EndpointView) -> EndpointView:
        """What the front door says of an endpoint now, or said a few seconds ago."""
        if time.monotonic() - self._listed > FRESH_S:
            await self.refresh()
        return self._views.get(view.id, view)

    async def meet(self, identifier: str) -> None:
        """Pin the key of an endpoint, by its id, so that its results can be checked."""
        if self.key(identifier) is None:
            await self.resolve(identifier)

    def _mention(self, view: EndpointView, offline: str) -> None:
        if offline == "fail":
            check_online(view)
        elif not view.online and view.id not in self._told:
            self._told.add(view.id)
            print(f"funcmq: {view.name}: {offline_since(view)}; tasks for it wait until it is back.", file=sys.stderr)  # noqa: T201  a line for the person who waits

    def key(self, identifier: str) -> PublicKey | None:
        """The pinned key of an endpoint."""
        return self._known.key(identifier)

    def name(self, identifier: str) -> str:
        """Its name; the id itself where that is not known."""
        view = self._views.get(identifier)
        return view.name if view else identifier

    def view(self, identifier: str) -> EndpointView | None:
        """What the last list said of it."""
        return self._views.get(identifier)


def offline_since(view: EndpointView) -> str:
    """One sentence about an endpoint that is away."""
    return sentence(Waiting(kind="offline", since=view.seen, host=view.host), int(time.time() * 1000))
