"""README and quickstart do what they say: every program and command in them, in one private fabric."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from funcmq.dev.stack import Stack
from tests.documents import ROOT, Block, blocks, normal, typed

ELSEWHERE = re.compile(r"^(make |funcmq dev|funcmq login|\. )")
"""Commands that are tested where they belong: `make` is how this test runs, `funcmq dev` is the stack."""


async def _run(argv: list[str], stack: Stack, folder: Path) -> str:
    environment = os.environ | stack.environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(100):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{argv}: {err.decode()}"
    return normal(out.decode(), socket.gethostname())


def _programs(page: list[Block]) -> list[tuple[str, str]]:
    """Python blocks, each with the output that the page shows: the text block behind it, or the comments behind `print(…)`.

    A block that uses a function of the one before it is put behind that one's definitions.
    """
    found: list[tuple[str, str]] = []
    defined = ""
    for block, after in zip(page, [*page[1:], Block("", "")], strict=True):
        if block.kind != "python":
            continue
        shown = after.text if after.kind == "text" else "\n".join(re.findall(r"print\(.*\)  # (.*)$", block.text, re.MULTILINE))
        tree = ast.parse(block.text)
        functions = "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        found.append((block.text if names else f"{defined}\n{block.text}", shown))
        defined = functions or defined
    return found


@pytest.mark.timeout(240)
@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
async def test_page_tells_the_truth(name: str, stack: Stack, tmp_path: Path) -> None:
    """Every program of the page runs as pasted and prints what the page shows, and so does every command."""
    page = blocks(ROOT / name)
    programs = _programs(page)
    assert programs
    for number, (program, shown) in enumerate(programs):
        file = tmp_path / ("first.py" if not number else f"program{number}.py")
        file.write_text(program)
        said = await _run([sys.executable, str(file)], stack, tmp_path)
        assert not shown or said == normal(shown, socket.gethostname()), program
    for block in page:
        for line in typed(block.text) if block.kind == "console" else ():
            if not ELSEWHERE.match(line.command):
                said = await _run(shlex.split(line.command), stack, tmp_path)
                assert not line.output or said == normal(line.output, socket.gethostname()), line.command
