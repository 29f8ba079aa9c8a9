"""Laws of names: ids sort by time, and two parties compute the same id."""

import hashlib
import uuid

from hypothesis import given
from hypothesis import strategies as st

from funcmq.broker import ids


@given(st.lists(st.floats(0, 2**37), min_size=2, max_size=10, unique_by=lambda second: int(second * 1000)))
def test_ids_sort_by_time(seconds: list[float]) -> None:
    """An id made later is larger, whatever its random bits."""
    made = [ids.new_id(second) for second in sorted(seconds)]
    assert made == sorted(made)


@given(st.floats(0, 2**37), st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_of_version_7(second: float, entropy: bytes) -> None:
    """RFC 9562: version 7, the RFC's variant, milliseconds in front."""
    made = ids.new_id(second, entropy)
    assert uuid.UUID(bytes=made).version == 7
    assert uuid.UUID(bytes=made).variant == uuid.RFC_4122
    assert ids.created_at(made) == int(second * 1000) / 1000


def test_a_group_id_is_what_the_design_says() -> None:
    """The first 16 bytes of SHA-256 over both names with their lengths: no two pairs of names run together."""
    expected = hashlib.sha256(b"\0\0\0\4user\0\0\0\4name").hexdigest()[:32]
    assert ids.group_id("user", "name") == expected
    assert ids.group_id("ab", "c") != ids.group_id("a", "bc")


def test_only_hex_of_the_right_length_is_an_id() -> None:
    """Paths, upper case and newlines are no ids."""
    assert ids.is_id("0" * 32)
    assert ids.is_hash("f" * 64)
    for bad in ("0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n", "../" * 10 + "ab", None, 7):
        assert not ids.is_id(bad)
        assert not ids.is_hash(bad)


def test_people_see_the_end_of_an_id() -> None:
    """The first digits are the clock; the last 8 tell tasks apart."""
    assert ids.short("0" * 24 + "12345678") == "12345678"
