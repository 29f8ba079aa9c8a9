"""What the worker and its child say to each other.

*Control* is a socket pair: `Run` and `Skip` to the child, and from it single bytes, bells, which say that it is ready or that there is
something to read.  *Results* is a pipe: one `Finished` per member, written before the next member starts, so that a dead child loses
nothing that was finished.  The worker reads it only when a bell rings, a timer ends or the child dies: being woken for every short task
would cost more than the task.  The rule of the bell:

- the child rings when it is ready, when the last member is finished, when the pipe is full, and after every member that took `LONG_S` or
  more;
- so the end of a member that has run that long already never goes unnoticed.

Frames are u32be length ‖ msgpack.  Times are of CLOCK_MONOTONIC, which both processes share.
"""

from __future__ import annotations

import msgspec

from funcmq.broker import codec
from funcmq.endpoint.worker.packet import Done

LONG_S = 0.001
"""Seconds that a member takes at most without a bell."""
MOST = 1 << 28
"""Bytes of a frame at most: more means that a task wrote into our pipe."""


class Run(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Run these members of this packet (its exact bytes), in this order.  The first one's time starts at `at`."""

    at: float
    members: list[int]
    packet: bytes


class Skip(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Do not start this task of the packet under way."""

    task: bytes


class Finished(msgspec.Struct, frozen=True, array_like=True):
    """This member is finished, at `ended`; the next one starts then."""

    index: int
    ended: float
    done: Done


_orders: msgspec.msgpack.Decoder[Run | Skip] = msgspec.msgpack.Decoder(Run | Skip)


def read_order(body: bytes) -> Run | Skip:
    """What the worker told the child."""
    return _orders.decode(body)


def frame(message: Run | Skip | Finished) -> bytes:
    """A message as it is written."""
    body = codec.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Cuts what was read into the bodies of messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete with this.

        :raises ValueError: these are no frames.
        """
        data, at, found = self._rest + data, 0, list[bytes]()
        while len(data) - at >= 4:
            size = int.from_bytes(data[at : at + 4], "big")
            if size > MOST:
                raise ValueError(f"a frame of {size} bytes is announced")
            if len(data) - at - 4 < size:
                break
            found.append(data[at + 4 : at + 4 + size])
            at += 4 + size
        self._rest = data[at:]
        return found
