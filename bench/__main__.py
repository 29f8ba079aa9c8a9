"""The command: `python -m bench roundtrip|tasks|tunnel … [--json FILE]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path

from bench import roundtrip, tasks, tunnel
from bench.machine import as_json, describe

SUITE = {
    "roundtrip": (roundtrip.run, "milliseconds"),
    "tasks": (tasks.run, "tasks/s, ratio, µs, MB"),
    "tunnel": (tunnel.run, "milliseconds, tasks/s"),
}


def main() -> None:
    """Run what was named, print median and range, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("which", nargs="*", choices=[[], *SUITE], default=[], help="default: all")
    parser.add_argument("--workers", type=int, default=max(2, os.cpu_count() or 2))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, object] = {"machine": describe()}
    print("\n".join(f"{name:12} {value}" for name, value in describe().items()))  # noqa: T201
    for name in asked.which or SUITE:
        run, unit = SUITE[name]
        print(f"\n{name}: {unit}; median (range) of alternating repeats")  # noqa: T201
        rows = asyncio.run(run(asked.workers))
        print("\n".join(f"  {row:40} {value}" for row, value in rows.items()))  # noqa: T201
        found[name] = as_json(rows)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
