"""Functions that are submitted by name: asked for when they are sent, so that the latest version runs."""

from __future__ import annotations

import time
from urllib.parse import quote

from funcmq.broker import api
from funcmq.broker.http import Api
from funcmq.broker.messages import FunctionRef
from funcmq.client.functions import Functions

FRESH_S = 5.0
"""Age up to which an answer is believed: a loop that submits by name asks once."""


class Names:
    """What names stand for, as the front door said a moment ago."""

    def __init__(self, front: Api, functions: Functions) -> None:
        self._front, self._functions = front, functions
        self._found: dict[str, tuple[float, str]] = {}

    async def find(self, name: str) -> str:
        """Id of the latest version of a name, or of the version that it names.

        :raises NotFound: there is none that this user may use.
        """
        until, found = self._found.get(name, (0.0, ""))
        if time.monotonic() >= until:
            view = (await self._front.list(f"/functions?name={quote(name, safe='')}", api.FunctionView))[0]
            found = self._functions.know(FunctionRef(view.id, view.name)).id
            self._found[name] = time.monotonic() + FRESH_S, found
        return found

    def forget(self) -> None:
        """A name was given here: ask again."""
        self._found.clear()
