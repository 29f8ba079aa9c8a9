"""Which room may import which, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("broker", "forwarder", "endpoint", "client")
MAY_IMPORT = {"broker": set[str](), "forwarder": {"broker"}, "endpoint": {"broker"}, "client": {"broker"}}
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "posix", "syslog"}
UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"}
READS_FRAMES = "funcmq.endpoint.frames"
"""The one module of the daemon that reads Parsl's own frames, with a closed list of names."""
OTHER_PROCESSES = {
    "funcmq.endpoint.worker.child": "the child that runs users' functions",
    "funcmq.endpoint.worker.call": "inside the child",
    "funcmq.endpoint.worker.load": "inside the child",
    "funcmq.endpoint.worker.programs": "inside the child",
    "funcmq.endpoint.interchange": "Parsl's interchange, which pickles by itself; it meets no user's bytes but as bytes",
}
"""What runs in processes of its own; whoever else imports one of these is caught like any other."""


def _modules() -> dict[str, Path]:
    found = {}
    for room in ("funcmq", *ROOMS):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if room == "funcmq" else ("funcmq", *parts)
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


@cache
def _imports(module: str) -> frozenset[str]:
    """Everything that a module names in an import, except for type checkers only; `from a import b` gives a and a.b."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return frozenset(name for node in _run(tree) for name in _named(node, module))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but the bodies of `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield from _run(child)


def _named(node: ast.AST, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module} imports relatively; full names are used everywhere"
        yield str(node.module)
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "funcmq"


def _loads(module: str) -> set[str]:
    """Our modules that run when this one is imported: what it names, and the packages they are in."""
    named = {name for name in _imports(module) if name in MODULES}
    return {".".join(parts[:end]) for name in named | {module} for parts in [name.split(".")] for end in range(1, len(parts) + 1)}


def _reach(module: str) -> dict[str, str]:
    """All our modules that run with this one, each with the one that brings it in."""
    found, ahead = {module: ""}, [module]
    while ahead:
        here = ahead.pop()
        for loaded in _loads(here) - set(found):
            found[loaded] = here
            ahead.append(loaded)
    return found


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _room(name) != "funcmq"))
def test_rooms_import_only_broker(module: str) -> None:
    """`broker` imports no other room; `forwarder`, `endpoint` and `client` import `broker` and never each other or the face."""
    room = _room(module)
    ours = {name for name in _imports(module) if name.split(".")[0] == "funcmq"}
    others = {name for name in ours if _room(name) not in MAY_IMPORT[room] | {room}}
    assert others - {"funcmq"} == set()


@pytest.mark.parametrize(
    "module", sorted(name for name in MODULES if _room(name) in ("forwarder", "endpoint") and name not in OTHER_PROCESSES)
)
def test_front_door_and_daemon_cannot_unpickle(module: str) -> None:
    """Nothing of ours that the front door or the daemon imports, however indirectly, imports something that unpickles."""
    reached = _reach(module)
    guilty = {name: via for name, via in reached.items() if name != READS_FRAMES and _imports(name) & UNPICKLERS}
    assert guilty == {}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if _room(name) in ("broker", "client")))
def test_broker_and_client_run_on_windows(module: str) -> None:
    """`broker` and `client` name nothing that only POSIX has: beamline control computers run Windows."""
    assert {name.split(".")[0] for name in _imports(module)} & POSIX_ONLY == set()


def test_the_face_is_lazy() -> None:
    """`import funcmq` imports no room."""
    assert {name for name in _reach("funcmq") if _room(name) != "funcmq"} == set()
