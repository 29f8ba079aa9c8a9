"""Asking the front door about an endpoint: as the person who is logged in here, or with the endpoint's own token where nobody is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.settings import resolve
from funcmq.endpoint.config import EndpointConfig, endpoint_folder, load

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.http import Api

T = TypeVar("T")

ASK_S = 15.0


def local(name: str) -> EndpointConfig | None:
    """The endpoint's configuration, if its files are here.

    :raises ConfigurationError: they are, and something in them is wrong.
    """
    return load(name) if (endpoint_folder(name) / "endpoint.toml").exists() else None


def ask(config: EndpointConfig | None, profile: str | None, question: Callable[[Api], Awaitable[T]]) -> T:
    """Ask one thing.  A person's token goes before the endpoint's: that may ask about itself only.

    :raises FuncmqError: as the front door says; nothing is configured.
    """
    import asyncio  # noqa: PLC0415 (heavy; --help does without)

    from funcmq.broker.http import Api  # noqa: PLC0415

    url, token = access(config, profile)

    async def run() -> T:
        async with Api(url, token, timeout=ASK_S) as front:
            return await question(front)

    return asyncio.run(run())


def access(config: EndpointConfig | None, profile: str | None) -> tuple[str, str]:
    """URL and token.

    :raises ConfigurationError: no fabric is configured.
    """
    try:
        settings = resolve(url=config.url if config else None, profile=profile)
    except ConfigurationError:
        if config is None or profile is not None:
            raise
        return config.url, config.read_token()
    return settings.url, settings.token or (config.read_token() if config else "")


async def find(front: Api, name: str) -> api.EndpointView:
    """The endpoint of this name or id.

    :raises NotFound: there is none that the caller may see.
    """
    from funcmq.broker import api  # noqa: PLC0415

    return await front.call("GET", f"/endpoints/{name}", None, api.EndpointView)
