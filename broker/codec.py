"""One codec for everything on the wire: msgpack, decoded straight into validated types.

Two layers.  *Messages* are msgspec structs, written as arrays whose first element is a version; `decode` refuses what is truncated,
garbage, of another shape or
of an unknown version, always with a reason and never with a guess.  *Plain values* are users' arguments and results made of plain data;
`pack_plain` takes only what comes back equal and of the same type, so that a value may cross Python versions without pickle.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

from funcmq.broker.errors import FuncmqError, InvalidRequest, VersionMismatch

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
_TUPLE = 1


def encode(message: Any) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode(kind: type[T], data: bytes, what: str = "") -> T:
    """The message of this type in data.

    :raises VersionMismatch: it is a message of a version that this release does not know.
    :raises InvalidRequest: it is anything else than such a message; the reason names the place.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    what = what or kind.__name__.lower()
    try:
        message: T = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as broken:
        raise _explain(kind, data, what, broken) from None
    known = getattr(kind, "VERSION", None)
    if known is not None and message.v != known:  # type: ignore[attr-defined]
        raise _unknown_version(what, message.v, known)  # type: ignore[attr-defined]
    return message


def _explain(kind: Any, data: bytes, what: str, broken: Exception) -> FuncmqError:
    known = getattr(kind, "VERSION", None)
    if known is not None:
        try:
            head = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            head = None
        if isinstance(head, list) and head and type(head[0]) is int and head[0] != known:
            return _unknown_version(what, head[0], known)
    return InvalidRequest(f"This is not a valid {what}: {broken}.")


def _unknown_version(what: str, found: int, known: int) -> VersionMismatch:
    behind = "that reads it" if found > known else "that sent it"
    return VersionMismatch(
        f"This {what} has version {found}; this release of funcmq knows version {known}.",
        hint=f"On the side {behind}: pip install --upgrade funcmq",
        found=found,
        known=known,
    )


def pack_plain(value: object) -> bytes:
    """The bytes of a plain value: None, bool, int of 64 bits, float, str, bytes, and lists, tuples and dicts of such, exactly these types.

    :raises TypeError, ValueError, OverflowError: the value is not plain (nested too deeply and too large included).
    """
    packed: bytes = msgpack.packb(value, strict_types=True, default=_tuple, unicode_errors="strict")
    return packed


def _tuple(value: object) -> msgpack.ExtType:
    if type(value) is not tuple:
        raise TypeError(f"{type(value).__name__} is not plain data")
    return msgpack.ExtType(_TUPLE, msgpack.packb(list(value), strict_types=True, default=_tuple))


def unpack_plain(data: bytes) -> Any:
    """The plain value in data; what was a tuple is one again.

    :raises InvalidRequest: data holds no plain value.
    """
    try:
        return msgpack.unpackb(data, strict_map_key=False, ext_hook=_untuple, use_list=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as broken:
        raise InvalidRequest(f"These bytes hold no plain value: {broken or type(broken).__name__}.") from None


def _untuple(code: int, data: bytes) -> Any:
    if code != _TUPLE:
        raise ValueError(f"unknown extension type {code}")
    return tuple(msgpack.unpackb(data, strict_map_key=False, ext_hook=_untuple, use_list=True))
