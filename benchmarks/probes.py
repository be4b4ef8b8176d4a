"""Costs of single calls, measured inside one process: ``python -m benchmarks.probes``.

The contenders take turns in short blocks, so that a noisy moment strikes all of them; the
median block counts. Prints ``{label: seconds per call}`` as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cloudmanager import CloudManager
from cloudmanager.cache import Cache
from cloudmanager.catalog import Catalog
from cloudmanager.hosts import open_host
from cloudmanager.model import FileRecord

__all__ = ["MISSING", "main"]

MISSING = 3
"""The exit code when a peer is not installed."""

_BLOCKS = 21
_BATCH = 1000
_TINY = 64


def in_turns(
    contenders: dict[str, Callable[[str], object]], keys: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Seconds per call of each contender: one block of `keys` after the other, in turns."""
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for block in keys:
        for label, call in contenders.items():
            begun = time.perf_counter()
            for key in block:
                call(key)
            seconds[label].append((time.perf_counter() - begun) / len(block))
    return {label: statistics.median(each) for label, each in seconds.items()}


def hits(folder: Path, count: int) -> dict[str, float]:
    """`download` of a cached hash, and diskcache's `get` of a small value."""
    try:
        import diskcache  # type: ignore[import-untyped]
    except ImportError:
        print("diskcache is not installed: pip install diskcache", file=sys.stderr)
        raise SystemExit(MISSING) from None

    rng = random.Random(3)
    source = folder / "source"
    source.mkdir(parents=True)
    paths = []
    for number in range(count):
        path = source / f"f{number}"
        path.write_bytes(rng.randbytes(_TINY))
        paths.append(path)
    (folder / "host").mkdir()
    host = open_host(str(folder / "host"))
    with (
        CloudManager(folder / "catalog.sqlite3", folder / "storage", "1GiB", [host]) as pool,
        diskcache.Cache(str(folder / "diskcache")) as peer,
    ):
        hashes = [str(result.hash) for result in pool.upload_many(paths)]
        for sha256 in hashes:
            peer.set(sha256, rng.randbytes(_TINY))
            if not pool.download(sha256):
                raise SystemExit("a file that was just uploaded is not cached")
        blocks = [rng.choices(hashes, k=_BATCH) for _ in range(_BLOCKS)]
        return in_turns({"cloudmanager": pool.download, "diskcache": peer.get}, blocks)


def make_catalog(path: Path, count: int) -> None:
    """A catalog of `count` files, whose hashes are `_hash(0)`, `_hash(1)` …"""
    with Catalog.open(path) as catalog:
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            catalog.record([FileRecord(_hash(n), f"file {n}", 4096, 1.7e9) for n in numbers], [])


def _hash(number: int) -> str:
    return random.Random(number).randbytes(32).hex()


def existence(folder: Path, database: Path, count: int) -> dict[str, float]:
    """`exists`, and a SELECT by primary key with the driver alone, on the same file."""
    rng = random.Random(4)
    (folder / "host").mkdir(parents=True)
    raw = sqlite3.connect(database)
    select = "SELECT 1 FROM files WHERE hash = ?"
    host = open_host(str(folder / "host"))
    with CloudManager(database, folder / "storage", "1GiB", [host]) as pool:

        def peer(sha256: str) -> bool:
            return raw.execute(select, (sha256,)).fetchone() is not None

        blocks = [[_hash(rng.randrange(count)) for _ in range(_BATCH)] for _ in range(_BLOCKS)]
        if not all(pool.exists(sha256) and peer(sha256) for sha256 in blocks[0]):
            raise SystemExit("a hash that was recorded is not found")
        result = in_turns({"cloudmanager": pool.exists, "sqlite3": peer}, blocks)
    raw.close()
    return result


def full_caches(folder: Path, many: int, few: int) -> dict[str, float]:
    """Adding a file to a full cache of `many` entries, and to one of `few`; each add evicts one."""
    rng = random.Random(5)
    caches = {}
    for label, count in (("many", many), ("few", few)):
        cache = caches[label] = Cache(folder / label, count * _TINY)
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            reservations = cache.reserve_many([_TINY] * size)
            items = []
            for reservation in reservations:
                reservation.path.write_bytes(rng.randbytes(_TINY))
                items.append((reservation, rng.randbytes(32).hex()))
            cache.commit_many(items)

    def adder(cache: Cache) -> Callable[[str], object]:
        def add(sha256: str) -> None:
            reservation = cache.reserve(_TINY)
            reservation.path.write_bytes(b"x" * _TINY)
            cache.commit(reservation, sha256)

        return add

    # Some first, to leave behind what filling in large batches has left to be written.
    blocks = [[rng.randbytes(32).hex() for _ in range(100)] for _ in range(_BLOCKS)]
    for label, cache in caches.items():
        in_turns({label: adder(cache)}, blocks[:2])
    blocks = [[rng.randbytes(32).hex() for _ in range(100)] for _ in range(_BLOCKS)]
    result = in_turns({label: adder(cache) for label, cache in caches.items()}, blocks)
    for cache in caches.values():
        if cache.used_space() != cache.capacity:
            raise SystemExit("the cache was not full all the time")
        cache.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probes")
    parser.add_argument("probe", choices=["hits", "catalog", "existence", "full-caches"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--few", type=int, default=0)
    parser.add_argument("--database", type=Path)
    options = parser.parse_args()
    result: dict[str, float] = {}
    match options.probe:
        case "hits":
            result = hits(options.folder, options.count)
        case "catalog":
            make_catalog(options.database, options.count)
        case "existence":
            result = existence(options.folder, options.database, options.count)
        case "full-caches":
            result = full_caches(options.folder, options.count, options.few)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
