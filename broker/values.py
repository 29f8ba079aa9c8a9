"""Arguments and results to slots and back.  Only clients and workers import this: it is the one place that unpickles values.

Plain data (see `codec.pack_plain`) travels as msgpack and crosses Python versions; everything else as cloudpickle, which wants the same
minor version.
"""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from funcmq.broker.codec import pack_plain, unpack_plain
from funcmq.broker.errors import NotSerializable, PayloadTooLarge
from funcmq.broker.messages import MAX_INLINE, Inline, Slot


def pack(value: object, what: str = "value", limit: int = MAX_INLINE) -> Inline:
    """The slot that carries this value.

    :raises NotSerializable: it is neither plain data nor picklable; the message says what and why.
    :raises PayloadTooLarge: its bytes are over the limit.
    """
    try:
        slot = Inline("msgpack", pack_plain(value))
    except (TypeError, ValueError, OverflowError):
        slot = Inline("pickle", _pickle(value, what))
    if len(slot.data) > limit:
        raise PayloadTooLarge(f"The {what} has {len(slot.data):,} bytes; the limit is {limit:,}.")
    return slot


def _pickle(value: object, what: str) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value, protocol=5))
    except Exception as broken:  # a value's own __reduce__ may raise anything
        raise NotSerializable(f"The {what} cannot be pickled: {type(broken).__name__}: {broken}.") from broken


def unpack(slot: Slot) -> Any:
    """The value in a slot.  Call this only on bytes whose signature has been checked.

    :raises NotSerializable: the bytes cannot be turned into a value here; the cause is attached.
    """
    if not isinstance(slot, Inline):
        raise NotSerializable(f"This release cannot read values kept as {type(slot).__name__}.", hint="Install a newer funcmq.")
    if slot.encoding == "msgpack":
        return unpack_plain(slot.data)
    try:
        return pickle.loads(slot.data)  # noqa: S301 - the caller has checked the signature
    except Exception as broken:  # unpickling runs the value's own code
        raise NotSerializable(
            f"A pickled value cannot be restored here: {type(broken).__name__}: {broken}.",
            hint="Install here the modules, in the versions, that the value was made with.",
        ) from broken
