"""Metadata of many files, extracted far away: size, SHA-256 and number of lines, for Python files the names of functions and classes.

    funcmq dev -- python examples/metadata.py [DIR] [--json FILE]

Without DIR it reads the standard library of the running Python.  The files must be readable under the same path where the tasks run.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from funcmq import Client, errors

OTHERS = {"site-packages", "dist-packages"}
"""Folders inside that of the standard library that do not belong to it."""
SLOWEST = 5
FACTS = ("size", "sha256", "lines", "names")
"""What is true of a file wherever it is read; the rest is about the run."""


def metadata(path: str) -> dict[str, Any]:
    """What there is to know about one file.  This runs far away, so it brings all that it needs along."""
    begun = time.perf_counter()
    data = Path(path).read_bytes()
    found: dict[str, Any] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "lines": data.count(b"\n"), "names": []}
    if path.endswith(".py"):
        found |= names(data)
    return found | {"host": platform.node(), "seconds": time.perf_counter() - begun}


def names(source: bytes) -> dict[str, Any]:
    """Names of the functions and classes in Python source, in their order; what went wrong where it is not valid."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as invalid:
        return {"names": [], "functions": 0, "classes": 0, "invalid": type(invalid).__name__}
    found = [node for node in statements(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    classes = sum(isinstance(node, ast.ClassDef) for node in found)
    return {"names": [node.name for node in found], "functions": len(found) - classes, "classes": classes}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node: much less than `ast.walk` gives, and definitions stand nowhere else."""
    for field in ("body", "handlers", "cases", "orelse", "finalbody"):
        for child in getattr(node, field, ()):
            yield child
            yield from statements(child)


def nap(seconds: float) -> None:
    """Something to cancel."""
    time.sleep(seconds)


def files_in(folder: Path, leave_out: set[str]) -> Iterator[Path]:
    """All regular files below a folder, in a stable order; folders with these names are left out."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - leave_out)
        for path in (Path(root, name) for name in sorted(names)):
            if path.is_file() and not path.is_symlink():
                yield path


async def extract(fx: Client, paths: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, str], float]:
    """Metadata by path, what could not be read and why, and the seconds it took."""
    begun = time.perf_counter()
    outcomes = [outcome async for outcome in fx.map(metadata, paths, errors="return", progress=True)]
    took = time.perf_counter() - begun
    found = {path: outcome for path, outcome in zip(paths, outcomes, strict=True) if isinstance(outcome, dict)}
    skipped = {path: f"{type(error).__name__}: {error}" for path, error in zip(paths, outcomes, strict=True) if not isinstance(error, dict)}
    return found, skipped, took


def totals(found: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Sums over all files."""
    return {
        "files": len(found),
        "bytes": sum(one["size"] for one in found.values()),
        "lines": sum(one["lines"] for one in found.values()),
        "python_files": sum("functions" in one for one in found.values()),
        "functions": sum(one.get("functions", 0) for one in found.values()),
        "classes": sum(one.get("classes", 0) for one in found.values()),
    }


def report(found: dict[str, dict[str, Any]], skipped: dict[str, str], took: float) -> dict[str, Any]:
    """Print what came out, and give the same as data."""
    summary: dict[str, Any] = {"totals": totals(found), "seconds": took, "tasks_per_second": len(found) / took}
    summary["hosts"] = dict(Counter(one["host"] for one in found.values()))
    slow = sorted(found, key=lambda path: float(found[path]["seconds"]), reverse=True)[:SLOWEST]
    summary["slowest"] = [[path, found[path]["seconds"]] for path in slow]
    print(f"\n{len(found):,} files in {took:.1f} s: {summary['tasks_per_second']:,.0f} tasks a second")
    print("  " + ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in summary["totals"].items()))
    print("  ran on " + ", ".join(f"{host} ({count:,})" for host, count in summary["hosts"].items()))
    print("  slowest:")
    for path, seconds in summary["slowest"]:
        print(f"    {seconds * 1000:7.1f} ms  {path}")
    for path, reason in skipped.items():
        print(f"  skipped {path}: {reason.splitlines()[0]}")
    return summary


async def one_by_one(fx: Client, path: str) -> dict[str, Any]:
    """One call awaited, one that fails, one cancelled."""
    task = fx.submit(metadata, path)
    answer = await task
    print(f"\nOne call awaited: {Path(path).name} has {answer['lines']:,} lines (task {task.id[-8:]}, on {task.endpoint}, {task.host})")
    said: dict[str, Any] = {"awaited": {"path": path, "lines": answer["lines"], "task": task.id}}

    print("\nOne that fails, as an ordinary FileNotFoundError:")
    try:
        await fx.submit(metadata, "/no/such/file.py")
    except FileNotFoundError as error:
        assert isinstance(error, errors.TaskFailed)
        print("\n".join("    " + line for line in error.remote_traceback.splitlines()))
        said["failed"] = {"type": type(error).__name__, "message": str(error), "traceback": error.remote_traceback}

    sleeper = fx.submit(nap, 600.0)
    await fx.flush()  # it has left: from here on, cancelling is a request to the endpoint
    sleeper.cancel()
    try:
        await sleeper
    except errors.TaskCancelled as error:
        print(f"\nOne cancelled: {error}")
        said["cancelled"] = {"state": sleeper.state, "task": sleeper.id}
    return said


async def main() -> None:
    """The whole demonstration."""
    parser = argparse.ArgumentParser(description="Extract metadata of files, far away.")
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="default: the running Python's standard library")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")
    options = parser.parse_args()
    folder = (options.folder or Path(sysconfig.get_path("stdlib"))).resolve()
    paths = [str(path) for path in files_in(folder, set() if options.folder else OTHERS)]
    if not paths:
        parser.error(f"there are no files in {folder}")
    print(f"{len(paths):,} files in {folder}", flush=True)

    async with Client() as fx:
        found, skipped, took = await extract(fx, paths)
        summary = report(found, skipped, took)
        if found:
            summary |= await one_by_one(fx, next((path for path in found if path.endswith(".py")), next(iter(found))))
    if options.json:
        files = {path: {name: one[name] for name in FACTS} for path, one in found.items()}
        runs = {path: {name: value for name, value in one.items() if name not in FACTS} for path, one in found.items()}
        options.json.write_text(json.dumps({"folder": str(folder), "files": files, "runs": runs, "skipped": skipped, **summary}))

    funcmq = "funcmq" if shutil.which("funcmq") else str(Path(sys.executable).with_name("funcmq"))
    print("\nWhat next:")
    print(f"  {funcmq} dev                     # keep such a fabric running, in a terminal of its own")
    print(f"  {funcmq} run math:hypot 3 4      # there: run any function of any module or file")
    print(f"  {funcmq} task list               # and see what became of it")


if __name__ == "__main__":
    asyncio.run(main())
