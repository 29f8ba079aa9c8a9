"""The one person of a private fabric: its first administrator, with a key and a token in the data folder."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from funcmq.broker import api
from funcmq.broker.errors import ConfigurationError, NotLoggedIn
from funcmq.broker.http import Api
from funcmq.broker.signing import PrivateKey
from funcmq.dev.folder import Folder, write_secret

DAYS = 366.0
"""How long the token of a data folder lives, at most; in its last month it is replaced."""
RENEW_MS = 30 * 24 * 3600 * 1000
COMMENT = "funcmq dev"
CODE_S, PROBE_S = 5.0, 0.05


async def token(url: str, folder: Folder, code_file: Path) -> str:
    """A token that the front door takes: the one kept in the folder, or the first, for the code that `serve` left in code_file.

    :raises ConfigurationError: there is neither: the database is older than the folder's token, or the token was revoked.
    """
    if folder.token.exists() and (kept := await _still_valid(url, folder.token.read_text().strip())):
        write_secret(folder.token, kept)
        return kept
    code = await _code(code_file)
    if not code:
        raise ConfigurationError(
            f"The front door does not take the token in {folder.token}, and has an administrator already.",
            hint="Take another --data (and --database), or delete both to begin anew.",
        )
    fresh = await _first_login(url, code, _key(folder))
    write_secret(folder.token, fresh)
    code_file.unlink()
    return fresh


async def _code(file: Path) -> str:
    """The one-time code; `serve` writes it a moment after it listens, and only for a new database: '' after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CODE_S):
            while not (file.exists() and (found := file.read_text().strip())):  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(PROBE_S)
            return found
    return ""


async def _still_valid(url: str, kept: str) -> str:
    """This token, or a fresh one where it ends soon; '' where the front door does not take it."""
    try:
        async with Api(url, kept) as door:
            me = await door.call("GET", "/me", None, api.Me)
    except NotLoggedIn:
        return ""
    return kept if me.expires - time.time() * 1000 > RENEW_MS else await _long(url, kept)


async def _first_login(url: str, code: str, key: PrivateKey) -> str:
    async with Api(url) as door:
        login = await door.call("POST", "/login", api.LoginRequest(code=code, key=key.public.text, comment=COMMENT), api.TokenAnswer)
    return await _long(url, login.token)


async def _long(url: str, token: str) -> str:
    async with Api(url, token) as door:
        made = await door.call("POST", "/tokens", api.TokenRequest(comment=COMMENT, days=DAYS), api.TokenAnswer)
    return made.token


def _key(folder: Folder) -> PrivateKey:
    if not folder.key.exists():
        PrivateKey.generate().save(folder.key)
    return PrivateKey.load(folder.key)
