"""The demo's numbers are those of the files."""

from __future__ import annotations

import ast
import asyncio
import encodings
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

import pytest

from funcmq.dev.stack import Stack

ROOT = Path(__file__).parent.parent.parent
SOME = str(Path(encodings.__file__).parent)
"""A part of the standard library: with all of it the same takes half a minute."""


def facts(path: Path) -> dict[str, object]:
    """Size, hash, lines and names of one file, computed here."""
    data = path.read_bytes()
    names: list[str] = []
    if path.suffix == ".py":
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(data)
        except (SyntaxError, ValueError):
            tree = ast.Module([], [])
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        names = sorted(node.name for node in ast.walk(tree) if isinstance(node, kinds))
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "lines": data.count(b"\n"), "names": names}


@pytest.mark.timeout(150)
@pytest.mark.asyncio
@pytest.mark.parametrize(("folder", "least"), [([SOME], 100), pytest.param([], 1000, marks=pytest.mark.long)], ids=["some", "all"])
async def test_the_demo_tells_the_truth(stack: Stack, tmp_path: Path, folder: list[str], least: int) -> None:
    """Every number that the demo writes for the standard library's files, and every total it prints, is recomputed from the files."""
    report = tmp_path / "report.json"
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "metadata.py"),
        "--json",
        str(report),
        *folder,
        env=os.environ | stack.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await demo.communicate()
    assert demo.returncode == 0, err.decode()
    said = json.loads(report.read_text())
    files = {path: facts(Path(path)) for path in said["files"]}
    assert len(files) > least
    for path, expected in files.items():
        found = said["files"][path]
        assert {**found, "names": sorted(found["names"])} == expected, path
    totals = {
        "files": len(files),
        "bytes": sum(int(str(file["size"])) for file in files.values()),
        "lines": sum(int(str(file["lines"])) for file in files.values()),
    }
    assert {key: said["totals"][key] for key in totals} == totals
    text = out.decode()
    for number in totals.values():
        assert f"{number:,}" in text
    for phrase in ("Traceback", "cancelled", "funcmq"):
        assert phrase in text
