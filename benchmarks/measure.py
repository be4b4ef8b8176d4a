"""What is measured: whole processes from start to end, and how samples become a ratio."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BenchmarkError", "Goal", "Missing", "Sample", "Turn", "median", "run_process"]


class BenchmarkError(Exception):
    """A measured program failed, or did something else than it was asked for."""


class Missing(BenchmarkError):
    """A program that a case needs is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: seconds by the clock, seconds of CPU (user + system), peak resident bytes.

    For figures per call `cpu` and `rss` are 0.
    """

    seconds: float
    cpu: float = 0.0
    rss: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that is run once a round; it yields samples under one label or several."""

    label: str
    run: Callable[[], Mapping[str, Sample]]


@dataclass(frozen=True, slots=True)
class Goal:
    """What is compared with what. The ratio is ``subject / peer``; `limit` is what to reach.

    Of several `peers` the one that `pick` (min or max) chooses counts. Without peers the
    `absolute` value takes their place. `measure` is ``seconds`` or ``rss``.
    """

    title: str
    subject: str
    limit: float
    peers: tuple[str, ...] = ()
    pick: Callable[[Iterable[float]], float] = min
    absolute: float | None = None
    measure: str = "seconds"

    def ratio(self, samples: Mapping[str, Sequence[Sample]]) -> float | None:
        """The ratio of the medians; None when no peer was measured."""
        subject = median(samples[self.subject], self.measure)
        peer = self.peer(samples)
        return None if peer is None else subject / peer

    def peer(self, samples: Mapping[str, Sequence[Sample]]) -> float | None:
        """The median that the subject is compared with."""
        if self.absolute is not None:
            return self.absolute
        medians = [median(samples[peer], self.measure) for peer in self.peers if samples.get(peer)]
        return self.pick(medians) if medians else None


def median(samples: Sequence[Sample], measure: str = "seconds") -> float:
    return statistics.median(float(getattr(sample, measure)) for sample in samples)


def run_process(
    argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str], *, cwd: Path | None = None
) -> Sample:
    """Run a program to its end and measure all of it, start-up included.

    Standard output goes to /dev/null: no contender shall pay for a terminal. The peak of the
    resident set cannot fall below that of the process that starts it (Linux carries it
    over exec), so this process is kept small.

    Raises
    ------
    BenchmarkError
        When it does not end with 0, with the end of what it wrote to standard error.
    """
    with tempfile.TemporaryFile() as errors:
        begun = time.perf_counter()
        process = subprocess.Popen(
            argv,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            said = errors.read().decode(errors="replace").strip()
            program = Path(argv[0]).name
            raise BenchmarkError(f"{program} ended with {process.returncode}: {said}")
    scale = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return Sample(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale)
