"""What HTEX calls in its worker processes: one packet in, one report out.

Nothing of a user runs in this process, and nothing is unpickled: it keeps one child for that, and ends it when a task is over its walltime
or cancelled.  The child is used again for later packets, because starting one takes longer than most tasks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from multiprocessing.util import Finalize
from typing import Literal

import zmq

from funcmq.broker import codec
from funcmq.broker.errors import FuncmqError
from funcmq.broker.messages import Failure
from funcmq.endpoint.worker.cancels import Cancels
from funcmq.endpoint.worker.ledger import End, Ledger
from funcmq.endpoint.worker.orphans import signal_when_orphaned
from funcmq.endpoint.worker.packet import Done, Packet, Report
from funcmq.endpoint.worker.process import Child, ChildBrokenError
from funcmq.endpoint.worker.scratch import Scratch
from funcmq.endpoint.worker.wire import Run, Skip

_SHOWN = 2000
"""Characters of stderr that the message of a death quotes."""


def run(buffer: bytes) -> bytes:
    """The encoded `Report` of an encoded `Packet`.  Never raises.  Called by one thread at a time."""
    return codec.encode(_holder.run(buffer))


class Worker:
    """One child and what belongs to it.  Not thread-safe."""

    def __init__(self) -> None:
        self._scratch = Scratch()
        self._cancels = Cancels()
        self._child: Child | None = None
        self._host = socket.gethostname()

    def run(self, buffer: bytes) -> Report:
        """Run a packet."""
        try:
            packet = codec.decode(Packet, buffer)
        except FuncmqError as broken:
            return self._report([], f"This worker cannot read its packet: {broken.message}")
        trouble = self._listen(packet)
        ledger = Ledger(packet.members)
        try:
            self._work(ledger, buffer)
        except Exception as broken:  # noqa: BLE001 (whatever is wrong with this worker must not take finished results with it)
            trouble = f"{type(broken).__name__}: {broken}"
            self._drop()
        while ledger.running:
            ledger.close(_died(ledger, trouble, ("", "")))
        return self._report(ledger.done, trouble)

    def _report(self, done: list[Done], trouble: str) -> Report:
        return Report(Report.VERSION, self._host, os.getpid(), done, trouble)

    def _listen(self, packet: Packet) -> str:
        try:
            self._cancels.listen(packet.cancels, packet.certificates)
        except (OSError, ValueError, zmq.ZMQError) as broken:
            return f"This worker cannot hear cancels: {broken}"
        return ""

    def _work(self, ledger: Ledger, buffer: bytes) -> None:
        """Until every member has ended: give what is left to a child, and attend to it."""
        child = self._ready_child(ledger)
        while ledger.running and child is not None:
            ledger.start(time.monotonic())
            child.send(Run(ledger.since, ledger.open, buffer))
            self._attend(child, ledger)
            if ledger.running:
                child = self._ready_child(ledger)

    def _ready_child(self, ledger: Ledger) -> Child | None:
        """A child that waits for work; None when none can be started, and then all that is left has died."""
        if self._child is not None:
            self._child.wait(time.monotonic(), None)
            if self._child.alive:
                return self._child
            self._drop()
        self._child = child = Child(self._scratch.path)
        try:
            child.await_ready()
        except ChildBrokenError as broken:
            end, output = child.died(), child.output()
            self._drop()
            while ledger.running:
                ledger.close(_died(ledger, f"{broken} ({end})", output))
            return None
        return child

    def _attend(self, child: Child, ledger: Ledger) -> None:
        """Return when nothing is left, or the child is gone."""
        while True:
            alive = child.alive
            try:
                _collect(child, ledger)
            except (ChildBrokenError, ValueError) as broken:
                self._bury(child, ledger, str(broken))
                return
            if not ledger.running:
                return
            if not alive:
                self._bury(child, ledger, "")
                return
            self._hear(child, ledger)
            now = time.monotonic()
            if end := ledger.verdict(now):
                self._kill(child, ledger, end)
                return
            child.wait(ledger.due(now), self._cancels.fd)

    def _hear(self, child: Child, ledger: Ledger) -> None:
        for task in self._cancels.hear():
            if ledger.cancel(task, time.monotonic()):
                child.send(Skip(task))

    def _kill(self, child: Child, ledger: Ledger, end: End) -> None:
        """End the member that runs; if it was faster than we, it keeps its result."""
        doomed = ledger.running
        child.end(gently=True)
        with contextlib.suppress(ChildBrokenError, ValueError):
            _collect(child, ledger)
        if ledger.running is doomed and doomed is not None:
            ledger.close(_ended(ledger, end, child.output()))
        self._drop()

    def _bury(self, child: Child, ledger: Ledger, reason: str) -> None:
        """The child has died under the member that runs."""
        end = child.died()
        ledger.close(_died(ledger, f"{reason} ({end})" if reason else end, child.output()))
        self._drop()

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()
            child.close()

    def close(self) -> None:
        """End the child and remove the scratch folder."""
        self._drop()
        self._cancels.close()
        self._scratch.close()


class _Holder:
    """The worker of this process: HTEX calls a function, so it has to live in the module.  Made at first use, and anew after a fork.

    From then on the process takes its child and its folder along when it is ended with SIGTERM, as HTEX does, and ends when its manager is
    gone.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._pid = 0

    def run(self, buffer: bytes) -> Report:
        """Run a packet; what cannot even begin is said in the report."""
        try:
            if self._worker is None or self._pid != os.getpid():
                self._worker, self._pid = Worker(), os.getpid()
                self._settle()
            return self._worker.run(buffer)
        except Exception as broken:  # noqa: BLE001 (an exception would reach HTEX, which would take the whole packet for lost)
            return Report(
                Report.VERSION, socket.gethostname(), os.getpid(), [], f"This worker cannot work: {type(broken).__name__}: {broken}"
            )

    def _settle(self) -> None:
        Finalize(None, self.close, exitpriority=0)  # a forked process of multiprocessing ends without atexit
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)
            signal_when_orphaned(signal.SIGTERM)

    def _terminate(self, number: int, _frame: object) -> None:
        with contextlib.suppress(Exception):
            self.close()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def close(self) -> None:
        """End what this process has started."""
        if self._worker is not None and self._pid == os.getpid():
            self._worker.close()
        self._worker = None


