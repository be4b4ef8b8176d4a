"""Clocks, reboots, full disks, lost permissions, damaged files and a damaged index."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudmanager.cache import Cache, Reservation, layout, living
from cloudmanager.cache.recency import boot_id
from cloudmanager.errors import Busy, CacheCorrupt, CacheError, CacheFull, CacheUnusable


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(cache: Cache, data: bytes, *, owed: bool = False) -> str:
    with cache.reserve(len(data)) as reservation:
        reservation.path.write_bytes(data)
        reservation.commit(sha(data), owed=owed)
    return sha(data)


def object_path(cache: Cache, digest: str) -> Path:
    return cache.directory / "objects" / digest[:2] / digest


def sums(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "objects").glob("*/*"))


def run_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its exit code, 99 when it raised."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 - the parent sees the code
            os.write(2, repr(error).encode() + b"\n")
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_statements(cache: Cache, work: Callable[[], object]) -> list[str]:
    index = cache._space.index
    seen: list[str] = []
    with index.write():
        pass  # so that there is a connection to watch
    for connection in (index._reader, index._writer):
        assert connection is not None
        connection.set_trace_callback(seen.append)
    work()
    for connection in (index._reader, index._writer):
        assert connection is not None
        connection.set_trace_callback(None)
    return seen


# Cost


def test_a_hit_after_the_first_asks_the_index_nothing(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data")
    with Cache(tmp_path, 10_000) as cache:
        assert len(count_statements(cache, lambda: cache.path(digest))) == 1
        assert count_statements(cache, lambda: cache.path(digest)) == []


@pytest.mark.parametrize("entries", [10, 300])
def test_adding_to_a_full_cache_takes_the_same_statements_whatever_it_holds(
    tmp_path: Path, entries: int
) -> None:
    with Cache(tmp_path, entries * 8) as cache:
        reservations = cache.reserve_many([8] * entries)
        data = [b"%08d" % i for i in range(entries)]
        for reservation, each in zip(reservations, data, strict=True):
            reservation.path.write_bytes(each)
        cache.commit_many(list(zip(reservations, map(sha, data), strict=True)))
        for each in data[: entries // 2]:
            cache.owe(sha(each))
        put(cache, b"--------")
        assert len(count_statements(cache, lambda: put(cache, b"++++++++"))) < 25
        plan = sqlite3.connect(tmp_path / "index.sqlite3").execute(
            "EXPLAIN QUERY PLAN SELECT * FROM entries INDEXED BY evictable "
            "WHERE keep = 0 ORDER BY stamp LIMIT 1"
        )
        assert [row[3] for row in plan] == ["SCAN entries USING INDEX evictable"]


def test_opening_again_writes_nothing_and_lists_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(tmp_path, 10_000) as cache:
        put(cache, b"data")
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    before = (tmp_path / "index.sqlite3").read_bytes()
    Cache(tmp_path, 10_000).close()
    assert listed == [str(tmp_path / "live")]
    assert (tmp_path / "index.sqlite3").read_bytes() == before


# Clocks and boots


def test_the_wall_clock_has_no_say_in_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(tmp_path, 9) as cache:
        hashes = [put(cache, data) for data in (b"one", b"two", b"six")]
        for wall, digest in ((0.0, hashes[2]), (4e9, hashes[0]), (1.0, hashes[1])):
            monkeypatch.setattr(time, "time", lambda wall=wall: wall)
            monkeypatch.setattr(time, "time_ns", lambda wall=wall: int(wall * 1e9))
            assert cache.path(digest)
        put(cache, b"ten")
        assert [cache.contains(each) for each in hashes] == [True, True, False]


def test_stamps_do_not_go_back_when_the_machine_starts_again(tmp_path: Path) -> None:
    with Cache(tmp_path, 9, clock=lambda: 10**15, boot=lambda: "first") as cache:
        old, other = put(cache, b"old"), put(cache, b"oth")
    ticks = iter(range(5, 10**9))
    with Cache(tmp_path, 9, clock=lambda: next(ticks), boot=lambda: "second") as cache:
        new = put(cache, b"new")
        assert cache.path(old)
        put(cache, b"one")
        assert [cache.contains(each) for each in (old, other, new)] == [True, False, True]
        put(cache, b"two")
        assert [cache.contains(each) for each in (old, new)] == [True, False]


def test_without_a_boot_id_stamps_do_not_go_back_either(tmp_path: Path) -> None:
    with Cache(tmp_path, 9, clock=lambda: 10**15, boot=lambda: "") as cache:
        old = put(cache, b"old")
    ticks = iter(range(5, 10**9))
    with Cache(tmp_path, 9, clock=lambda: next(ticks), boot=lambda: "") as cache:
        new = put(cache, b"new")
        put(cache, b"another"[:6])
        assert [cache.contains(each) for each in (old, new)] == [False, True]


def test_this_machine_tells_its_boots_apart() -> None:
    assert boot_id()
    assert boot_id() == boot_id()


def test_what_was_not_flushed_before_the_power_went_is_read_before_it_is_served(
    tmp_path: Path,
) -> None:
    with Cache(tmp_path, 10_000, boot=lambda: "first") as cache:
        torn, whole, owed = put(cache, b"torn"), put(cache, b"whole"), put(cache, b"o", owed=True)
        for digest, data in ((torn, b"\0\0\0\0"), (owed, b"O")):
            path = object_path(cache, digest)
            found = path.stat()
            path.chmod(0o600)
            path.write_bytes(data)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    with Cache(tmp_path, 10_000, boot=lambda: "second") as cache:
        assert cache.path(torn) is None
        assert cache.path(whole)
        assert cache.path(owed)  # was flushed, so it is trusted by size, mtime and inode
        assert not object_path(cache, torn).exists()
        assert cache.used_space() == sums(tmp_path)
    with Cache(tmp_path, 10_000, boot=lambda: "second") as cache:
        # It was read once in this boot, by another process: that is enough.
        assert len(count_statements(cache, lambda: cache.path(whole))) == 1


def test_after_a_boot_index_and_files_are_made_to_agree(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000, boot=lambda: "first") as cache:
        kept, lost = put(cache, b"kept"), put(cache, b"lost")
        object_path(cache, lost).unlink()
        stray = object_path(cache, sha(b"stray"))
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"stray")
    with Cache(tmp_path, 10_000, boot=lambda: "second") as cache:
        assert not stray.exists()
        assert [cache.contains(each) for each in (kept, lost)] == [True, False]
        assert cache.used_space() == sums(tmp_path) == 4


# Files that change behind our back


def test_a_file_that_was_deleted_by_hand_is_a_miss_and_its_space_is_free(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data")
        assert cache.path(digest)
        object_path(cache, digest).unlink()
        assert cache.path(digest) is None
        assert (len(cache), cache.used_space()) == (0, 0)


def test_a_file_that_was_changed_by_hand_is_never_served(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data", owed=True)
        assert cache.path(digest)
        object_path(cache, digest).chmod(0o600)
        object_path(cache, digest).write_bytes(b"evil")
        assert cache.path(digest) is None
        assert not object_path(cache, digest).exists()
        assert (cache.used_space(), list(cache.owed())) == (0, [])


def test_a_file_that_was_only_touched_is_read_once_and_kept(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data", owed=True)
        os.utime(object_path(cache, digest))
        assert cache.path(digest)
        assert list(cache.owed()) == [digest]
        assert count_statements(cache, lambda: cache.path(digest)) == []


def test_committing_over_a_damaged_file_replaces_it(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data", owed=True)
        object_path(cache, digest).chmod(0o600)
        object_path(cache, digest).write_bytes(b"damaged")
        assert put(cache, b"data") == digest
        assert object_path(cache, digest).read_bytes() == b"data"
        assert (cache.used_space(), list(cache.owed())) == (4, [digest])


# Disks and permissions


def test_a_full_disk_is_one_clear_error_and_leaves_no_trace(tmp_path: Path) -> None:
    Cache(tmp_path, 10**9).close()

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Cache(tmp_path, 10**9) as cache:
            cache.reserve(1).abort()
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            reservation = cache.reserve(1_000_000)
            with (
                reservation.open() as file,
                pytest.raises(CacheUnusable, match="writing a file"),
            ):
                file.write(b"x" * 1_000_000)
            reservation.abort()
            assert cache.used_space() == 0
            assert os.listdir(tmp_path / "tmp") == []

    assert run_child(work) == 0


def test_an_index_that_cannot_be_written_is_one_clear_error_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with Cache(tmp_path, 10**9) as cache:
        digest = put(cache, b"kept", owed=True)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        cache = Cache(tmp_path, 10**9)
        reservation = cache.reserve(4)
        reservation.path.write_bytes(b"lost")
        # Files of no bytes: every further page of the index's log fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        with pytest.raises(CacheUnusable, match="disk space"):
            reservation.commit(sha(b"lost"))
        reservation.abort()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        put(cache, b"after")  # catches up with what could not be undone
        assert cache.used_space() == sums(tmp_path) == 9
        cache.close()

    assert run_child(work) == 0
    with Cache(tmp_path, 10**9) as cache:
        assert list(cache.owed()) == [digest]
        assert list(cache.check()) == []
        assert not cache.contains(sha(b"lost"))
        assert cache.used_space() == sums(tmp_path) == 9


def test_a_directory_that_may_not_be_written_is_one_clear_error() -> None:
    # Not below tmp_path, which only its owner may enter: as root, the child is somebody else.
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent) / "cache"
        with Cache(directory, 10_000) as cache:
            put(cache, b"data")
        Path(parent).chmod(0o755)
        for path in (directory, directory / "live", directory / "objects", directory / "tmp"):
            path.chmod(0o555)
        for path in directory.glob("*"):
            if path.is_file():
                path.chmod(0o444)

        def work() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            with pytest.raises(CacheUnusable, match="Permission") as caught:
                Cache(directory, 10_000)
            assert "\n" not in str(caught.value)
            assert str(directory) in str(caught.value)

        assert run_child(work) == 0
        for path in (directory, directory / "live", directory / "objects", directory / "tmp"):
            path.chmod(0o700)


@pytest.mark.parametrize("name", ["", "objects", "tmp", "index.sqlite3"])
def test_something_else_under_a_name_of_ours_is_one_clear_error(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "cache"
    if name == "index.sqlite3":
        (directory / name).mkdir(parents=True)
    else:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("a file")
    with pytest.raises(CacheUnusable) as caught:
        Cache(directory, 10_000)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupt_in_the_middle_of_a_commit_undoes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(tmp_path, 10_000) as cache:
        rename = os.rename

        def interrupted(source: str, target: str) -> None:
            rename(source, target)
            raise KeyboardInterrupt

        (tmp_path / "objects" / sha(b"data")[:2]).mkdir()
        with cache.reserve(4) as reservation:
            reservation.path.write_bytes(b"data")
            with monkeypatch.context() as patch:
                patch.setattr(os, "rename", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    reservation.commit(sha(b"data"))
        assert (cache.used_space(), sums(tmp_path), cache.path(sha(b"data"))) == (0, 0, None)
        put(cache, b"data")
        assert list(cache.check()) == []


def test_an_error_of_the_disk_while_evicting_leaves_index_and_files_in_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cache(tmp_path, 9) as cache:
        hashes = [put(cache, data) for data in (b"one", b"two", b"six")]
        unlink, calls = os.unlink, []

        def failing(path: str) -> None:
            calls.append(path)
            if len(calls) == 2:
                raise OSError(errno.EIO, "Input/output error", path)
            unlink(path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", failing)
            with pytest.raises(CacheUnusable, match="Input/output error"):
                cache.reserve(6)
        assert [cache.contains(each) for each in hashes] == [False, True, True]
        assert cache.used_space() == sums(tmp_path) == 6
        assert list(cache.check()) == []


# Check and rebuild


def damage(cache: Cache) -> dict[str, str]:
    """Do one of each kind of damage; the path of each by the kind `check` calls it."""
    wrong, missing, touched = (put(cache, data) for data in (b"wrong", b"missing", b"touched"))
    path = object_path(cache, wrong)
    found = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"WRONG")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    object_path(cache, missing).unlink()
    os.utime(object_path(cache, touched))
    stray = object_path(cache, sha(b"stray"))
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    leftover = cache.directory / "tmp" / "0123456789abcdef.0"
    leftover.write_bytes(b"left")
    foreign = cache.directory / "objects" / "readme"
    foreign.write_text("not ours")
    paths = {
        "wrong": path,
        "missing": object_path(cache, missing),
        "touched": object_path(cache, touched),
        "stray": stray,
        "leftover": leftover,
        "foreign": foreign,
    }
    return {kind: str(path) for kind, path in paths.items()}


def test_check_finds_every_kind_of_damage_and_changes_nothing(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        put(cache, b"good")
        expected = damage(cache)
        for _ in range(2):
            findings = list(cache.check())
            assert {finding.kind: finding.path for finding in findings} == expected
            assert len(findings) == len(expected)
            assert not any(finding.fixed for finding in findings)


def test_check_with_fix_repairs_what_it_finds(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        good = put(cache, b"good")
        expected = damage(cache)
        fixed = {finding.kind: finding.fixed for finding in cache.check(fix=True)}
        assert fixed == {kind: kind != "foreign" for kind in expected}
        assert [finding.kind for finding in cache.check()] == ["foreign"]
        (tmp_path / "objects" / "readme").unlink()
        assert cache.contains(good)
        assert cache.path(sha(b"touched"))
        assert cache.path(sha(b"stray"))
        assert cache.path(sha(b"wrong")) is None
        assert cache.used_space() == sums(tmp_path) == len(b"goodtouchedstray")


def test_check_corrects_sums(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        put(cache, b"data")
        connection = sqlite3.connect(tmp_path / "index.sqlite3")
        with connection:
            connection.execute("UPDATE state SET stored = 77, entries = 3")
        connection.close()
        assert [finding.kind for finding in cache.check(fix=True)] == ["sums"]
        assert (cache.used_space(), len(cache)) == (4, 1)
        assert list(cache.check()) == []


def test_adopting_strays_does_not_exceed_the_capacity(tmp_path: Path) -> None:
    with Cache(tmp_path, 10) as cache:
        used = put(cache, b"in use")
        stray = object_path(cache, sha(b"stray"))
        stray.parent.mkdir(exist_ok=True)
        stray.write_bytes(b"stray")
        assert [finding.kind for finding in cache.check(fix=True)] == ["stray"]
        assert cache.contains(used)
        assert not stray.exists()
        assert cache.used_space() == sums(tmp_path) == 6


@pytest.mark.parametrize("garbage", [b"this is no database at all" * 100, b"", None])
def test_an_index_that_cannot_be_read_is_rebuilt_from_the_files(
    tmp_path: Path, garbage: bytes | None
) -> None:
    with Cache(tmp_path, 10_000) as cache:
        old, new = put(cache, b"old"), put(cache, b"new!")
        owed, wrong = put(cache, b"owed!", owed=True), put(cache, b"wrong")
        os.utime(object_path(cache, old), (1e9, 1e9))
        object_path(cache, wrong).chmod(0o600)
        object_path(cache, wrong).write_bytes(b"WRONG")
    for name in ("index.sqlite3-wal", "index.sqlite3-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    if garbage is None:
        (tmp_path / "index.sqlite3").unlink()
    else:
        (tmp_path / "index.sqlite3").write_bytes(garbage)
    with pytest.raises(CacheCorrupt, match="cloudmanager cache check --fix"):
        Cache(tmp_path, 10_000)
    kinds = [finding.kind for finding in Cache.rebuild(tmp_path, 12)]
    assert kinds == ["wrong", "index"]
    with Cache(tmp_path, 12) as cache:
        assert list(cache.owed()) == [owed]
        assert cache.used_space() == sums(tmp_path) == 12
        assert list(cache.check()) == []
        put(cache, b"x")
        assert [cache.contains(each) for each in (old, new, owed)] == [False, True, True]


def test_a_rebuild_is_refused_while_somebody_writes(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data")
        with pytest.raises(Busy):
            Cache.rebuild(tmp_path, 10_000)
        assert cache.path(digest)


def test_who_only_read_follows_to_the_rebuilt_index(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data")
    with Cache(tmp_path, 10_000) as reader:
        assert reader.path(digest)
        Cache.rebuild(tmp_path, 5_000)
        with Cache(tmp_path, 5_000):
            pass
        other = put(reader, b"other")
        assert reader.path(digest)
        assert reader.path(other)
        assert reader.capacity == 5_000
        with Cache(tmp_path, 5_000) as fresh:
            assert fresh.contains(other)


def test_a_rebuild_that_cannot_keep_what_is_owed_changes_nothing(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        put(cache, b"owed", owed=True)
    with pytest.raises(CacheFull):
        Cache.rebuild(tmp_path, 3)
    with Cache(tmp_path, 10_000) as cache:
        assert list(cache.owed()) == [sha(b"owed")]
    assert not list(tmp_path.glob("*.new*"))


def test_an_index_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Cache(tmp_path, 10_000).close()
    connection = sqlite3.connect(tmp_path / "index.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(CacheUnusable, match="newer cloudmanager"):
        Cache(tmp_path, 10_000)


def test_a_directory_that_vanishes_under_an_open_cache_is_one_clear_error(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    cache = Cache(directory, 10_000)
    put(cache, b"data")
    directory.rename(tmp_path / "moved")
    with pytest.raises(CacheError) as caught:
        cache.reserve(1)
    assert str(directory) in str(caught.value)
    cache.close()


def test_a_name_that_is_not_unicode_is_a_directory_like_any_other(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/\xff?#%20 x"
    with Cache(os.fsdecode(directory), 10_000) as cache:
        assert cache.path(put(cache, b"data"))


def test_importing_the_cache_loads_no_sdk() -> None:
    code = (
        "import sys, cloudmanager.cache; "
        "print(sorted({'sqlalchemy', 'boto3', 'azure', 'requests'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_a_fetch_whose_claim_was_left_by_the_dead_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(living, "_LOCK_WAITING", None)  # as on macOS: a file for each claim
    with Cache(tmp_path, 10_000) as cache:
        (tmp_path / "live" / sha(b"data")).touch()

        def fill(reservation: Reservation) -> None:
            reservation.path.write_bytes(b"data")

        assert cache.fetch(sha(b"data"), 4, fill).read_bytes() == b"data"
    assert os.listdir(tmp_path / "live") == []


@pytest.mark.parametrize("parts_of_a_file", [True, False])
def test_a_claim_excludes_the_same_hash_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_of_a_file: bool
) -> None:
    if not parts_of_a_file:
        monkeypatch.setattr(living, "_LOCK_WAITING", None)

    def claim(data: bytes) -> int | None:
        path = str(tmp_path / sha(data))
        return living.claim(str(tmp_path / "claims"), path, sha(data), wait=False)

    one, other = claim(b"one"), claim(b"other")
    assert one is not None
    assert other is not None
    assert claim(b"one") is None
    living.let_go(str(tmp_path / sha(b"one")), one)
    again = claim(b"one")
    assert again is not None
    assert claim(b"other") is None
    for data, fd in ((b"one", again), (b"other", other)):
        living.let_go(str(tmp_path / sha(data)), fd)


def test_fetches_create_no_files_but_the_fetched_ones(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        seen: list[list[str]] = []

        def fill(reservation: Reservation) -> None:
            reservation.path.write_bytes(b"data")
            seen.append(os.listdir(tmp_path / "live"))

        cache.fetch(sha(b"data"), 4, fill)
    assert [len(names) for names in seen] == ([1] if sys.platform == "linux" else [2])


@pytest.mark.parametrize("how", ["commit", "commit of a known file", "owe"])
def test_file_directories_and_index_are_flushed_before_a_debt_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    flushed: list[int] = []
    flush = layout.flush_file

    def recording(fd: int) -> None:
        flushed.append(os.fstat(fd).st_ino)
        flush(fd)

    monkeypatch.setattr(layout, "flush_file", recording)
    with Cache(tmp_path, 10_000) as cache:
        if how != "commit":
            put(cache, b"data")
        flushed.clear()
        owe = {
            "owe": lambda: cache.owe(sha(b"data")),
            "commit": lambda: put(cache, b"data", owed=True),
            "commit of a known file": lambda: put(cache, b"data", owed=True),
        }[how]
        statements = count_statements(cache, owe)
        path = object_path(cache, sha(b"data"))
        needed = {each.stat().st_ino for each in (path, path.parent, tmp_path / "objects")}
        assert needed <= set(flushed)
        # FULL makes the commit itself wait for the disk; it must be set before BEGIN.
        last = [each for each in statements if each.startswith(("PRAGMA", "BEGIN", "COMMIT"))][-4:]
        assert last == [
            "PRAGMA synchronous = FULL",
            "BEGIN IMMEDIATE",
            "COMMIT",
            "PRAGMA synchronous = NORMAL",
        ]


def test_settling_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    with Cache(tmp_path, 10_000) as cache:
        digest = put(cache, b"data", owed=True)
        statements = count_statements(cache, lambda: cache.settle(digest))
        assert not any("synchronous" in each for each in statements)


def work_until_killed(directory: Path, kill_at: int, pipe: int) -> None:
    """Do a little of everything; die at step `kill_at`, a step being a call of the system."""
    count = 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            step()
            answer = call(*arguments, **options)
            step()
            return answer

        return wrapped

    def acknowledge(word: str) -> None:
        os.write(pipe, word.encode())

    cache = Cache(directory, 12)
    with cache._space.index.write():
        pass
    writer = cache._space.index._writer
    assert writer is not None
    writer.set_trace_callback(step)
    for name in ("rename", "unlink", "chmod", "pwrite", "ftruncate", "mkdir", "open", "fsync"):
        setattr(os, name, stepping(getattr(os, name)))
    # Other content for each step, so that folders have to be made, too.
    debt, got = b"d%03d" % kill_at, b"%03d" % kill_at
    put(cache, b"%06d" % kill_at)
    put(cache, debt, owed=True)
    acknowledge("owed ")
    put(cache, debt)
    cache.fetch(sha(got), 3, lambda reservation: reservation.path.write_bytes(got) and None)
    reservation = cache.reserve(2)
    reservation.path.write_bytes(b"no")
    reservation.resize(3)
    reservation.abort()
    acknowledge("settling ")
    cache.settle(sha(debt))
    cache.remove(sha(debt))
    cache.close()


@pytest.mark.parametrize(("first", "stride"), [(3, 7), pytest.param(1, 1, marks=pytest.mark.long)])
def test_killed_at_any_step_it_loses_no_debt_and_leaves_nothing_stray(
    tmp_path: Path, first: int, stride: int
) -> None:
    kill_at, code = first - stride, -signal.SIGKILL
    while code == -signal.SIGKILL:
        kill_at += stride
        with Cache(tmp_path, 12) as cache:
            cache.settle(*cache.owed())
            cache.clear()
            for data in (b"one", b"two", b"six"):
                put(cache, data)
        read, write = os.pipe()
        code = run_child(functools.partial(work_until_killed, tmp_path, kill_at, write))
        os.close(write)
        said = os.read(read, 1000).decode()
        os.close(read)
        with Cache(tmp_path, 12) as cache:
            assert os.listdir(tmp_path / "tmp") == [], kill_at
            assert os.listdir(tmp_path / "live") == [], kill_at
            assert cache.used_space() == sums(tmp_path) <= 12, kill_at
            if said == "owed ":
                assert list(cache.owed()) == [sha(b"d%03d" % kill_at)], kill_at
            assert list(cache.check()) == [], kill_at
    assert code == 0
    assert kill_at > 80


def die_after(name: str) -> None:
    """Have the first call of ``os.<name>`` be the last thing this process does."""
    call = getattr(os, name)

    def dying(*arguments: object) -> None:
        call(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, dying)


def test_a_file_renamed_by_a_process_that_died_before_its_commit_is_not_left(
    tmp_path: Path,
) -> None:
    with Cache(tmp_path, 10_000) as cache:

        def work() -> None:
            mine = Cache(tmp_path, 10_000)
            with mine.reserve(4) as reservation:
                reservation.path.write_bytes(b"data")
                (tmp_path / "objects" / sha(b"data")[:2]).mkdir()
                die_after("rename")
                reservation.commit(sha(b"data"))

        assert run_child(work) == -signal.SIGKILL
        assert sums(tmp_path) == 4
        with Cache(tmp_path, 10_000):
            assert sums(tmp_path) == cache.used_space() == 0
        put(cache, b"data")
        assert list(cache.check()) == []


def test_a_file_evicted_by_a_process_that_died_before_its_commit_is_not_counted(
    tmp_path: Path,
) -> None:
    with Cache(tmp_path, 10) as cache:
        put(cache, b"123456")

        def work() -> None:
            mine = Cache(tmp_path, 10)
            die_after("unlink")
            mine.reserve(6)

        assert run_child(work) == -signal.SIGKILL
        assert (sums(tmp_path), cache.used_space()) == (0, 6)
        with Cache(tmp_path, 10):
            assert (len(cache), cache.used_space()) == (0, 0)


def test_a_lock_on_a_file_that_lost_its_name_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "claim")
    flock, calls = fcntl.flock, []

    def as_its_holder_leaves(fd: int, operation: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            os.unlink(path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", as_its_holder_leaves)
    fd = living.hold(path, wait=True)
    assert fd is not None
    assert len(calls) == 2
    assert os.fstat(fd).st_ino == os.stat(path).st_ino
    living.release(path, fd)
    assert not os.path.exists(path)


def test_what_the_dead_hold_is_freed_before_anything_is_evicted_in_vain(tmp_path: Path) -> None:
    with Cache(tmp_path, 10) as cache:
        held, other = put(cache, b"12"), put(cache, b"345")

        def work() -> None:
            Cache(tmp_path, 10).reserve(5)
            os.kill(os.getpid(), signal.SIGKILL)

        assert run_child(work) == -signal.SIGKILL
        with cache.pinned(held), cache.reserve(5):
            assert cache.contains(other)
            assert cache.used_space() == 10
