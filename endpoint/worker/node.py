"""The process worker pool of a node: Parsl's, whose workers are forked from a server instead of started one by one.

Run as `python -P -m funcmq.endpoint.worker.node`, with the arguments of Parsl's process_worker_pool.  A fresh worker would import all of
Parsl, for a second of CPU and tens of megabytes each; a forked one is there in milliseconds and shares that memory.  The server is started
before this process imports Parsl itself, so that both do so side by side.  It relies on names inside parsl==2026.10.26, which is why that
is pinned.
"""

from __future__ import annotations

import importlib
import multiprocessing
import runpy
from multiprocessing import forkserver
from multiprocessing.util import Finalize

from funcmq.endpoint.worker.scratch import Scratch

POOL = "parsl.executors.high_throughput.process_worker_pool"
LOADED = "funcmq.endpoint.worker.forks"
"""What the server loads before it forks."""


def main() -> None:
    """Run until the interchange is gone or says so."""
    _keep_sockets(Scratch())
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LOADED])
    forkserver.ensure_running()
    importlib.import_module("parsl.multiprocessing").SpawnContext = context  # type: ignore[attr-defined]
    runpy.run_module(POOL, run_name="__main__", alter_sys=True)


def _keep_sockets(scratch: Scratch) -> None:
    """Let multiprocessing, here and in what it starts, put its sockets into a folder that is removed even after a kill -9."""
    multiprocessing.current_process()._config["tempdir"] = str(scratch.path)  # type: ignore[attr-defined]  # where its get_temp_dir looks
    Finalize(None, scratch.close, exitpriority=-100)


if __name__ == "__main__":
    main()
