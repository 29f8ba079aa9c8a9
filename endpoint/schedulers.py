"""Which batch system this host submits to, told by the programs on its PATH."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

Which = Callable[[str], str | None]
_PROGRAMS = {
    "cobalt": ("qsub", "qstat", "cqwait"),
    "slurm": ("sbatch", "squeue", "scancel"),
    "pbs": ("qsub", "qstat", "qdel"),
}
"""Cobalt has PBS's names and its own `cqwait`, so it is looked for first."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A batch system; `program` submits, `missing` are programs that should be there with it."""

    name: str
    program: str
    missing: tuple[str, ...]


def detect(which: Which = shutil.which) -> Scheduler | None:
    """The batch system of this host; None where there is none."""
    for name, programs in _PROGRAMS.items():
        found = {program: which(program) for program in programs}
        submits = found[programs[0]]
        if submits and (name != "cobalt" or found["cqwait"]):
            return Scheduler(name, submits, tuple(program for program, path in found.items() if not path))
    return None
