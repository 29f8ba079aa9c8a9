"""What a daemon says of itself to its owner, wherever that one sits: its host, its pid, the end of its log."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from funcmq.broker.messages import Ask, Told
from funcmq.endpoint.logfile import MOST_LOG, log_file, tail


def tell(ask: Ask, endpoint: str, run_dir: Path) -> Told:
    """The answer to an order."""
    path = log_file(run_dir)
    text = tail(path, min(ask.size, MOST_LOG)) if ask.size > 0 else ""
    return Told(Told.VERSION, endpoint, ask.id, socket.gethostname(), os.getpid(), str(path), text)
