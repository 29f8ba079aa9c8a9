"""What a function refers to: its globals, its closure, its defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

MISSING: Final = object()
"""Stands for a variable that has no value yet."""


def variables(function: Callable[..., Any]) -> Iterator[tuple[str, object]]:
    """Everything that a pickle of this function takes along, and what to call it."""
    if isinstance(function, functools.partial):
        yield from ((f"argument {index} of the partial", value) for index, value in enumerate(function.args))
        yield from ((f"argument {name!r} of the partial", value) for name, value in function.keywords.items())
        function = function.func
    if isinstance(function, MethodType):
        yield "its object", function.__self__
    elif isinstance(function, FunctionType):
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        yield from ((f"its closure variable {name!r}", peek(cell)) for name, cell in cells)
        names = function.__globals__
        yield from ((f"the global variable {name!r}", names[name]) for name in sorted(global_names(function.__code__)) if name in names)
        yield from (("a default of it", value) for value in function.__defaults__ or ())
    elif hasattr(function, "__dict__") and not isinstance(function, type):
        yield from ((f"its attribute {name!r}", value) for name, value in vars(function).items())


def peek(cell: Any) -> object:
    """What is in a closure's cell."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return MISSING


@functools.lru_cache(maxsize=1024)
def global_names(code: CodeType) -> frozenset[str]:
    """Names that code may look up as globals; some are attributes only, which costs a look and harms nothing."""
    inner = [global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


def qualified(value: Any) -> str:
    """The name of a function or class within its module."""
    return str(getattr(value, "__qualname__", value.__name__))


def found(module: ModuleType, value: Any) -> bool:
    """Whether the module has this function or class under its own name."""
    here: Any = module
    for part in qualified(value).split("."):
        here = getattr(here, part, None)
    return here is value
