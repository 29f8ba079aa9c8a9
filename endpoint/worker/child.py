"""The process in which tasks run: `python -m funcmq.endpoint.worker.child CONTROL RESULTS PARENT`, started by the worker and spoken with as
`wire` says.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from funcmq.broker import codec
from funcmq.broker.messages import Failure
from funcmq.endpoint.worker import context
from funcmq.endpoint.worker.call import Caller, Result, WorkerFaultError
from funcmq.endpoint.worker.orphans import signal_when_orphaned
from funcmq.endpoint.worker.packet import TAIL, Done, Member, Packet
from funcmq.endpoint.worker.wire import LONG_S, Finished, Frames, Run, Skip, frame, read_order

_READ = 1 << 18


class Link:
    """The child's end of control and results."""

    def __init__(self, control: int, results: int) -> None:
        self._control = socket.socket(fileno=control)
        self._control.setblocking(False)
        self._results = results
        os.set_blocking(results, False)
        self._frames = Frames()
        self._heard: deque[Run | Skip] = deque()

    def ring(self) -> None:
        """Tell the worker to look.  A full socket means that it has bells enough."""
        try:
            self._control.send(b"!")
        except BlockingIOError:
            return

    def next_run(self) -> Run | None:
        """Wait for work; None when the worker is gone.  A `Skip` that came too late is dropped."""
        while True:
            while self._heard:
                message = self._heard.popleft()
                if isinstance(message, Run):
                    return message
            select.select([self._control], [], [])
            if not self._hear():
                return None

    def skips(self) -> set[bytes]:
        """Tasks that are not to be started, said since the last time; never waits."""
        self._hear()
        said = {message.task for message in self._heard if isinstance(message, Skip)}
        self._heard = deque(message for message in self._heard if isinstance(message, Run))
        return said

    def _hear(self) -> bool:
        try:
            data = self._control.recv(_READ)
        except BlockingIOError:
            return True
        for body in self._frames.feed(data):
            self._heard.append(read_order(body))
        return bool(data)

    def write(self, message: Finished) -> None:
        """Into the pipe, before anything else happens."""
        data = frame(message)
        while True:
            try:
                data = data[os.write(self._results, data) :]
            except BlockingIOError:
                self.ring()
                select.select([], [self._results], [])
            if not data:
                return


class Output:
    """stdout and stderr, which are files: what a member wrote is looked at when it ends, and cleared."""

    def __init__(self) -> None:
        self._streams = sys.stdout, sys.stderr
        self._files = os.dup(1), os.dup(2)
        self._flush = ctypes.CDLL(None).fflush

    def begin(self) -> None:
        """Undo what the last member may have done to the names of the streams."""
        sys.stdout, sys.stderr = self._streams

    def end(self) -> tuple[str, str]:
        """The tails of both."""
        self._flush(None)
        out, err = self._files
        return _take(out), _take(err)


def _take(file: int) -> str:
    size = os.lseek(file, 0, os.SEEK_END)
    if not size:
        return ""
    text = os.pread(file, TAIL, max(0, size - TAIL)).decode("utf-8", "replace")
    os.ftruncate(file, 0)
    return text


@dataclass(slots=True)
class _Clock:
    """When the member under way started, and when skips were last looked for; both CLOCK_MONOTONIC."""

    began: float
    looked: float = 0.0


class Child:
    """Runs packets, one member after another."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._caller = Caller()
        self._output = Output()
        self._slot = context.slot()
        self._home = os.open(".", os.O_RDONLY)
        self._slot.home = str(Path.cwd())

    def serve(self) -> None:
        """Until the worker is gone."""
        self._link.ring()
        while run := self._link.next_run():
            self._run(run, codec.decode(Packet, run.packet))
            self._link.ring()

    def _run(self, run: Run, packet: Packet) -> None:
        clock, skipped = _Clock(run.at), set[bytes]()
        for index in run.members:
            member = packet.members[index]
            if clock.began - clock.looked > LONG_S:
                skipped |= self._link.skips()
                clock.looked = clock.began
            result = _skipped(member) if member.id in skipped else self._member(member, packet, clock.began)
            self._tell(index, member, result, clock)

    def _member(self, member: Member, packet: Packet, began: float) -> Result | str:
        """Run one; a text says why this worker could not."""
        deadline = began + member.walltime_s if member.walltime_s else None
        os.fchdir(self._home)
        self._output.begin()
        self._slot.enter(context.CurrentTask(member.id.hex(), member.attempt, deadline))
        try:
            return self._caller.call(member, packet.shared, packet.max_inline)
        except WorkerFaultError as fault:
            return str(fault)
        finally:
            self._slot.leave()

    def _tell(self, index: int, member: Member, result: Result | str, clock: _Clock) -> None:
        out, err = self._output.end()
        began, clock.began = clock.began, time.monotonic()
        ended = time.time()
        done = _done(member, result, int((ended - clock.began + began) * 1000), int(ended * 1000), out, err)
        self._link.write(Finished(index, clock.began, done))
        if clock.began - began >= LONG_S:
            self._link.ring()


def _done(member: Member, result: Result | str, started: int, ended: int, out: str, err: str) -> Done:
    if isinstance(result, str):
        failure = Failure("WorkerDied", f"The worker of {member.name} could not run it: {result}.")
        return Done(member.id, "died", None, failure, started, ended, 0.0, out, err)
    failed = result.failure
    state = "succeeded" if failed is None else "cancelled" if failed.code == "TaskCancelled" else "failed"
    return Done(member.id, state, result.value, failed, started, ended, result.run_s, out, err)  # type: ignore[arg-type]


def _skipped(member: Member) -> Result:
    return Result(None, Failure("TaskCancelled", f"{member.name} was cancelled before it started."), 0.0)


def main(arguments: list[str]) -> None:
    """Run until the worker is gone."""
    control, results, parent = map(int, arguments)
    signal_when_orphaned(signal.SIGKILL)
    if os.getppid() != parent:
        return
    for handle in (control, results):
        os.set_inheritable(handle, False)
    faulthandler.enable()
    Child(Link(control, results)).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
