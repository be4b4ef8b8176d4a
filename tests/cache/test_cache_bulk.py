"""Fetching several files at a time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cloudmanager.cache import Cache, Reservation
from cloudmanager.errors import CacheFull

FILES = {hashlib.sha256(data).hexdigest(): data for data in (bytes([n]) * 1000 for n in range(12))}
HASHES = list(FILES)


class Filler:
    """Writes what it is asked for, except what it is told to fail; counts what it was asked."""

    def __init__(self, *fails: str) -> None:
        self.fails = fails
        self.asked: list[str] = []
        self.calls = 0
        self.lock = threading.Lock()

    def __call__(self, pairs: Sequence[tuple[str, Reservation]]) -> Mapping[str, Exception]:
        with self.lock:
            self.calls += 1
            self.asked += [sha256 for sha256, _ in pairs]
        errors: dict[str, Exception] = {}
        for sha256, reservation in pairs:
            if sha256 in self.fails:
                errors[sha256] = ConnectionError(sha256)
            else:
                reservation.path.write_bytes(FILES[sha256])
        return errors


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 100_000)


def wanted(hashes: Sequence[str] = HASHES) -> list[tuple[str, int]]:
    return [(sha256, len(FILES[sha256])) for sha256 in hashes]


def test_all_that_is_missing_is_asked_for_at_once_and_comes_in(cache: Cache) -> None:
    fill = Filler()
    found = cache.fetch_many(wanted(), fill)
    assert fill.calls == 1
    assert {sha256: Path(str(path)).read_bytes() for sha256, path in found.items()} == FILES
    assert cache.used_space() == sum(map(len, FILES.values()))
    assert cache.fetch_many(wanted(), fill) == found
    assert fill.calls == 1


def test_one_that_fails_does_not_stop_the_rest_and_leaves_nothing_reserved(cache: Cache) -> None:
    bad = HASHES[3]
    found = cache.fetch_many(wanted(), Filler(bad))
    assert isinstance(found[bad], ConnectionError)
    assert [h for h in HASHES if isinstance(found[h], Path)] == [h for h in HASHES if h != bad]
    assert cache.used_space() == 1000 * (len(FILES) - 1)
    assert isinstance(cache.fetch_many(wanted([bad]), Filler())[bad], Path)


def test_a_hash_asked_for_twice_is_fetched_once(cache: Cache) -> None:
    fill = Filler()
    cache.fetch_many([(HASHES[0], 1000), (HASHES[0].upper(), 1000)], fill)
    assert fill.asked == [HASHES[0]]


def test_what_does_not_fit_together_is_fetched_one_by_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "small", 2500)
    found = cache.fetch_many(wanted(), Filler())
    assert all(isinstance(path, Path) for path in found.values())
    assert cache.used_space() == 2000


def test_what_never_fits_is_cache_full_for_that_file_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "small", 1500)
    found = cache.fetch_many([(HASHES[0], 1000), (HASHES[1], 5000)], Filler())
    assert isinstance(found[HASHES[0]], Path)
    assert isinstance(found[HASHES[1]], CacheFull)


def test_a_filler_that_breaks_frees_everything(cache: Cache) -> None:
    def fill(pairs: Sequence[tuple[str, Reservation]]) -> Mapping[str, Exception]:
        pairs[0][1].path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch_many(wanted(), fill)
    assert cache.used_space() == 0
    assert os.listdir(cache.directory / "tmp") == []
    assert all(isinstance(p, Path) for p in cache.fetch_many(wanted(), Filler()).values())


def test_batches_that_overlap_share_their_fetches(tmp_path: Path) -> None:
    caches = [Cache(tmp_path / "cache", 100_000) for _ in range(2)]  # as two processes would
    fill = Filler()
    failures: list[object] = []

    def work(number: int) -> None:
        hashes = HASHES[number:] + HASHES[:number]
        found = caches[number % 2].fetch_many(wanted(hashes), fill)
        failures.extend(path for path in found.values() if not isinstance(path, Path))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(fill.asked) == sorted(HASHES)
