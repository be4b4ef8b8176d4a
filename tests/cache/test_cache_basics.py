"""What one process sees of the cache."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.cache import Cache, Reservation
from cloudmanager.errors import Busy, CacheFull, CacheUnusable


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: Cache, data: bytes, *, owed: bool = False) -> str:
    with cache.reserve(len(data)) as reservation:
        with reservation.open() as file:
            file.write(data)
        reservation.commit(sha(data), owed=owed)
    return sha(data)


def content(cache: Cache) -> dict[str, int]:
    found = {}
    for root in ("objects", "tmp"):
        for folder, _, names in os.walk(cache.directory / root):
            for name in names:
                found[name] = os.stat(os.path.join(folder, name)).st_size
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with Cache(tmp_path / "cache", 10_000) as opened:
        yield opened


def test_a_committed_file_is_found_whole_and_read_only(cache: Cache) -> None:
    data = os.urandom(1000)
    digest = put(cache, data)
    path = cache.path(digest)
    assert path is not None
    assert path.read_bytes() == data
    assert path == cache.directory / "objects" / digest[:2] / digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert (len(cache), cache.used_space(), cache.usage_ratio()) == (1, 1000, 0.1)


def test_directories_are_made_for_the_owner_alone(cache: Cache) -> None:
    put(cache, b"x")
    for folder, names, _ in os.walk(cache.directory):
        for name in [folder, *(os.path.join(folder, n) for n in names)]:
            assert stat.S_IMODE(os.stat(name).st_mode) == 0o700, name


def test_an_unknown_hash_is_a_miss(cache: Cache) -> None:
    assert cache.path(sha(b"nothing")) is None
    assert not cache.contains(sha(b"nothing"))


@pytest.mark.parametrize("wrong", ["", "abc", "g" * 64, "../" + "a" * 61, "a" * 65])
def test_what_is_no_hash_is_refused(cache: Cache, wrong: str) -> None:
    for call in (cache.path, cache.contains, cache.remove, cache.owe):
        with pytest.raises(ValueError, match="not a SHA-256"):
            call(wrong)


def test_an_upper_case_hash_is_the_same_hash(cache: Cache) -> None:
    digest = put(cache, b"data")
    assert cache.path(digest.upper()) == cache.path(digest)


def test_an_empty_file_is_cached_like_any_other(cache: Cache) -> None:
    digest = put(cache, b"")
    path = cache.path(digest)
    assert path is not None
    assert path.read_bytes() == b""
    assert len(cache) == 1


def test_nothing_is_visible_under_the_hash_before_the_commit(cache: Cache) -> None:
    with cache.reserve(4) as reservation:
        with reservation.open() as file:
            file.write(b"data")
        assert not cache.contains(sha(b"data"))
        assert cache.used_space() == 4
        reservation.commit(sha(b"data"))
    assert cache.contains(sha(b"data"))


def test_leaving_without_commit_frees_the_space_and_the_file(cache: Cache) -> None:
    with cache.reserve(9_000) as reservation, reservation.open() as file:
        file.write(b"half")
    assert cache.used_space() == 0
    assert content(cache) == {}
    with pytest.raises(ValueError, match="committed or aborted"):
        reservation.commit(sha(b"half"))


def test_the_writer_refuses_more_than_was_reserved(cache: Cache) -> None:
    with cache.reserve(4) as reservation:
        with reservation.open() as file:
            assert file.write(b"abc") == 3
            with pytest.raises(ValueError, match="reservation of 4 bytes"):
                file.write(b"de")
            with pytest.raises(ValueError, match="reservation of 4 bytes"):
                file.write_at(b"x", 4)
            with pytest.raises(ValueError, match="reservation of 4 bytes"):
                file.truncate(5)
            file.write_at(b"A", 0)
            assert file.seek(0) == 0
            assert file.read() == b"Abc"
        assert reservation.path.stat().st_size == 3


def test_committing_more_than_was_reserved_is_refused(cache: Cache) -> None:
    with cache.reserve(3) as reservation:
        reservation.path.write_bytes(b"four")
        with pytest.raises(ValueError, match="4 bytes were written into a reservation of 3"):
            reservation.commit(sha(b"four"))
    assert content(cache) == {}


def test_committing_nothing_is_refused(cache: Cache) -> None:
    with cache.reserve(3) as reservation, pytest.raises(ValueError, match="nothing was written"):
        reservation.commit(sha(b""))
    assert cache.used_space() == 0


def test_committing_less_than_was_reserved_gives_the_rest_back(cache: Cache) -> None:
    with cache.reserve(5_000) as reservation:
        reservation.path.write_bytes(b"four")
        reservation.commit(sha(b"four"))
    assert cache.used_space() == 4


def test_the_same_content_twice_takes_its_space_once(cache: Cache) -> None:
    digest = put(cache, b"same")
    before = os.stat(cache.path(digest) or "").st_ino
    assert put(cache, b"same") == digest
    assert os.stat(cache.path(digest) or "").st_ino == before
    assert (len(cache), cache.used_space()) == (1, 4)
    assert content(cache) == {digest: 4}


def test_a_batch_is_committed_together_even_with_a_duplicate_in_it(cache: Cache) -> None:
    data = [b"one", b"two", b"one"]
    reservations = cache.reserve_many([3, 3, 3])
    for reservation, each in zip(reservations, data, strict=True):
        reservation.path.write_bytes(each)
    cache.commit_many(list(zip(reservations, map(sha, data), strict=True)))
    paths = [cache.path(sha(each)) for each in data]
    assert [path.read_bytes() for path in paths] == data
    assert (len(cache), cache.used_space()) == (2, 6)
    assert sorted(content(cache)) == sorted({sha(each) for each in data})


def test_a_batch_that_does_not_fit_reserves_nothing_and_evicts_nothing(cache: Cache) -> None:
    digest = put(cache, os.urandom(6_000))
    with pytest.raises(CacheFull, match=r"9\.8 KiB"):
        cache.reserve_many([6_000, 6_000])
    assert cache.contains(digest)
    assert cache.used_space() == 6_000


def test_a_file_as_large_as_the_cache_fits_and_one_byte_more_does_not(cache: Cache) -> None:
    put(cache, os.urandom(10_000))
    put(cache, os.urandom(10_000))
    assert (len(cache), cache.used_space(), cache.usage_ratio()) == (1, 10_000, 1.0)
    with pytest.raises(CacheFull):
        cache.reserve(10_001)
    assert len(cache) == 1


def test_a_reservation_grows_by_evicting_and_shrinks(cache: Cache) -> None:
    old = put(cache, os.urandom(5_000))
    with cache.reserve(1_000) as reservation:
        reservation.resize(6_000)
        assert not cache.contains(old)
        assert (reservation.size, cache.used_space()) == (6_000, 6_000)
        with pytest.raises(CacheFull):
            reservation.resize(10_001)
        assert (reservation.size, cache.used_space()) == (6_000, 6_000)
        reservation.path.write_bytes(b"x" * 100)
        with pytest.raises(ValueError, match="100 bytes are written"):
            reservation.resize(99)
        reservation.resize(100)
        assert cache.used_space() == 100


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    first, second, third = (put(cache, os.urandom(3_000)) for _ in range(3))
    assert cache.path(first)
    assert cache.contains(second)  # is no use
    put(cache, os.urandom(3_000))
    assert [cache.contains(each) for each in (first, second, third)] == [True, False, True]


def test_committing_what_is_there_counts_as_a_use(cache: Cache) -> None:
    data = [os.urandom(3_000) for _ in range(3)]
    hashes = [put(cache, each) for each in data]
    cache.reserve(0).abort()
    with cache.reserve(1_000):
        pass
    with Cache(cache.directory, 20_000) as other:
        put(other, data[0])
    with Cache(cache.directory, 10_000):
        put(cache, os.urandom(3_000))
    assert [cache.contains(each) for each in hashes] == [True, False, True]


def test_what_is_pinned_stays_and_may_go_afterwards(cache: Cache) -> None:
    first = put(cache, os.urandom(4_000))
    second = put(cache, os.urandom(4_000))
    with cache.pinned(first) as path:
        third = put(cache, os.urandom(4_000))
        assert path is not None
        assert path.stat().st_size == 4_000
        assert not cache.contains(second)
        with cache.pinned(third), pytest.raises(CacheFull):
            cache.reserve(4_000)
        assert cache.contains(third)
    with cache.reserve(10_000):
        assert not cache.contains(first)


def test_a_pin_is_seen_by_another_cache_of_the_same_directory(cache: Cache) -> None:
    digest = put(cache, os.urandom(6_000))
    with Cache(cache.directory, 10_000) as other:
        with cache.pinned(digest), pytest.raises(CacheFull):
            other.reserve(6_000)
        other.reserve(6_000).abort()
    assert not cache.contains(digest)


def test_pinning_what_is_not_cached_gives_none(cache: Cache) -> None:
    with cache.pinned(sha(b"nothing")) as path:
        assert path is None


def test_what_is_owed_stays_until_it_is_settled(cache: Cache) -> None:
    first = put(cache, os.urandom(4_000), owed=True)
    second = put(cache, os.urandom(4_000))
    assert cache.owe(second)
    assert sorted(cache.owed()) == sorted([first, second])
    with pytest.raises(CacheFull, match="waits for hosts"):
        cache.reserve(4_000)
    cache.settle(first)
    assert list(cache.owed()) == [second]
    put(cache, os.urandom(4_000))
    assert [cache.contains(each) for each in (first, second)] == [False, True]


def test_owing_what_is_not_cached_says_so(cache: Cache) -> None:
    assert not cache.owe(sha(b"nothing"))
    cache.settle(sha(b"nothing"))
    assert list(cache.owed()) == []


def test_a_debt_outlives_a_second_commit_without_one(cache: Cache) -> None:
    put(cache, b"owed", owed=True)
    put(cache, b"owed")
    assert list(cache.owed()) == [sha(b"owed")]


def test_owing_a_file_that_is_committed_again_makes_it_owed(cache: Cache) -> None:
    put(cache, b"later owed")
    put(cache, b"later owed", owed=True)
    assert list(cache.owed()) == [sha(b"later owed")]


def test_many_debts_are_listed_once_each(tmp_path: Path) -> None:
    with Cache(tmp_path, 1_000_000) as cache:
        data = [b"%d" % i for i in range(1_500)]
        reservations = cache.reserve_many([len(each) for each in data])
        for reservation, each in zip(reservations, data, strict=True):
            reservation.path.write_bytes(each)
        cache.commit_many(list(zip(reservations, map(sha, data), strict=True)), owed=True)
        assert list(cache.owed()) == sorted(map(sha, data))
        cache.settle(*map(sha, data))
        assert list(cache.owed()) == []


def test_removing_takes_the_owed_too_but_not_what_is_being_read(cache: Cache) -> None:
    digest = put(cache, b"data", owed=True)
    with cache.pinned(digest) as path, pytest.raises(Busy):
        cache.remove(digest)
    assert path is not None
    assert path.exists()
    cache.remove(digest)
    cache.remove(digest)
    assert cache.path(digest) is None
    assert (content(cache), cache.used_space(), list(cache.owed())) == ({}, 0, [])


def test_clearing_leaves_what_is_pinned_or_owed(cache: Cache) -> None:
    held, owed = put(cache, b"held"), put(cache, b"owed", owed=True)
    for i in range(600):
        put(cache, b"%d" % i)
    taken = cache.used_space()
    with cache.pinned(held):
        assert cache.clear() == taken - 8
    assert sorted(content(cache)) == sorted([held, owed])
    assert cache.clear() == 4
    assert cache.used_space() == 4


def test_the_capacity_belongs_to_the_directory(cache: Cache) -> None:
    hashes = [put(cache, os.urandom(3_000)) for _ in range(3)]
    with Cache(cache.directory, 7_000) as smaller:
        assert cache.capacity == smaller.capacity == 7_000
        assert [cache.contains(each) for each in hashes] == [False, True, True]
        with pytest.raises(CacheFull):
            cache.reserve(7_001)


def test_a_capacity_below_what_is_kept_is_refused_and_changes_nothing(cache: Cache) -> None:
    free, owed = put(cache, os.urandom(3_000)), put(cache, os.urandom(3_000), owed=True)
    with pytest.raises(CacheFull, match="2999 bytes"):
        Cache(cache.directory, 2_999)
    with cache.reserve(3_000), pytest.raises(CacheFull):
        Cache(cache.directory, 5_999)
    assert cache.capacity == 10_000
    assert cache.contains(free)
    assert cache.contains(owed)
    Cache(cache.directory, 3_000).close()
    assert not cache.contains(free)


def test_a_negative_capacity_or_size_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="negative"):
        Cache(tmp_path / "other", -1)
    with pytest.raises(ValueError, match="negative"):
        cache.reserve(-1)


def test_a_cache_of_no_bytes_holds_nothing_and_does_not_divide_by_zero(tmp_path: Path) -> None:
    with Cache(tmp_path, 0) as cache:
        with pytest.raises(CacheFull):
            cache.reserve(1)
        assert cache.usage_ratio() == 1.0


def test_files_survive_closing_and_opening(cache: Cache) -> None:
    digest = put(cache, b"data")
    cache.close()
    cache.close()
    with Cache(cache.directory, 10_000) as again:
        path = again.path(digest)
        assert path is not None
        assert path.read_bytes() == b"data"
        assert again.used_space() == 4


def test_a_closed_cache_says_so_and_leaves_nothing_in_flight(cache: Cache) -> None:
    digest = put(cache, b"data")
    reservation = cache.reserve(100)
    reservation.path.write_bytes(b"x")
    cache.close()
    for call in (cache.used_space, lambda: cache.path(digest), lambda: cache.reserve(1)):
        with pytest.raises(CacheUnusable, match="closed"):
            call()
    reservation.abort()
    with Cache(cache.directory, 10_000) as again:
        assert (again.used_space(), content(again)) == (4, {digest: 4})
    assert os.listdir(cache.directory / "live") == []


def test_a_fetch_fills_once_for_all_threads_that_miss(cache: Cache) -> None:
    data, fills, started = os.urandom(100), [], threading.Barrier(8)
    everybody_waits = threading.Event()

    def fill(reservation: Reservation) -> None:
        fills.append(reservation)
        everybody_waits.wait(5)
        reservation.path.write_bytes(data)

    def work() -> None:
        started.wait()
        paths.append(cache.fetch(sha(data), 100, fill))

    paths: list[Path] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while not fills:
        threading.Event().wait(0.001)
    everybody_waits.set()
    for thread in threads:
        thread.join()
    assert len(fills) == 1
    assert [path.read_bytes() for path in paths] == [data] * 8


def test_what_a_fetch_raises_reaches_every_waiting_thread_and_frees_the_space(
    cache: Cache,
) -> None:
    calls, failures, waiting = [], [], threading.Event()

    def fill(reservation: Reservation) -> None:
        calls.append(reservation)
        reservation.path.write_bytes(b"half")
        waiting.wait(5)
        raise OSError("the host is gone")

    def work() -> None:
        try:
            cache.fetch(sha(b"data"), 100, fill)
        except OSError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while cache.used_space() == 0:
        threading.Event().wait(0.001)
    while sum(not t.is_alive() for t in threads) or len(calls) != 1:
        threading.Event().wait(0.001)
    waiting.set()
    for thread in threads:
        thread.join()
    # Who came after the failure made a try of his own, and failed alike.
    assert failures == ["the host is gone"] * 4
    assert (content(cache), cache.used_space()) == ({}, 0)
    assert os.listdir(cache.directory / "live") != []  # the owner, and no claim
    assert all(len(name) < 64 for name in os.listdir(cache.directory / "live"))


def test_an_interrupted_fetch_lets_the_next_thread_try(cache: Cache) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def interrupted(_: Reservation) -> None:
        entered.set()
        go_on.wait(5)
        raise KeyboardInterrupt

    def first() -> None:
        with pytest.raises(KeyboardInterrupt):
            cache.fetch(sha(b"data"), 4, interrupted)

    def second() -> None:
        paths.append(cache.fetch(sha(b"data"), 4, lambda r: put_into(r, b"data")))

    paths: list[Path] = []
    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert entered.wait(5)
    two.start()
    go_on.set()
    one.join()
    two.join()
    assert [path.read_bytes() for path in paths] == [b"data"]


def put_into(reservation: Reservation, data: bytes) -> None:
    reservation.path.write_bytes(data)


def test_fetching_what_is_cached_does_not_fill(cache: Cache) -> None:
    digest = put(cache, b"data")

    def fill(_: Reservation) -> None:
        raise AssertionError("there was no need to fetch")

    assert cache.fetch(digest, 4, fill).read_bytes() == b"data"


def test_fetching_what_the_cache_cannot_hold_is_refused_before_it_is_fetched(
    cache: Cache,
) -> None:
    called: list[Reservation] = []
    with pytest.raises(CacheFull):
        cache.fetch(sha(b"huge"), 10_001, called.append)
    assert called == []


def test_a_forked_child_is_told_to_open_the_cache_again(cache: Cache) -> None:
    digest = put(cache, b"data")
    assert cache.path(digest)
    reservation = cache.reserve(100)
    reservation.path.write_bytes(b"parent's")
    with cache.pinned(digest):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                reservation.abort()
                try:
                    cache.path(digest)
                except CacheUnusable as error:
                    with Cache(cache.directory, 10_000) as mine:
                        code = 0 if "fork" in str(error) and mine.path(digest) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reservation.commit(sha(b"parent's"))
    assert len(cache) == 2


def test_a_forked_child_that_lives_on_does_not_keep_the_locks(cache: Cache) -> None:
    digest = put(cache, os.urandom(5_000))
    read, write = os.pipe()
    with cache.pinned(digest):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent is done
            os._exit(0)
    os.close(read)
    cache.reserve(10_000).abort()  # the pin is gone with the parent's
    owner = cache.directory / "live" / os.listdir(cache.directory / "live")[0]
    cache.close()
    assert not owner.exists()
    os.close(write)
    os.waitpid(child, 0)


def test_a_refusal_because_of_a_pin_evicts_nothing(cache: Cache) -> None:
    oldest, held, newest = (put(cache, os.urandom(3_000)) for _ in range(3))
    with cache.pinned(held):
        assert cache.path(newest)
        with pytest.raises(CacheFull):
            cache.reserve(8_000)
        assert [cache.contains(each) for each in (oldest, held, newest)] == [True] * 3
        assert cache.used_space() == 9_000


def test_a_hit_marks_the_entry_of_now_even_when_the_file_looks_like_the_one_of_then(
    tmp_path: Path,
) -> None:
    with Cache(tmp_path / "cache", 9) as cache, Cache(tmp_path / "cache", 9) as other:
        back = put(cache, b"was")
        path = other.path(back)
        assert path is not None
        os.link(path, tmp_path / "same inode")
        cache.remove(back)
        intruder = put(cache, b"int")  # takes the slot
        with cache.reserve(3) as reservation:
            os.rename(tmp_path / "same inode", reservation.path)
            reservation.commit(back)
        newest = put(cache, b"new")
        assert other.path(back) == path
        put(cache, b"xyz")
        assert [cache.contains(each) for each in (back, intruder, newest)] == [True, False, True]
        put(cache, b"abc")
        assert [cache.contains(each) for each in (back, newest)] == [True, False]


def test_a_file_that_grew_by_hand_is_never_served(cache: Cache) -> None:
    digest = put(cache, b"data")
    path = cache.path(digest)
    assert path is not None
    found = path.stat()
    path.chmod(0o600)
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert cache.path(digest) is None


def test_a_directory_under_the_name_of_a_file_is_a_miss(cache: Cache) -> None:
    digest = put(cache, b"data")
    path = cache.path(digest)
    assert path is not None
    path.unlink()
    path.mkdir()
    assert cache.path(digest) is None
    assert cache.used_space() == 0


def test_a_pin_is_a_use_that_lasts_until_it_ends(cache: Cache) -> None:
    first, second, third = (put(cache, os.urandom(3_000)) for _ in range(3))
    with cache.pinned(first):
        assert cache.path(second)
        assert cache.path(third)
    put(cache, os.urandom(3_000))
    assert [cache.contains(each) for each in (first, second, third)] == [True, False, True]
