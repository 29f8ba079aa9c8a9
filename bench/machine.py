"""What a figure was measured on, and where the CPU time went."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
ROLES = {
    "funcmq serve": "front door and forwarder",
    "beam.smp": "RabbitMQ",
    "funcmq endpoint start": "daemon",
    "funcmq.endpoint.interchange": "interchange",
    "funcmq.endpoint.worker.child": "worker's child",
    "process_worker_pool": "manager and workers",
    "multiprocessing": "manager and workers",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 2
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"


def describe() -> dict[str, str]:
    """Machine and versions, for the head of a report."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    names = ("funcmq", "parsl", "aio-pika", "aiohttp", "msgspec", "cryptography")
    return {
        "machine": f"{os.cpu_count()} × {model or platform.machine()}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def cpu_seconds(root: int) -> dict[str, float]:
    """CPU seconds used so far by each role among the descendants of a process; `client` is this process."""
    used = dict.fromkeys((*ROLES.values(), "client"), 0.0)
    for pid in _descendants(root):
        if role := "client" if pid == os.getpid() else _role(pid):
            used[role] += _cpu(pid)
    return used


def memory(root: int) -> dict[str, float]:
    """Resident MB (proportional share) of each role among the descendants of a process."""
    used: dict[str, float] = {}
    for pid in _descendants(root):
        if role := "client" if pid == os.getpid() else _role(pid):
            used[role] = used.get(role, 0.0) + _resident(pid)
    return used


def _descendants(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    # pool blocks are re-parented on purpose: the daemon marks what it starts by a variable
    found: list[int] = []
    todo = [root, *(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_marked(int(entry.name)))]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return sorted(set(found))


def _is_marked(pid: int) -> bool:
    try:
        return b"FUNCMQ_JOURNAL=" in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICK if fields else 0.0


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _role(pid: int) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    if "/peer" in command:  # the executor that bench.htex runs beside ours
        return None
    return next((role for mark, role in ROLES.items() if mark in command), None)


def as_json(values: dict[str, Spread]) -> dict[str, dict[str, float]]:
    """Spreads as plain data."""
    return {name: asdict(value) for name, value in values.items()}
