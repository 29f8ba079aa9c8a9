"""The interchange of a pool: Parsl's, made to end with its daemon, to serve many messages per turn, and to tell the daemon at once who is
registered.

Run as `python -m funcmq.endpoint.interchange`, with Parsl's configuration on stdin. It relies on names inside parsl==2026.10.26, which is
why that is pinned.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from typing import Any

import zmq
from parsl.executors.high_throughput.interchange import Interchange as ParslInterchange

MANAGERS = "funcmq.managers"
SWEEP_S = 1.0
TURN = 256
"""Messages taken from one socket before the others have their turn."""
_PR_SET_PDEATHSIG = 1


class Interchange(ParslInterchange):
    """See the module."""

    _next_sweep = 0.0
    _next_drain = 0.0
    _told: list[tuple[str, str, str, int]] | None = None
    _seen = (-1, -1)

    def process_task_incoming(self) -> None:
        """Take what has come, not one at a time."""
        for _ in range(TURN):
            super().process_task_incoming()
            if not _readable(self.task_incoming):
                break
            self.socks[self.task_incoming] = zmq.POLLIN

    def process_manager_socket_message(self, interesting_managers: set[bytes], monitoring_radio: Any, kill_event: Any) -> None:
        """Take what has come, then say who is registered if that changed."""
        for _ in range(TURN):
            super().process_manager_socket_message(interesting_managers, monitoring_radio, kill_event)
            if not _readable(self.manager_sock):
                break
            self.socks[self.manager_sock] = zmq.POLLIN
        seen = (len(self._ready_managers), len(self.connected_block_history))
        if seen != self._seen:
            self._seen = seen
            self._tell()

    def expire_bad_managers(self, interesting_managers: set[bytes], monitoring_radio: Any) -> None:
        """As Parsl does, but not at every message: it looks at every manager."""
        if (now := time.monotonic()) >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            super().expire_bad_managers(interesting_managers, monitoring_radio)
            self._tell()

    def expire_drained_managers(self, interesting_managers: set[bytes], monitoring_radio: Any) -> None:
        """As above."""
        if (now := time.monotonic()) >= self._next_drain:
            self._next_drain = now + SWEEP_S
            super().expire_drained_managers(interesting_managers, monitoring_radio)

    def process_tasks_to_send(self, interesting_managers: set[bytes], monitoring_radio: Any) -> None:  # noqa: ARG002 (Parsl's signature)
        """First a packet for every idle worker of every manager, then those sent in advance:

        Parsl would fill one manager to the brim while another has nothing.
        """
        if not (interesting_managers and self.pending_task_queue):
            return
        order = self.manager_selector.sort_managers(self._ready_managers, interesting_managers)
        for capacity in ("worker_count", "max_capacity"):
            for manager_id in order:
                self._feed(manager_id, capacity)
        interesting_managers -= {manager_id for manager_id in order if self._free(manager_id, "max_capacity") <= 0}

    def _free(self, manager_id: bytes, capacity: str) -> int:
        manager: Any = self._ready_managers[manager_id]
        return int(manager[capacity] - len(manager["tasks"])) if manager["active"] and not manager["draining"] else 0

    def _feed(self, manager_id: bytes, capacity: str) -> None:
        free = self._free(manager_id, capacity)
        tasks = self.get_tasks(free) if free > 0 else []
        if not tasks:
            return
        manager = self._ready_managers[manager_id]
        self.manager_sock.send_multipart([manager_id, pickle.dumps(tasks)])
        self.count += len(tasks)
        manager["tasks"].extend(task["task_id"] for task in tasks)
        manager["idle_since"] = None

    def _tell(self) -> None:
        now = [
            (key.decode(), str(manager["block_id"]), str(manager["hostname"]), int(manager["worker_count"]))
            for key, manager in self._ready_managers.items()
            if manager["active"] and not manager["draining"]
        ]
        if now != self._told:
            self._told = now
            self.results_outgoing.send(pickle.dumps({"type": MANAGERS, "managers": now}))


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux); end now if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the daemon is gone")


def main() -> None:
    """Run until the daemon, whose pid is the first argument, is gone or says so.

    The second is the workers' version of Python: Parsl lets in only managers that have the interchange's, and here they may differ.
    """
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the daemon decides what it means
    config = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the daemon, through a pipe)
    interchange = Interchange(**config)
    interchange.current_platform["python_v"] = sys.argv[2]
    interchange.start()


if __name__ == "__main__":
    main()
