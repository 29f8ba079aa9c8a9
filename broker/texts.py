"""The text of a function: found, and proved to be what runs."""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType

from funcmq.broker.references import global_names

ANNOTATIONS = __future__.annotations.compiler_flag
"""With this flag programs are compiled."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef


class NoProgram(Exception):
    """This function cannot travel as source; says why, beginning with `it`."""


def text_of(function: FunctionType) -> str:
    """The dedented source of a function, which is what runs."""
    return read(function)[0]


def read(function: FunctionType) -> tuple[str, CodeType]:
    """Source, and the code that it gives where it stands alone."""
    if function.__name__ == "<lambda>":
        raise NoProgram("it is a lambda (give it a name with def)")
    known = _source_of(function.__code__, function.__code__.co_filename)
    if known is None:
        raise NoProgram(f"the source of {name_of(function)} cannot be found, or is not what runs")
    return known


@functools.lru_cache(maxsize=256)
def _source_of(code: CodeType, _file: str) -> tuple[str, CodeType] | None:
    # the file is named because equal code of another file may have other comments
    try:
        text = textwrap.dedent(inspect.getsource(code))
        text.encode()
        whole = _compiled("".join(inspect.findsource(code)[0]), code.co_flags & ANNOTATIONS)
        alone = next(_inside(_compiled(text, ANNOTATIONS)), None)
        plain = isinstance(ast.parse(text).body[0], Definition)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    # where a file imports a name decides which instructions call through it: the file is compiled as a whole
    current = any(one.co_code == code.co_code and _alike(one, code, exactly=True) for one in _inside(whole))
    if not (plain and current and alone is not None and _alike(alone, code)):
        return None
    return (text, alone) if global_names(alone) <= global_names(code) else None  # a class changes names like __x


@functools.lru_cache(maxsize=16)
def _compiled(text: str, flags: int) -> CodeType:
    # notebooks may await in a cell
    code: CodeType = compile(text, "", "exec", flags=flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def _inside(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)


def _alike(one: CodeType, other: CodeType, *, exactly: bool = False) -> bool:
    """Whether both have the same parameters and names; and exactly: the same instructions and constants, wherever they stand."""
    if any(getattr(one, name) != getattr(other, name) for name in _ALIKE):
        return False
    if not exactly:
        return True
    if one.co_code != other.co_code or one.co_names != other.co_names or len(one.co_consts) != len(other.co_consts):
        return False
    return all(_equal(mine, theirs) for mine, theirs in zip(one.co_consts, other.co_consts, strict=True))


def _equal(mine: object, theirs: object) -> bool:
    if isinstance(mine, CodeType) and isinstance(theirs, CodeType):
        return _alike(mine, theirs, exactly=True)
    return mine == theirs if isinstance(mine, frozenset) else repr(mine) == repr(theirs)


_ALIKE = ("co_name", "co_varnames", "co_freevars", "co_argcount", "co_posonlyargcount", "co_kwonlyargcount")


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> Definition:
    """The syntax of a function's text."""
    node = ast.parse(text).body[0]
    assert isinstance(node, Definition), "text_of has seen to that"
    return node


def name_of(function: FunctionType) -> str:
    """What its owner calls it."""
    return function.__qualname__
