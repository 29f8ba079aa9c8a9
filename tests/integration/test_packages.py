"""What is built from the checkout, and what each extra is enough for.  Nothing is downloaded: libraries are those of this interpreter."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ROOMS = ("funcmq", "broker", "forwarder", "endpoint", "client")
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "node_modules")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_SOURCE)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source"))
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    return next(built.glob("*.whl"))


def _run(*argv: str) -> str:
    """What a command prints; it sees no Python path of ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False, cwd="/", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _closure(extras: set[str]) -> set[str]:
    """Names of the distributions that `pip install funcmq[extras]` brings, by what is installed here."""
    wanted, seen = [("funcmq", frozenset(extras))], set[tuple[str, frozenset[str]]]()
    while wanted:
        name, chosen = wanted.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        for line in importlib.metadata.distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in chosen | {""}):
                wanted.append((needed.name, frozenset(needed.extras)))
    return {name for name, _ in seen} - {"funcmq"}


def _environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """The Python of a virtual environment that has the wheel and the libraries of these extras, and nothing else."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in _closure(set(extras)):
        for file in importlib.metadata.distribution(name).files or []:
            _link(Path(str(file.locate())), site, file.parts[0])
    return folder / "bin" / "python"


def _link(source: Path, site: Path, top: str) -> None:
    """Make the top-level package or module of an installed file visible in site."""
    if top in ("..", "__pycache__") or (site / top).exists():
        return
    (site / top).symlink_to(Path(str(source)[: str(source).index(f"{os.sep}{top}") + 1 + len(top)]))


def _expected() -> set[str]:
    """Every file of ours that is to be installed, by its installed name."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file() and path.suffix in (".py", ".typed")]
    names = {str(path.relative_to(ROOT)) for path in files}
    return {name if name.startswith("funcmq/") else f"funcmq/{name}" for name in names}


@pytest.mark.timeout(120)
def test_wheel_has_everything_and_nothing_else(wheel: Path) -> None:
    """The wheel, made from the sdist, has every module (migrations too) and `py.typed`, and no test, benchmark or top-level `client`."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == _expected()


@pytest.mark.timeout(120)
def test_sdist_has_the_licence(built: Path) -> None:
    """The sdist carries licence and README."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"} <= names


@pytest.mark.timeout(120)
def test_plain_install_is_a_client(wheel: Path, tmp_path: Path) -> None:
    """`pip install funcmq` is enough for every exported name and for the command, and brings no parsl and no SQLAlchemy."""
    python = _environment(tmp_path / "env", wheel)
    assert not {"parsl", "sqlalchemy", "SQLAlchemy"} & _closure(set())
    program = "import funcmq; print([getattr(funcmq, name) for name in funcmq.__all__]); print(funcmq.__file__)"
    assert str(tmp_path) in _run(str(python), "-c", program)
    assert "endpoint" in _run(str(python), "-m", "funcmq", "--help")
    assert re.fullmatch(r"funcmq \d+\.\d+\.\d+\n", _run(str(python), "-m", "funcmq", "--version"))


@pytest.mark.timeout(120)
def test_worker_needs_only_the_worker_extra(wheel: Path, tmp_path: Path) -> None:
    """`funcmq[worker]` is enough for what a compute node imports: the entry of the HTEX worker, its child, and what the child loads."""
    python = _environment(tmp_path / "env", wheel, "worker")
    modules = [f"funcmq.endpoint.worker.{path.stem}" for path in (ROOT / "endpoint" / "worker").glob("*.py") if path.stem != "__init__"]
    _run(str(python), "-c", f"import importlib\nfor name in {modules!r}: importlib.import_module(name)")
    _run(str(python), "-c", "import parsl.executors.high_throughput.process_worker_pool")
