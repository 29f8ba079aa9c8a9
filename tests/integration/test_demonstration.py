"""The example tells the truth."""

import ast
import asyncio
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("configured")]


async def test_the_demonstration_tells_the_truth(tmp_path: Path) -> None:
    """Every number that examples/metadata.py prints can be computed again from the files."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "examples" / "metadata.py"), str(root / "broker"), "--json", str(tmp_path / "out.json")]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    said = json.loads((tmp_path / "out.json").read_text())
    paths = sorted(str(path) for path in (root / "broker").rglob("*") if path.is_file())
    assert sorted(said["files"]) == paths
    assert said["skipped"] == {}
    for path, found in said["files"].items():
        data = Path(path).read_bytes()
        assert (found["size"], found["sha256"], found["lines"]) == (len(data), hashlib.sha256(data).hexdigest(), data.count(b"\n"))
        if path.endswith(".py"):
            kinds = [type(node).__name__ for node in ast.walk(ast.parse(data))]
            functions, classes = sum(kind in ("FunctionDef", "AsyncFunctionDef") for kind in kinds), kinds.count("ClassDef")
            run = said["runs"][path]
            assert (run["functions"], run["classes"], len(found["names"])) == (functions, classes, functions + classes)
    assert said["totals"]["files"] == len(paths)
    assert said["totals"]["bytes"] == sum(found["size"] for found in said["files"].values())
    assert sum(said["hosts"].values()) == len(paths)
    assert said["failed"]["type"] == "FileNotFoundError"
    assert said["cancelled"]["state"] == "cancelled"
    assert f"{said['totals']['files']:,} files" in ran.stdout
    assert len(ran.stdout.rstrip().splitlines()[-3:]) == 3
