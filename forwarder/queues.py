"""How many messages wait in a queue, asked of the broker."""

from __future__ import annotations

import aiormq

from funcmq.broker.connection import LOST, close, say, within
from funcmq.broker.errors import Unreachable
from funcmq.broker.link import Link

LOOK_S = 10.0


class Queues:
    """Looks at queues over a link whose user may see them all."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ready(self, name: str) -> int | None:
        """Messages that nobody has been given; None where there is no such queue.

        :raises Unreachable: the broker does not answer now.
        """
        try:
            async with within(LOOK_S):
                channel = await self._link.open_channel()
                try:
                    queue = await channel.declare_queue(name, passive=True)
                    return queue.declaration_result.message_count
                finally:
                    await close(channel)
        except aiormq.exceptions.ChannelNotFoundEntity:
            return None
        except LOST as lost:
            raise Unreachable(f"The broker does not say how long the queue {name} is: {say(lost)}.") from None
