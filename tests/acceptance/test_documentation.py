"""`make docs`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from funcmq.broker.errors import TABLE
from tests.documents import ROOT

EXTERNAL = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//')


@pytest.mark.timeout(180)
def test_documentation_is_built_offline(tmp_path: Path) -> None:
    """`make docs` has no warning, and no page needs anything from elsewhere."""
    argv = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*argv, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "html").glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not EXTERNAL.search(page.read_text(encoding="utf-8")), page.name
    for code in TABLE:
        assert code in (tmp_path / "html" / "errors.html").read_text(encoding="utf-8")
