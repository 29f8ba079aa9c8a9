"""The client room: what users import and type.  Loaded at first use, because the commands' --help needs none of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcmq.client.client import Client
    from funcmq.client.decorator import function
    from funcmq.client.executor import Executor
    from funcmq.client.futures import TaskFuture

__all__ = ["Client", "Executor", "TaskFuture", "function"]

_HOMES = {"Client": "client", "Executor": "executor", "TaskFuture": "futures", "function": "decorator"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"funcmq.client.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'funcmq.client' has no attribute {name!r}")