_holder = _Holder()


def _collect(child: Child, ledger: Ledger) -> None:
    for finished in child.read():
        ledger.finish(finished)


def _ended(ledger: Ledger, end: End, output: tuple[str, str]) -> Done:
    member = ledger.running
    assert member is not None
    if end == "walltime":
        failure = Failure("WalltimeExceeded", f"{member.name} ran longer than its walltime of {member.walltime_s:g} s and was ended.")
    else:
        failure = Failure("TaskCancelled", f"{member.name} was cancelled while it ran.")
    return _close(ledger, end, failure, output)


def _died(ledger: Ledger, how: str, output: tuple[str, str]) -> Done:
    member = ledger.running
    assert member is not None
    said = output[1].strip()[-_SHOWN:]
    message = f"The process of {member.name} died under it: {how}."
    if how == "signal SIGKILL":
        message += "  Often that is the kernel, out of memory."
    return _close(
        ledger,
        "died",
        Failure("WorkerDied", message + (f"\nIts stderr ended with:\n{said}" if said else "  It wrote nothing to stderr.")),
        output,
    )


def _close(ledger: Ledger, state: End | Literal["died"], failure: Failure, output: tuple[str, str]) -> Done:
    member, took = ledger.running, max(0.0, time.monotonic() - ledger.since)
    assert member is not None
    now = time.time()
    return Done(member.id, state, None, failure, int((now - took) * 1000), int(now * 1000), took, *output)
