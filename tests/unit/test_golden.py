"""Values and function records of every version are read by every interpreter: bytes kept from earlier releases and other Pythons.

`tests/golden/make.py` writes those of the interpreter that runs it; what is kept is never changed, only added to.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from funcmq.broker import codec, values
from funcmq.broker.errors import EnvironmentMismatch
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRecord, Inline
from funcmq.broker.values import PYTHON
from funcmq.endpoint.worker.load import load
from tests.golden.make import PLAIN, SCHEMES

GOLDEN = Path(__file__).parents[1] / "golden" / "payloads"
RECORDS = sorted(GOLDEN.glob("function-*.record"))
PICKLES = sorted(GOLDEN.glob("value-*.pickle"))


def made_by(path: Path) -> str:
    return path.name.split("-")[1]


def test_there_are_payloads_of_several_pythons() -> None:
    """Three minor versions wrote records and values, of every kind that there is."""
    assert {made_by(path) for path in RECORDS + PICKLES} >= {"3.11", "3.12", "3.13"}
    assert {path.stem.split("-", 2)[2] for path in RECORDS} == set(SCHEMES)


def test_plain_values_are_the_same_bytes_for_ever() -> None:
    """Plain data of version 1 is read, with its types, and written with the same bytes."""
    kept = (GOLDEN / "value-plain.1.msgpack").read_bytes()
    read = values.unpack(Inline("msgpack", kept))
    assert repr(read) == repr(PLAIN)
    assert values.pack(PLAIN).data == kept


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_function_records_are_read(path: Path) -> None:
    """A record runs where its Python is this one, where it carries its source, or where the worker imports it; all else is refused."""
    data = path.read_bytes()
    record = codec.decode(FunctionRecord, data)
    if record.needs not in ("", PYTHON):
        with pytest.raises(EnvironmentMismatch, match=f"made by Python {made_by(path)}"):
            load(data, sha256(data))
        return
    function = load(data, sha256(data), [("gone.py", 3)])
    assert function(7) == SCHEMES[path.stem.split("-", 2)[2]][2]
    assert path.stem.endswith("imported") or function.__code__.co_filename == "gone.py"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: path.stem)
def test_pickled_values_are_read(path: Path) -> None:
    """Objects of installed classes cross Pythons; what holds code is read by its own and refused by others."""
    slot = Inline("pickle", path.read_bytes())
    if path.stem.endswith("installed") or made_by(path) == PYTHON:
        read = values.unpack(slot)
        assert repr(read[0]) == "Fraction(1, 3)" if path.stem.endswith("installed") else read().value == 7
        return
    with pytest.raises(EnvironmentMismatch, match=f"code of Python {made_by(path)}"):
        values.unpack(slot)
