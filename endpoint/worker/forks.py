"""What the fork server of a node loads, once for all workers.  Importing it changes the process that does: nothing else imports it.

The server ends when its manager does, however that happens, and every worker ends with the server.  A server whose manager was gone before
it could ask for that sees its pipe closed.
"""

from __future__ import annotations

import gc
import os
import signal

from funcmq.endpoint.worker.orphans import signal_when_orphaned

signal_when_orphaned(signal.SIGKILL)

import parsl.executors.high_throughput.process_worker_pool  # noqa: E402, F401 (the first thing is to be nobody's orphan)

import funcmq.endpoint.worker.entry  # noqa: E402, F401


class _Tie:
    """Ties what the server forks to the server; what is forked further on is not its business."""

    def __init__(self) -> None:
        self._server = os.getpid()
        self._inside = False
        os.register_at_fork(after_in_child=self._tie)

    def _tie(self) -> None:
        if self._inside:
            return
        self._inside = True
        signal_when_orphaned(signal.SIGTERM)
        if os.getppid() != self._server:
            os._exit(1)


_tie = _Tie()
gc.collect()
gc.freeze()  # a collection in a worker would write to every object, and so copy the memory that is shared
