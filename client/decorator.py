"""`@function`: a function that stays local when it is called, and knows how to run far away."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, Unpack

from funcmq.client.executor import Executor
from funcmq.client.futures import TaskFuture
from funcmq.client.options import UNSET, OnOptions, Unset

P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _shared() -> Executor:
    """The executor of all decorated functions of this process; it connects at first use."""
    return Executor()


class RemoteFunction(Generic[P, T]):
    """What `@function` makes.  `executor`: where it runs; None for the process's own, as configured at first use."""

    def __init__(self, fn: Callable[P, T], executor: Executor | None = None) -> None:
        self.__funcmq_function__ = fn
        self._executor = executor
        functools.update_wrapper(self, fn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it here."""
        return self.__funcmq_function__(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method it is the plain function, bound."""
        return self if instance is None else self.__funcmq_function__.__get__(instance, owner)

    def __repr__(self) -> str:
        return f"<function {getattr(self, '__qualname__', '?')} of funcmq>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteFunction, (self.__funcmq_function__,)

    @property
    def _where(self) -> Executor:
        return self._executor or _shared()

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]:
        """Run it far away; the future can be awaited as well as asked for its `result()`."""
        return self._where.submit(self.__funcmq_function__, *args, **kwargs)

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it far away and await the result."""
        return await self.submit(*args, **kwargs)

    def map(self, *iterables: Iterable[Any], chunksize: int | None = None) -> Iterator[T]:
        """The results for all inputs, in order."""
        return self._where.map(self.__funcmq_function__, *iterables, chunksize=chunksize)

    def on(self, endpoint: str | Iterable[str] | Unset | None = UNSET, **options: Unpack[OnOptions]) -> RemoteFunction[P, T]:
        """The same function, run there and so; see `Client.on`."""
        view = self._where.on(endpoint, **options)
        return RemoteFunction(self.__funcmq_function__, view)


def function(fn: Callable[P, T]) -> RemoteFunction[P, T]:
    """Decorator: `f(2)` stays local; `f.submit(2)`, `await f.aio(2)`, `f.map(xs)` run far away; `f.on("polaris")` says where."""
    if not callable(fn):
        raise TypeError(f"@function decorates functions, not {type(fn).__name__}; options belong to f.on(…).")
    return RemoteFunction(fn)
