"""A real browser for tests: Chromium without a window, asked over its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
ANSWER_S = 40.0


def installed() -> str | None:
    """The path of a browser, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page.  `said` collects what the browser complained of: violations of a content security policy among it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers, self._session = socket, itertools.count(1), ""
        self.said: list[str] = []

    async def open(self) -> None:
        """Make the page and listen to it."""
        target = (await self.ask("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            await self.ask(f"{domain}.enable")

    async def ask(self, method: str, *, until: str = "", **parameters: Any) -> Any:
        """The answer to a command; with `until`, once that event has come, too."""
        number, answer, seen = next(self._numbers), None, not until
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": self._session} if self._session else {})
        await self._socket.send_json(message)
        async with asyncio.timeout(ANSWER_S):
            while answer is None or not seen:
                said = json.loads((await self._socket.receive()).data)
                if said.get("id") == number:
                    assert "error" not in said, said
                    answer = said["result"]
                elif said.get("method") == until:
                    seen = True
                elif said.get("method") == "Log.entryAdded":
                    self.said.append(said["params"]["entry"]["text"])
        return answer

    async def go(self, url: str) -> None:
        """Load an address."""
        await self.ask("Page.navigate", until="Page.loadEventFired", url=url)

    async def value(self, expression: str) -> Any:
        """What an expression is on the page."""
        return (await self.ask("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def submit(self, expression: str) -> None:
        """Evaluate what makes the page load another one."""
        await self.ask("Runtime.evaluate", until="Page.loadEventFired", expression=expression)


@contextlib.asynccontextmanager
async def tab(program: str, folder: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of its own, gone afterwards."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-port=0"]
    process = await asyncio.create_subprocess_exec(
        program,
        *flags,
        f"--user-data-dir={folder}",
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        env={name: text for name, text in os.environ.items() if "proxy" not in name.lower()},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(ANSWER_S):
            while b"DevTools listening on " not in (line := await process.stderr.readline()):
                assert line, "the browser ended"
        url = line.decode().split()[-1]
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            made = Tab(socket)
            await made.open()
            yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its helpers hold the pipe open
        await process.communicate()
