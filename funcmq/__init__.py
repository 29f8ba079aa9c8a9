"""funcmq runs Python functions on computers far away, through a RabbitMQ fabric that you host.

The names of `__all__` are what users import; each is loaded at its first use, so that `import funcmq` and `funcmq --help` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funcmq import errors
    from funcmq.client import Client, Executor, TaskFuture, function
    from funcmq.endpoint.worker.context import current_task

    __version__: str

__all__ = ["Client", "Executor", "TaskFuture", "__version__", "current_task", "errors", "function"]

_HOMES = {
    "Client": "funcmq.client",
    "Executor": "funcmq.client",
    "TaskFuture": "funcmq.client",
    "function": "funcmq.client",
    "current_task": "funcmq.endpoint.worker.context",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("funcmq.errors")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("funcmq")
    if name in _HOMES:
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value
    raise AttributeError(f"module 'funcmq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
