"""How `make docs` builds these pages: offline, and every warning is an error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from sphinx.application import Sphinx

from funcmq import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

logging.getLogger("alembic").setLevel(logging.WARNING)

project = "funcmq"
project_copyright = "the funcmq authors, Apache-2.0"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["generated/*"]  # parts of other pages
templates_path: list[str] = []
default_role = "code"  # docstrings name things between single backticks
nitpicky = False

html_theme = "furo"
html_title = f"funcmq {__version__}"
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True


def write_parts(_: Sphinx) -> None:
    """Write what is made from the code itself."""
    import generate  # noqa: PLC0415  # beside this file

    generate.write(HERE / "generated")


def setup(app: Sphinx) -> None:
    """Sphinx calls this first."""
    app.connect("builder-inited", write_parts)
