"""The endpoints that this user can reach, as the front door lists them, behind the pins of this machine."""

from __future__ import annotations

import sys
import time

from funcmq.broker.api import EndpointView
from funcmq.broker.http import Api
from funcmq.broker.signing import PublicKey
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

    async def refresh(self) -> list[EndpointView]:
        """All endpoints that this user may use, as of now."""
        views = await self._front.list("/endpoints", EndpointView)
        self._views = {view.id: view for view in views}
        self._listed = time.monotonic()
        return views

    async def resolve(self, wanted: str | tuple[str, ...], offline: str = "wait") -> EndpointView:
        """The endpoint that is meant, with its key pinned.

        :raises NotFound: there is none of this name.
        :raises EndpointOffline: it is not connected, and `offline` is "fail".
        :raises NotAllowed: its key has changed.
        """
        choosing = isinstance(wanted, tuple) or offline == "fail"
        if not choosing and (known := self._views.get(self._chosen.get(wanted, ""))):
            return known
        if not choosing or time.monotonic() - self._listed > FRESH_S:
            await self.refresh()
        view = choose(self._views.values(), wanted)
        self._known.pin(view)
        self._chosen[wanted] = view.id
        self._mention(view, offline)
        return view

    async def meet(self, identifier: str) -> None:
        """Pin the key of an endpoint, by its id, so that its results can be checked."""
        if self.key(identifier) is None:
            await self.resolve(identifier)

    def _mention(self, view: EndpointView, offline: str) -> None:
        if offline == "fail":
            check_online(view)
        elif not view.online and view.id not in self._told:
            self._told.add(view.id)
            print(f"funcmq: {offline_since(view)}; tasks for it wait until it is back.", file=sys.stderr)  # noqa: T201  a line for the person who waits

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
    since = time.strftime(" since %H:%M", time.localtime(view.seen / 1000)) if view.seen else ""
    host = f" ({view.host})" if view.host else ""
    return f"endpoint {view.name} is offline{since}{host}"
