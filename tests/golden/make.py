"""Writes payloads of the Python that runs it into `payloads/`: `python -m tests.golden.make`.  What is there stays as it is."""

from __future__ import annotations

import fractions
import json
import linecache
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAIN = [None, True, -(2**63), 2**64 - 1, 1.5, math.inf, "ä", b"\x00\xff", (1, (2,), []), {"a": {1: ()}, "b": [{}]}]
SOURCE = '''import json
import math

FACTOR = 3
NAMES = {"alpha", "beta", "gamma"}


def helper(x):
    return math.floor(x) * FACTOR


def alone(x, by=(1, 2.5), *, name="alpha"):
    """Uses a module, a plain global, a helper, defaults, and a constant set."""
    found = [n for n in (name, "beta") if n in {"alpha", "beta"}]
    return json.dumps([helper(x), by, found])


def bound(x):
    return x + len(NAMES)


class Kept:
    value = 7

    def get(self):
        return self.value
'''
SCHEMES: dict[str, tuple[str, str, Any]] = {
    "both": ("alone", "auto", '[21, [1, 2.5], ["alpha", "beta"]]'),
    "source": ("alone", "source", '[21, [1, 2.5], ["alpha", "beta"]]'),
    "pickle": ("alone", "pickle", '[21, [1, 2.5], ["alpha", "beta"]]'),
    "bound": ("bound", "auto", 10),
    "imported": ("json", "auto", "7"),
}
"""Of a record: its function, the strategy, and what it makes of 7."""


def functions() -> dict[str, Callable[..., Any]]:
    """What SOURCE defines, as a notebook's cell would."""
    linecache.cache["<golden>"] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), "<golden>")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SOURCE, "<golden>", "exec", dont_inherit=True), names)
    return names | {"json": json.dumps}


def main() -> None:
    """Write what is not there yet."""
    from funcmq.broker import values  # noqa: PLC0415 (not for those who only want to know what is in the payloads)
    from funcmq.broker.functions import make_record  # noqa: PLC0415
    from funcmq.broker.values import PYTHON  # noqa: PLC0415

    folder, known = Path(__file__).parent / "payloads", functions()
    folder.mkdir(exist_ok=True)
    payloads = {
        f"function-{PYTHON}-{name}.record": make_record(known[what], strategy=how).record for name, (what, how, _) in SCHEMES.items()
    }  # type: ignore[arg-type]
    payloads["value-plain.1.msgpack"] = values.pack(PLAIN).data
    payloads[f"value-{PYTHON}-installed.pickle"] = values.pack([fractions.Fraction(1, 3), {Path("x")}]).data
    payloads[f"value-{PYTHON}-code.pickle"] = values.pack(known["Kept"]).data
    for name, data in payloads.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
