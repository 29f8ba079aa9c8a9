"""The child process in which tasks run: started, spoken with, ended.  Nothing here decides anything."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from funcmq.broker import codec
from funcmq.endpoint.worker.packet import TAIL
from funcmq.endpoint.worker.wire import Finished, Frames, Run, Skip, frame

GRACE_S = 0.5
"""Seconds between SIGTERM and SIGKILL."""
START_S = 120.0
"""Seconds that a child may take to import itself; a shared file system under load is slow."""
GONE_S = 5.0
"""Seconds that the kernel may take to end a killed process."""
_READ = 1 << 20


class ChildBrokenError(Exception):
    """The child cannot be used any more; says why."""


class Child:
    """One child in a session of its own, whose process group is ended as a whole.

    It has /dev/null as stdin and unlinked files as stdout and stderr; the child empties these after each member, so they hold what the
    running one wrote.
    """

    def __init__(self, home: Path) -> None:
        self._control, theirs = socket.socketpair()
        self._results, results = os.pipe()
        self._out, self._err = _open_output(home), _open_output(home)
        command = [sys.executable, "-u", "-P", "-m", "funcmq.endpoint.worker.child", str(theirs.fileno()), str(results), str(os.getpid())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._err,
                pass_fds=(theirs.fileno(), results),
                cwd=home,
                start_new_session=True,
            )
        os.close(results)
        self._gone = death_of(self._process.pid)
        self._control.setblocking(False)
        os.set_blocking(self._results, False)
        self._frames = Frames()
        self._unsent = b""
        self._alive = True
        self._rung = False

    @property
    def alive(self) -> bool:
        """Whether it lives and can be spoken with, as of the last `wait`."""
        return self._alive

    def await_ready(self) -> None:
        """Wait until it has started.

        :raises ChildBrokenError: it died, or did not start in time.
        """
        until = time.monotonic() + START_S
        while not self._rung:
            if not self._alive:
                raise ChildBrokenError("it could not start")
            if time.monotonic() >= until:
                raise ChildBrokenError(f"it did not start within {START_S:.0f} s")
            self.wait(until, None)

    def send(self, message: Run | Skip) -> None:
        """Say this; what does not fit now goes while waiting."""
        self._unsent += frame(message)
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._unsent:
                self._unsent = self._unsent[self._control.send(self._unsent) :]

    def read(self) -> list[Finished]:
        """What has been finished since the last time; never waits.

        :raises ChildBrokenError: the pipe carries something else.
        """
        found: list[Finished] = []
        try:
            while data := os.read(self._results, _READ):
                found += [codec.decode(Finished, body) for body in self._frames.feed(data)]
        except BlockingIOError:
            pass
        except Exception as broken:
            raise ChildBrokenError(f"what it answers cannot be read: {broken}") from broken
        return found

    def wait(self, until: float | None, also: int | None) -> None:
        """Wait until the child rings, is ready for more, or has died, until something comes on the descriptor `also`, or until then."""
        poll = select.poll()
        poll.register(self._gone, select.POLLIN)
        poll.register(self._control, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        if also is not None:
            poll.register(also, select.POLLIN)
        events = dict(poll.poll(_milliseconds(until)))
        control = events.get(self._control.fileno(), 0)
        if control & select.POLLOUT:
            self._flush()
        if control & ~select.POLLOUT:
            self._hear_bell()
        if self._gone in events:
            self._alive = False

    def _hear_bell(self) -> None:
        try:
            rung = self._control.recv(4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            rung = b""
        self._rung = bool(rung)
        # a task that closes all descriptors leaves a child that lives and cannot be spoken with
        self._alive = self._alive and bool(rung)

    def end(self, gently: bool = False) -> str:
        """End it and everything in its process group, and say how it ended: `exit status 3`, `signal SIGSEGV`."""
        if gently:
            self._signal(signal.SIGTERM)
            self._await_death(GRACE_S)
        self._signal(signal.SIGKILL)
        self._alive = False
        if not self._await_death(GONE_S):
            return "it cannot be ended"
        status = self._process.wait()
        return f"signal {_signal_name(-status)}" if status < 0 else f"exit status {status}"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _await_death(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._gone, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def died(self) -> str:
        """How it ended by itself; what it left running in its group is ended too."""
        self._await_death(GRACE_S)
        return self.end()

    def output(self) -> tuple[str, str]:
        """The tails of what the running member wrote to stdout and stderr."""
        return tail(self._out), tail(self._err)

    def close(self) -> None:
        """Give back descriptors; end it first."""
        self._control.close()
        for handle in (self._results, self._out, self._err, self._gone):
            os.close(handle)


def death_of(pid: int, use_pidfd: bool = hasattr(os, "pidfd_open")) -> int:
    """A descriptor that becomes readable when this child ends.

    Kernels before 5.3 and some sandboxes have no pidfds; there a thread waits for the child, without reaping it, and closes a pipe.
    """
    if use_pidfd:
        with contextlib.suppress(OSError):
            return os.pidfd_open(pid)
    gone, held = os.pipe()
    threading.Thread(target=_await_exit, args=(pid, held), name=f"death of {pid}", daemon=True).start()
    return gone


def _await_exit(pid: int, held: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(held)


def _milliseconds(until: float | None) -> int | None:
    """What poll takes; rounded up, so that a time that was waited for has come."""
    return None if until is None else max(0, math.ceil((until - time.monotonic()) * 1000))


def tail(handle: int) -> str:
    """The last bytes of a file as text."""
    size = os.fstat(handle).st_size
    return os.pread(handle, TAIL, max(0, size - TAIL)).decode("utf-8", "replace") if size else ""


def _open_output(home: Path) -> int:
    """A file without a name, to which everybody appends: emptying it is then possible at any time."""
    handle, path = tempfile.mkstemp(dir=home)
    Path(path).unlink()
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) | os.O_APPEND)
    return handle


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
