"""One run of the benchmarks: sizes, folders, and the rounds in which contenders take turns."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from benchmarks import data
from benchmarks.measure import BenchmarkError, Goal, Missing, Sample, Turn, run_process
from benchmarks.peers import base_env

__all__ = ["FULL", "QUICK", "Bench", "Case", "Result", "Sizes", "run_case"]

MIB = 1024**2
_PEER_MISSING = 3  # `probes.MISSING`; importing that would load the library into this process


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is moved. Sizes in bytes."""

    files: int
    big: int
    huge: int
    catalog: int
    cache_many: int
    cache_few: int


FULL = Sizes(5000, 1024 * MIB, 10 * 1024 * MIB, 1_000_000, 100_000, 1000)
QUICK = Sizes(500, 64 * MIB, 64 * MIB, 20_000, 2000, 1000)


class Bench:
    """Where a run works, and what its cases share."""

    def __init__(
        self, folder: Path, servers: Path, cache: Path, sizes: Sizes, *, quick: bool
    ) -> None:
        self.folder = folder
        self._servers = servers
        self.cache = cache
        self.sizes = sizes
        self.quick = quick
        self.notes: list[str] = []
        self._numbers = itertools.count()
        self._base_env = base_env(folder / "home")

    @cached_property
    def small(self) -> Path:
        """The tree of small files."""
        return data.small_files(self.folder / "small", self.sizes.files)

    @cached_property
    def big(self) -> Path:
        """The folder with the one large file."""
        return data.big_file(self.folder / "big", self.sizes.big)

    @contextmanager
    def fresh(self, *, keep: bool = False) -> Iterator[Path]:
        """A folder for one turn, gone afterwards; with `keep` only when the run ends.

        Whatever holds thousands of files is kept. ext4 without a journal steps over every inode
        that was deleted in the last seconds when it looks for a free one: deleting the trees of
        one turn made the next contender pay 0.2 ms for each file it created.
        """
        path = self.folder / f"turn{next(self._numbers)}"
        path.mkdir()
        try:
            yield path
        finally:
            if not keep:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def server_folder(self) -> Iterator[Path]:
        """A folder for what a server stores, gone afterwards."""
        path = self._servers / f"server{next(self._numbers)}"
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def measure(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        warm: Path | None = None,
    ) -> Sample:
        """Run a program from the same state for everybody.

        `warm` was read before, so its bytes are in the page cache, and nothing of an earlier turn
        waits to be written. What the program itself writes is flushed by it or not at all.
        """
        if warm is not None:
            _read_all(warm)
        if not self.quick:
            os.sync()
        root = Path(__file__).resolve().parent.parent
        return run_process(argv, {**self._base_env, **(env or {})}, cwd=root)

    def probe(self, *arguments: str | Path) -> dict[str, Sample]:
        """Run ``benchmarks.probes``; its figures are seconds per call."""
        argv = [sys.executable, "-m", "benchmarks.probes", *map(str, arguments)]
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            argv, cwd=root, env=self._base_env, capture_output=True, text=True, check=False
        )
        if done.returncode == _PEER_MISSING:
            raise Missing(done.stderr.strip())
        if done.returncode != 0:
            raise BenchmarkError(f"{arguments[0]} failed: {done.stderr.strip()[-2000:]}")
        return {label: Sample(seconds) for label, seconds in json.loads(done.stdout).items()}

    def need_disk(self, size: int) -> None:
        """Raise unless `size` bytes are free where we work."""
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise BenchmarkError(
                f"this case needs {size // MIB} MiB of disk and {free // MIB} are free: "
                "choose another --folder, or leave it out with --cases"
            )


@dataclass(frozen=True, slots=True)
class Case:
    """Some turns on the same data, and the goals they are judged by.

    `most_rounds` is for what varies little and takes minutes.
    """

    name: str
    goals: Sequence[Goal]
    turns: Callable[[Bench], AbstractContextManager[Sequence[Turn]]]
    most_rounds: int = sys.maxsize


@dataclass(slots=True)
class Result:
    """The samples of a case by label."""

    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def run_case(case: Case, bench: Bench, rounds: int, tell: Callable[[str], object]) -> Result:
    """Run all turns of a case `rounds` times, each round beginning with another one."""
    result = Result(case)
    rounds = min(rounds, case.most_rounds)
    with case.turns(bench) as turns:
        for number in range(rounds):
            first = number % len(turns)
            for turn in (*turns[first:], *turns[:first]):
                tell(f"{case.name}, round {number + 1} of {rounds}: {turn.label}")
                for label, sample in turn.run().items():
                    result.samples.setdefault(label, []).append(sample)
    return result


def _read_all(path: Path) -> None:
    files = [path] if path.is_file() else (each for each in path.rglob("*") if each.is_file())
    buffer = memoryview(bytearray(MIB))
    for each in files:
        with contextlib.closing(each.open("rb", buffering=0)) as file:
            while file.readinto(buffer):
                continue
