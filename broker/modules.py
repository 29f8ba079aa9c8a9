"""Which modules travel with a function: those that a worker may not have."""

from __future__ import annotations

import functools
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal

import cloudpickle

from funcmq.broker.errors import InvalidRequest

ByValue = Literal["auto"] | bool | Sequence[ModuleType]
"""What travels by value beside `__main__`: "auto" modules outside site-packages and the standard library, a sequence exactly these and what
is below them, False none.
"""


def chosen(by_value: ByValue) -> list[ModuleType]:
    """Modules whose functions and classes are to be pickled by value.

    :raises InvalidRequest: that is no way to choose them.
    """
    if by_value is False:
        return []
    if by_value is True or by_value == "auto":
        return list(_local_modules(len(sys.modules), next(reversed(sys.modules), "")))
    if isinstance(by_value, str) or not all(isinstance(module, ModuleType) and module.__name__ in sys.modules for module in by_value):
        raise InvalidRequest(f"by_value is 'auto', False or a list of imported modules, not {by_value!r}.")
    return list(by_value)


@functools.lru_cache(maxsize=1)
def _local_modules(count: int, newest: str) -> tuple[ModuleType, ...]:  # noqa: ARG001 - they are the key of the cache
    """The local ones of `sys.modules`; both parameters say which state of it: whatever is imported or removed changes one of them."""
    return tuple(module for module in list(sys.modules.values()) if is_local(module))


def goes_by_value(module: ModuleType, by_value: ByValue) -> bool:
    """Whether what this module defines is pickled by value."""
    name = module.__name__
    names = {one.__name__ for one in chosen(by_value)} if not isinstance(by_value, bool | str) else set()
    names |= cloudpickle.list_registry_pickle_by_value()
    if name in ("__main__", "__mp_main__") or any(name == other or name.startswith(other + ".") for other in names):
        return True
    return by_value in (True, "auto") and is_local(module)


def is_local(module: object) -> bool:
    """Whether this is a module of Python source outside site-packages and the standard library, and not ours: a worker may not have it."""
    if not isinstance(module, ModuleType):
        return False
    file = module.__dict__.get("__file__")
    if type(file) is not str or not _is_local_file(file):
        return False
    name = module.__name__
    return name not in ("__main__", "__mp_main__") and name.partition(".")[0] != "funcmq" and sys.modules.get(name) is module


@functools.lru_cache(maxsize=16384)
def _is_local_file(file: str) -> bool:
    path = Path(file)
    if path.suffix not in (".py", ".pyc") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in _installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    known = sysconfig.get_paths()
    folders = [known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    # a virtual environment has its own site-packages and the standard library of the Python that it was made from
    base = str(Path(inspect.__file__).parent)
    return (*folders, base, *site.getsitepackages(), site.getusersitepackages())


@contextmanager
def registered(modules: list[ModuleType]) -> Iterator[None]:
    """These modules stand in cloudpickle's registry; those that the user had put there stay."""
    before = cloudpickle.list_registry_pickle_by_value()
    added = [module for module in modules if module.__name__ not in before]
    try:
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        yield
    finally:
        for name in cloudpickle.list_registry_pickle_by_value() - before:
            cloudpickle.unregister_pickle_by_value(ModuleType(name))
