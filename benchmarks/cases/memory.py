"""The peak of memory while a file much larger than any buffer is moved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.bench import Bench, Case
from benchmarks.data import sparse_file
from benchmarks.measure import BenchmarkError, Goal, Sample, Turn
from benchmarks.pool import Pool, folder_host

__all__ = ["CASES"]

_MOST = 200 * 1024**2
UP, UP_UNCACHED, DOWN = "up through the cache", "up past a small cache", "down"


@contextmanager
def huge(bench: Bench) -> Iterator[Sequence[Turn]]:
    size = bench.sizes.huge
    bench.need_disk(5 * size // 2)

    def run() -> dict[str, Sample]:
        samples = {}
        with bench.fresh() as fresh:
            source = sparse_file(fresh / "source", size)
            manifest = fresh / "manifest"
            for label, capacity in ((UP_UNCACHED, size // 2), (UP, 2 * size)):
                pool = Pool.make(fresh, [folder_host(fresh / label)], capacity=capacity)
                samples[label] = bench.measure(pool.upload(source, manifest=manifest))
                if label != UP:
                    shutil.rmtree(fresh / label)
            shutil.rmtree(pool.folder / "storage")
            cold = Pool.make(
                fresh, [folder_host(fresh / UP)], capacity=2 * size, database=pool.database
            )
            target = fresh / "target"
            samples[DOWN] = bench.measure(cold.download(manifest, target))
            if sum(path.stat().st_size for path in target.rglob("*.bin")) != size:
                raise BenchmarkError("the file that came back has another size")
        return samples

    yield [Turn("10 GiB", run)]


CASES = (
    Case(
        "memory",
        tuple(
            Goal(
                f"peak memory moving a huge file, {label}, against 200 MiB",
                label,
                1.0,
                absolute=_MOST,
                measure="rss",
            )
            for label in (UP, UP_UNCACHED, DOWN)
        ),
        huge,
        most_rounds=1,
    ),
)
