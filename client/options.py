"""The options of `on()`: checked where they are given, and kept as one frozen description that every task of that view shares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final, Literal, TypedDict, cast

from funcmq.broker import messages
from funcmq.broker.ids import is_id
from funcmq.broker.messages import MAX_WAIT_S, Kind, Retry

ByValue = Literal["auto"] | bool | tuple[ModuleType, ...]
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhd])\s*)+\Z")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
MAX_KEY = 255
_RESOURCES = frozenset({"nodes", "ranks", "cores", "memory", "gpus"})


class Unset:
    """The type of `UNSET`, an option that was not given."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """Where and how tasks are to be run.  Compared by identity: one per view.

    `group` is '' for the client's own group; 32 hex digits are an id, anything else is a name.
    """

    endpoint: str | tuple[str, ...] = ""
    group: str = ""
    key: str = ""
    expires_s: float = MAX_WAIT_S
    offline: Literal["wait", "fail"] = "wait"
    by_value: ByValue = "auto"
    strategy: Literal["auto", "pickle", "source"] = "auto"
    how: messages.Options = field(default_factory=messages.Options)
    """As it travels, but for `not_after`, which is set when the bundle is signed."""
    lane: tuple[str, str | tuple[str, ...], str] = field(init=False)
    """Tasks with equal lanes may leave in one bundle."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lane", (self.group, self.endpoint, self.offline))


class OnOptions(TypedDict, total=False):
    """The keywords of `on()`.  None takes an option back to its default."""

    pool: str | None
    walltime: float | str | None
    """Seconds, or text such as "10m", that one task may run."""
    retry: Retry | None
    """"infra" (after lost nodes and processes), "never", or a number of further tries after the function's own errors."""
    expires: float | str | None
    """Time within which it must have started; 7 days by default and at most."""
    priority: int
    """-10 to 10, orders your own tasks."""
    resources: Mapping[str, Any] | None
    """nodes, ranks in total, cores, memory, gpus."""
    group: str | None
    """Name or id of the group that its tasks belong to."""
    key: str | None
    """Two tasks of yours with one key are one task."""
    offline: Literal["wait", "fail"]
    by_value: Literal["auto"] | bool | ModuleType | Sequence[ModuleType]
    """Modules whose functions and classes travel with the task; "auto": those that lie outside site-packages."""
    strategy: Literal["auto", "pickle", "source"]


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments of one `on()`; those left at UNSET keep what the view had before."""

    endpoint: str | Iterable[str] | Unset | None = UNSET
    pool: str | Unset | None = UNSET
    walltime: float | str | Unset | None = UNSET
    retry: Retry | Unset | None = UNSET
    expires: float | str | Unset | None = UNSET
    priority: int | Unset = UNSET
    resources: Mapping[str, Any] | Unset | None = UNSET
    group: str | Unset | None = UNSET
    key: str | Unset | None = UNSET
    offline: str | Unset = UNSET
    by_value: str | bool | ModuleType | Sequence[ModuleType] | Unset = UNSET
    strategy: str | Unset = UNSET

    @classmethod
    def of(cls, endpoint: str | Iterable[str] | Unset | None, options: OnOptions) -> Given:
        """:raises TypeError: there is no such option."""
        if unknown := sorted(options.keys() - cls.__dataclass_fields__.keys()):
            known = ", ".join(cls.__dataclass_fields__)
            raise TypeError(f"on() has no option {', '.join(map(repr, unknown))}; there is {known}.")
        return cls(endpoint, **cast("dict[str, Any]", options))


def narrow(scope: Scope, given: Given) -> Scope:
    """The scope with what is given laid over it.

    :raises TypeError: an option has a value of a wrong type.
    :raises ValueError: an option has a value out of its range.
    """
    how = {name: check(value) for name, check in _HOW.items() if (value := getattr(given, name)) is not UNSET}
    if "walltime" in how:
        how["walltime_s"] = how.pop("walltime")
    own = {name: check(value) for name, check in _OWN.items() if (value := getattr(given, name)) is not UNSET}
    if "expires" in own:
        own["expires_s"] = own.pop("expires")
    return replace(scope, how=_replaced(scope.how, how), **own)


def _replaced(options: messages.Options, changes: dict[str, Any]) -> messages.Options:
    fields = {name: getattr(options, name) for name in options.__struct_fields__}
    return messages.Options(**(fields | changes))


def of_kind(scope: Scope, kind: Kind) -> Scope:
    """The same view for tasks of another kind."""
    return replace(scope, how=_replaced(scope.how, {"kind": kind}))


def at_endpoint(endpoint: str, group: str, how: messages.Options, expires_s: float) -> Scope:
    """The view of a task that was signed before, by ids."""
    return Scope(endpoint=endpoint, group=group, expires_s=expires_s, how=how)


def seconds(value: float | str, what: str) -> float:
    """A positive duration in seconds, from a number or text such as `90`, `"10m"` or `"1h 30m"`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{what} is a number of seconds or text such as '10m', not {type(value).__name__}.")
    found = _parse(value, what) if isinstance(value, str) else float(value)
    if not 0 < found < float("inf"):
        raise ValueError(f"{what} is more than 0 seconds, not {value!r}.")
    return found


