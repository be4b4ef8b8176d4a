"""Running a program: its output in pieces, a limit to its silence, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import IO

__all__ = ["Lines", "Program"]

_BLOCK = 256 * 1024
_TAIL = 8 * 1024
_TICK = 0.1
_GRACE = 2.0
_LONGEST_LINE = 64 * 1024
_DRAINED = 4 * 1024 * 1024
"""Bytes that are read after the end of a program: more than its two pipes can hold."""


class Program:
    """One run of a program, in a process group and session of its own, as a context manager.

    It has no terminal to ask for a password on. It inherits environment and working directory.
    However the context ends, the whole group has ended before: asked to (SIGTERM), and two
    seconds later made to (SIGKILL).

    Parameters
    ----------
    time_limit:
        Seconds without a sign of life (output, or growth of what `watch` measures).
    total_time_limit:
        Seconds in all; None for no limit.

    Raises
    ------
    OSError
        From ``__enter__``, when the program cannot be started.
    TimeoutError
        From `blocks`, when a limit was reached.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        time_limit: float,
        total_time_limit: float | None = None,
        stdin: IO[bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arguments = arguments
        self._time_limit = time_limit
        self._total_time_limit = total_time_limit
        self._stdin = stdin
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self.errors = b""
        """The last 8 KiB of its standard error."""
        self.returncode: int | None = None
        """The exit code, negative for a signal; None until `blocks` has ended."""

    def __enter__(self) -> Program:
        self._process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.DEVNULL if self._stdin is None else self._stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        if sys.platform == "linux":
            # Elsewhere, and where a sandbox forbids it, the end is noticed at the next tick.
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self._process.pid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._running()
        try:
            if not self._exited():
                self._signal(signal.SIGTERM)
                deadline = time.monotonic() + _GRACE
                while not self._exited() and time.monotonic() < deadline:
                    time.sleep(0.01)
        finally:
            # Before the leader is reaped: until then its number cannot be another group's.
            self._signal(signal.SIGKILL)
            process.wait()
            if self._pidfd >= 0:
                os.close(self._pidfd)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def blocks(
        self,
        *,
        beat: Callable[[], None] | None = None,
        watch: Callable[[], int] | None = None,
    ) -> Iterator[bytes]:
        """Its standard output as it comes, until it has exited.

        `beat` is called about ten times a second while there is nothing; it may raise to end
        the program. `watch` answers with a number that grows while the program gets on.
        """
        process = self._running()
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.fileno(), process.stderr.fileno()
        begun = lively = self._clock()
        watched = 0 if watch is None else watch()
        with selectors.DefaultSelector() as selector:
            for fd in (out, err):
                os.set_blocking(fd, False)
                selector.register(fd, selectors.EVENT_READ)
            if self._pidfd >= 0:
                selector.register(self._pidfd, selectors.EVENT_READ)
            left = _DRAINED
            while True:
                # Asked before reading: what it wrote was written before it exited.
                exited = self._exited()
                if exited:
                    self._signal(signal.SIGKILL)  # what it left in its group
                ready = selector.select(0 if exited else _TICK)
                heard = False
                for key, _ in ready:
                    if key.fd == self._pidfd:
                        continue
                    data = _read(key.fd)
                    if data == b"":
                        selector.unregister(key.fd)
                    if not data:
                        continue
                    heard = True
                    left -= len(data) if exited else 0
                    if key.fd == err:
                        self.errors = (self.errors + data)[-_TAIL:]
                        continue
                    yield data
                if exited and (not heard or left <= 0):
                    # Not until the pipes are closed: a helper in a session of its own, such as
                    # the master of an ssh connection, may hold them, or fill them, for ever.
                    self.returncode = process.wait()
                    return
                now = self._clock()  # after the yield: our reader's time is not the program's
                if watch is not None and (size := watch()) != watched:
                    watched, heard = size, True
                if heard:
                    lively = now
                if exited:
                    continue
                if now - lively >= self._time_limit:
                    raise TimeoutError(f"no sign of life for {self._time_limit:g} s")
                if self._total_time_limit is not None and now - begun >= self._total_time_limit:
                    raise TimeoutError(f"not done after {self._total_time_limit:g} s")
                if beat is not None:
                    beat()

    # -- how -----------------------------------------------------------------------------

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the program runs only inside its context"
        return self._process

    def _exited(self) -> bool:
        """Whether it has ended, where the system can tell without reaping it."""
        process = self._running()
        if process.returncode is not None:
            return True
        if sys.platform == "linux":
            done = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return done is not None
        return process.poll() is not None

    def _signal(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            return  # its group was ended before it was reaped; the number may be another's now
        # macOS says EPERM for a group of which only the dead leader is left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._running().pid, number)


class Lines:
    """Whole lines out of blocks of bytes; those of more than 64 KiB are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, block: bytes) -> Iterator[bytes]:
        """The lines that `block` completes, without their ends."""
        *lines, rest = block.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            whole = self._rest + line
            if not self._dropping and len(whole) <= _LONGEST_LINE:
                yield whole
            self._rest, self._dropping = b"", False
        if self._dropping or len(self._rest) + len(rest) > _LONGEST_LINE:
            self._rest, self._dropping = b"", True
        else:
            self._rest += rest

    def end(self) -> Iterator[bytes]:
        """The last line, when nothing ended it."""
        if self._rest:
            yield self._rest


def _read(fd: int) -> bytes | None:
    """What a pipe holds; ``b""`` at its end, None when it holds nothing after all."""
    try:
        return os.read(fd, _BLOCK)
    except BlockingIOError:
        return None
