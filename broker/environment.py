"""Does this function fit that Python?  Asked by the client before it sends, by the front door before it accepts, and by the worker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from funcmq.broker.errors import EnvironmentMismatch
from funcmq.broker.messages import PoolStatus


@dataclass(frozen=True, slots=True)
class Wanted:
    """A function, the minor version of Python that it needs ('' any), and why it does not go as source, beginning with 'it'."""

    name: str
    python: str
    why: str = ""


def minor(version: str) -> str:
    """`3.12` of `3.12.1`."""
    return ".".join(version.split(".")[:2])


def pythons(pools: Iterable[PoolStatus], pool: str) -> dict[str, str]:
    """Versions of Python by pool, of those that a task for this pool ('' any) may run in; empty where one of them is not known."""
    meant = [status for status in pools if pool in ("", status.name)]
    known = {status.name: status.versions.get("python", "") for status in meant}
    return known if all(known.values()) else {}


def check(wanted: Wanted, endpoint: str, pools: Iterable[PoolStatus], pool: str) -> EnvironmentMismatch | None:
    """Why no pool of this endpoint can run the function; None where one can, or where that is not known."""
    known = pythons(pools, pool)
    if not wanted.python or not known or wanted.python in {minor(version) for version in known.values()}:
        return None
    there = ", ".join(f"the pool {name} of {endpoint} has Python {version}" for name, version in known.items())
    return mismatch(wanted, there, minor(next(iter(known.values()))))


def mismatch(wanted: Wanted, there: str, theirs: str) -> EnvironmentMismatch:
    """The error that says both versions and what to do; `there` is who has the other one, and `theirs` which."""
    why = f", because {wanted.why}" if wanted.why else ""
    ask = "" if wanted.why else "; `strategy='source'` says what keeps a function from running on both"
    return EnvironmentMismatch(
        f"{wanted.name} was made by Python {wanted.python} and cannot travel as source{why}; {there}.",
        hint=f"Use Python {theirs} here (`conda create -n funcmq-{theirs} python={theirs}`, then `pip install funcmq` in it), "
        f"or a pool with Python {wanted.python}{ask}.",
    )
