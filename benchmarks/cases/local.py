"""Calls that touch no host: hits, look-ups, evictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.bench import Bench, Case
from benchmarks.measure import Goal, Sample, Turn

__all__ = ["CASES"]


@contextmanager
def hits(bench: Bench) -> Iterator[Sequence[Turn]]:
    def run() -> dict[str, Sample]:
        with bench.fresh(keep=True) as fresh:
            return bench.probe("hits", "--folder", fresh, "--count", "1000")

    yield [Turn("hits", run)]


@contextmanager
def existence(bench: Bench) -> Iterator[Sequence[Turn]]:
    count = str(bench.sizes.catalog)
    with bench.fresh() as shared:
        database = shared / "catalog.sqlite3"
        common = ("--count", count, "--database", database)
        bench.probe("catalog", "--folder", shared, *common)

        def run() -> dict[str, Sample]:
            with bench.fresh() as fresh:
                return bench.probe("existence", "--folder", fresh, *common)

        yield [Turn("existence", run)]


@contextmanager
def full_cache(bench: Bench) -> Iterator[Sequence[Turn]]:
    many, few = str(bench.sizes.cache_many), str(bench.sizes.cache_few)

    def run() -> dict[str, Sample]:
        with bench.fresh(keep=True) as fresh:
            return bench.probe("full-caches", "--folder", fresh, "--count", many, "--few", few)

    yield [Turn("full caches", run)]


CASES = (
    Case(
        "cached-hit",
        (
            Goal(
                "download of a cached hash, against diskcache get",
                "cloudmanager",
                1,
                ("diskcache",),
            ),
        ),
        hits,
    ),
    Case(
        "exists",
        (
            Goal(
                "exists in a large catalog, against a raw sqlite3 SELECT",
                "cloudmanager",
                3.0,
                ("sqlite3",),
            ),
        ),
        existence,
    ),
    Case(
        "full-cache",
        (Goal("adding to a full cache of many entries, against few", "many", 1.2, ("few",)),),
        full_cache,
    ),
)