def _parse(text: str, what: str) -> float:
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not _DURATION.match(text):
        raise ValueError(f"{what} is a number of seconds or text such as '90s', '10m', '1h 30m', not {text!r}.")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def _text(what: str) -> Any:
    def check(value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str):
            raise TypeError(f"{what} is text, not {type(value).__name__}.")
        return value

    return check


def _endpoint(value: object) -> str | tuple[str, ...]:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, Iterable):
        raise TypeError(f"endpoint is a name, an id or a list of such, not {type(value).__name__}.")
    names = tuple(value)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise TypeError("endpoint is a name, an id or a list of such.")
    return names if len(names) > 1 else names[0]


def _walltime(value: float | str | None) -> float:
    return 0.0 if value is None else seconds(value, "walltime")


def _expires(value: float | str | None) -> float:
    found = float(MAX_WAIT_S) if value is None else seconds(value, "expires")
    if found > MAX_WAIT_S:
        raise ValueError("expires is 7 days at most.")
    return found


def _retry(value: object) -> Retry:
    if value is None:
        return "infra"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"retry is 'infra', 'never' or a number of tries, not {type(value).__name__}.")
    if value not in ("infra", "never") and not (isinstance(value, int) and 0 <= value <= 100):
        raise ValueError(f"retry is 'infra', 'never' or a number of tries from 0 to 100, not {value!r}.")
    return cast("Retry", value)


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"priority is a whole number, not {type(value).__name__}.")
    if not -10 <= value <= 10:
        raise ValueError(f"priority is between -10 and 10, not {value}.")
    return value


def _resources(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"resources is a dict, not {type(value).__name__}.")
    if unknown := sorted(str(name) for name in set(value) - _RESOURCES):
        raise TypeError(f"resources has no {', '.join(unknown)}; there is {', '.join(sorted(_RESOURCES))}.")
    return dict(value)


def _one_of(what: str, *allowed: str) -> Any:
    def check(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"{what} is one of {', '.join(map(repr, allowed))}, not {value!r}.")
        return str(value)

    return check


def _by_value(value: object) -> ByValue:
    if value == "auto" or isinstance(value, bool):
        return cast("ByValue", value)
    modules = (value,) if isinstance(value, ModuleType) else tuple(value) if isinstance(value, list | tuple | set) else ()
    if not modules or not all(isinstance(module, ModuleType) for module in modules):
        raise TypeError("by_value is 'auto', False, a module or a list of modules.")
    return cast("ByValue", modules)


def _key(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"key is text, not {type(value).__name__}.")
    if not 0 < len(value) <= MAX_KEY:
        raise ValueError(f"key is text of 1 to {MAX_KEY} characters; None takes it back.")
    return value


_HOW = {"pool": _text("pool"), "walltime": _walltime, "retry": _retry, "priority": _priority, "resources": _resources}
_OWN = {
    "endpoint": _endpoint,
    "group": _text("group"),
    "key": _key,
    "expires": _expires,
    "offline": _one_of("offline", "wait", "fail"),
    "by_value": _by_value,
    "strategy": _one_of("strategy", "auto", "pickle", "source"),
}


def is_group_id(group: str) -> bool:
    """Whether this is taken as a group's id rather than as its name."""
    return is_id(group)
