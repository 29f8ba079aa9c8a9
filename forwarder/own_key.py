"""The front door's own signing key, for users who have none: work that it signs runs only where an endpoint trusts it on purpose.

It lies in a file of its own, mode 0600, made at the first start.  Several front doors of one fabric share one file, or copies of it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from funcmq.broker.errors import ConfigurationError
from funcmq.broker.signing import PrivateKey


def open_key(path: Path | None) -> PrivateKey | None:
    """The key in this file, made if there is none; None without a path: then nothing is signed here.

    :raises ConfigurationError: the file cannot be made or read, can be read by others, or holds no key.
    """
    if path is None:
        return None
    if not path.exists():
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # another front door was faster
                PrivateKey.generate().save(path)
        except OSError as broken:
            raise ConfigurationError(
                f"Cannot make the front door's key {path}: {broken.strerror}.", hint="Set key_file to a path that `funcmq serve` can write."
            ) from None
    return PrivateKey.load(path)
