"""The folder on the node's own disk in which a worker's tasks run."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path


class Scratch:
    """A private folder, locked as long as this process lives.  Those of dead workers are removed by the next one that starts: a killed
    worker cannot tidy up.
    """

    def __init__(self) -> None:
        self._prefix = f"funcmq-worker-{os.getuid()}-"
        self.path, self._lock = _make(self._prefix)
        for left in self.path.parent.glob(self._prefix + "*"):
            _remove_if_dead(left)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _make(prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        # a worker that starts at this moment may have taken it for a dead one's before it was locked
        if (handle := _lock(path)) is not None:
            if path.exists():
                return path, handle
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where another process holds it, or it is not a folder of ours."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(handle)
    except OSError:
        os.close(handle)
        return None
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
        os.close(handle)
        return None
    return handle


def _remove_if_dead(folder: Path) -> None:
    if (handle := _lock(folder)) is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
