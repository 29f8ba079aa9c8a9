"""RabbitMQ's management API, for the one thing that AMQP cannot do: close other people's connections."""

from __future__ import annotations

from urllib.parse import quote

import aiohttp

from funcmq.broker.errors import Busy

TIMEOUT_S = 10.0


class Management:
    """The API at `url`, as an administrator of the broker.  An async context manager."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url, self._auth = url.rstrip("/"), aiohttp.encode_basic_auth(user, password)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Management:
        self._session = aiohttp.ClientSession(headers={"Authorization": self._auth}, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def close_connections(self, user: str) -> None:
        """Close every connection of this AMQP user; none is fine.

        :raises Busy: the API did not do it; some may still be open.
        """
        assert self._session is not None, "Management is used with `async with`"
        try:
            async with self._session.delete(f"{self._url}/api/connections/username/{quote(user, safe='')}") as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as broken:
            raise Busy(
                f"The broker's management API does not answer: {type(broken).__name__}.", hint="Check FUNCMQ_MANAGEMENT_URL."
            ) from None
        if status not in (200, 204, 404):
            raise Busy(f"The broker's management API answered {status}.", hint="Its user must be an administrator of the broker.")
