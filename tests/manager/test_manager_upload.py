"""Upload: what a returned hash promises, and what is stored how often."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager.world import World, content, sha

from cloudmanager.errors import ConfigurationError, HostError

MIB = 1024 * 1024
_opened: list[str] | None = None


def _audit(event: str, args: tuple[object, ...]) -> None:
    if _opened is not None and event == "open":
        _opened.append(os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else "")


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that this process opens while the test runs (an audit hook stays for good)."""
    global _opened
    if not getattr(_audit, "installed", False):
        sys.addaudithook(_audit)
        _audit.installed = True  # type: ignore[attr-defined]
    _opened = []
    yield _opened
    _opened = None


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, 9 * MIB])
def test_upload_returns_the_hash_and_every_host_has_the_bytes(world: World, size: int) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(size, size)
    with world.pool([one, two]) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        assert cm.exists(sha(data))
        assert cm.on_cache(sha(data))
    assert one.path(sha(data)).read_bytes() == data
    assert two.path(sha(data)).read_bytes() == data


def test_a_file_that_was_uploaded_survives_the_loss_of_source_and_cache(world: World) -> None:
    data = content(1, 3 * MIB)
    source = world.file(data)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(source)
    source.unlink()
    with world.pool([world.folder("one")], storage=world.root / "other") as cm:
        path = cm.download(sha(data))
        assert path
        assert path.read_bytes() == data


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_the_same_content_is_stored_once(world: World, size: int) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(2, size)
    with world.pool([one, two]) as cm:
        first, second = world.file(data, "a.txt"), world.file(data, "b.txt")
        assert cm.upload(first) == cm.upload(second) == cm.upload(first)
        assert cm.totals() == (1, size)
        assert cm.used_space() == size
        info = cm.info(sha(data))
        assert info is not None
        assert info.file.name == "a.txt"
    assert (one.count("put"), two.count("put")) == (1, 1)


def test_copies_of_one_content_in_one_batch_are_stored_once_and_each_gets_a_result(
    world: World,
) -> None:
    one = world.folder("one")
    data = content(3, 5000)
    paths = [world.file(data, f"{n}.txt") for n in range(20)]
    with world.pool([one], jobs=1) as cm:
        results = list(cm.upload_many(paths))
        assert sorted(r.path for r in results) == sorted(map(str, paths))
        assert {r.hash for r in results} == {sha(data)}
        assert cm.used_space() == 5000
    assert one.count("put") == 1


def test_an_upload_of_many_threads_of_the_same_content_ends_with_one_right_copy(
    world: World,
) -> None:
    one = world.folder("one")
    data = content(4, 2 * MIB)
    path = world.file(data)
    hashes: list[object] = []
    with world.pool([one]) as cm:
        threads = [
            threading.Thread(target=lambda: hashes.append(cm.upload(path))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cm.used_space() == len(data)
    assert hashes == [sha(data)] * 8
    assert one.path(sha(data)).read_bytes() == data


def test_an_old_record_whose_object_is_gone_is_stored_again(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(5, 5000)
    with world.pool([one, two]) as cm:
        path = world.file(data)
        cm.upload(path)
        one.lose(sha(data))
        assert cm.upload(path) == sha(data)
        info = cm.info(sha(data))
        assert info is not None
        assert {(u.host, u.status) for u in info.uploads} == {("one", "stored"), ("two", "stored")}
    assert one.path(sha(data)).read_bytes() == data
    assert two.count("put") == 1


def test_an_object_of_the_wrong_size_is_replaced(world: World) -> None:
    one = world.folder("one")
    data = content(6, 5000)
    with world.pool([one]) as cm:
        path = world.file(data)
        cm.upload(path)
        one.replace(sha(data), data[:-1])
        assert cm.upload(path) == sha(data)
    assert one.path(sha(data)).read_bytes() == data


def test_the_source_is_read_once_for_any_number_of_hosts(world: World, opened: list[str]) -> None:
    hosts = [world.folder(name) for name in ("one", "two", "three")]
    small, large = world.file(content(7, 5000)), world.file(content(8, 9 * MIB))
    opened.clear()
    with world.pool(hosts) as cm:
        for path in (small, large):
            assert cm.upload(path)
            assert opened.count(str(path)) == 1


def test_a_file_larger_than_the_cache_goes_straight_to_the_hosts_and_is_read_twice(
    world: World, opened: list[str]
) -> None:
    one = world.folder("one")
    data = content(9, 5 * MIB)
    path = world.file(data)
    opened.clear()
    with world.pool([one], "2MiB") as cm:
        assert cm.upload(path) == sha(data)
        assert opened.count(str(path)) == 2
        assert cm.used_space() == 0
        assert not cm.on_cache(sha(data))
        target = world.root / "back"
        assert cm.download(sha(data), target) == target
        assert target.read_bytes() == data
    assert world.cached_bytes() == 0


def test_a_small_file_larger_than_the_cache_is_stored_as_well(world: World) -> None:
    one = world.folder("one")
    data = content(10, 5000)
    with world.pool([one], 4096) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        assert cm.used_space() == 0
    assert one.path(sha(data)).read_bytes() == data


def test_a_cache_without_any_room_still_stores(world: World) -> None:
    one = world.folder("one")
    data = content(11, 5000)
    with world.pool([one], 0) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        assert cm.upload(world.file(b"")) == sha(b"")
    assert one.objects() == sorted([sha(data), sha(b"")])


def test_uploads_go_to_the_hosts_while_everything_in_the_cache_is_pinned(world: World) -> None:
    one = world.folder("one")
    first, second = content(12, 5000), content(13, 5000)
    with world.pool([one], 6000) as cm:
        cm.upload(world.file(first))
        with cm.pinned(sha(first)) as path:
            assert cm.upload(world.file(second)) == sha(second)
            assert path.read_bytes() == first
            assert cm.on_cache(sha(first))
            assert not cm.on_cache(sha(second))
    assert one.has(sha(second))


def test_many_files_each_get_one_result_and_a_bad_one_does_not_stop_the_rest(
    world: World,
) -> None:
    one, two = world.folder("one"), world.folder("two")
    contents = {
        str(world.file(content(n, size))): content(n, size)
        for n, size in enumerate([0, 10, 1000, 3 * MIB, MIB, 2 * MIB] + [777] * 100)
    }
    missing = [str(world.root / f"missing-{n}") for n in range(70)]
    paths = missing[:40] + list(contents) + missing[40:] + [str(world.root), "nul\0byte"]
    with world.pool([one, two]) as cm:
        results = {result.path: result for result in cm.upload_many(paths)}
        assert set(results) == set(paths)
        for path, data in contents.items():
            assert results[path].hash == sha(data)
            assert results[path].hosts == ("one", "two")
            assert results[path].size == len(data)
            assert results[path].error is None
        for path in missing:
            assert results[path].hash is False
            assert isinstance(results[path].error, FileNotFoundError)
        assert cm.totals()[0] == len(set(contents.values()))
    assert set(one.objects()) == set(two.objects()) == {sha(d) for d in contents.values()}


def test_upload_many_reads_its_paths_only_as_the_work_goes_on(world: World) -> None:
    drawn = 0
    path = world.file(b"again and again")

    def endless() -> object:
        nonlocal drawn
        while True:
            drawn += 1
            yield path

    with world.pool([world.folder("one")], jobs=2) as cm:
        results = cm.upload_many(endless())  # type: ignore[arg-type]
        for _ in range(3):
            assert next(results).hash == sha(b"again and again")
        results.close()  # type: ignore[attr-defined]
    assert drawn < 1000


def test_a_file_is_new_once(world: World) -> None:
    path = world.file(b"new")
    with world.pool([world.folder("one")]) as cm:
        assert [r.new for r in cm.upload_many([path])] == [True]
        assert [r.new for r in cm.upload_many([path])] == [False]


@pytest.mark.parametrize("size", [0, 10, MIB, 5 * MIB + 3])
@pytest.mark.parametrize("capacity", ["64MiB", "2MiB", 0])
def test_a_stream_is_stored_under_its_name_whatever_the_cache_holds(
    world: World, size: int, capacity: int | str
) -> None:
    one = world.folder("one")
    data = content(14, size)
    with world.pool([one], capacity) as cm:
        result = cm.upload_stream(io.BytesIO(data), "from a pipe")
        assert result.hash == sha(data)
        assert result.size == size
        info = cm.info(sha(data))
        assert info is not None
        assert info.file.name == "from a pipe"
        assert cm.used_space() == (size if cm.on_cache(sha(data)) else 0)
    assert one.path(sha(data)).read_bytes() == data


def test_a_stream_that_breaks_leaves_nothing_behind(world: World) -> None:
    class Broken(io.RawIOBase):
        left = 3

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError("the pipe broke")
            return b"x" * MIB

    one = world.folder("one")
    with world.pool([one]) as cm:
        with pytest.raises(OSError, match="the pipe broke"):
            cm.upload_stream(Broken(), "broken")  # type: ignore[arg-type]
        assert cm.used_space() == 0
        assert cm.totals() == (0, 0)
    assert one.objects() == []
    assert world.cached_bytes() == 0


def test_a_pool_that_cannot_store_refuses_uploads_with_what_to_do(world: World) -> None:
    with world.pool(["http://127.0.0.1:9/read-only"]) as cm:
        with pytest.raises(ConfigurationError, match="--host"):
            cm.upload(world.file(b"x"))
        with pytest.raises(ConfigurationError, match="--host"):
            cm.upload_many([world.file(b"x")])


@pytest.mark.parametrize("redundancy", [0, 3, -1])
def test_a_redundancy_that_the_hosts_cannot_give_is_refused(world: World, redundancy: int) -> None:
    with pytest.raises(ConfigurationError, match="redundancy"):
        world.pool([world.folder("one"), world.folder("two")], redundancy=redundancy)


def test_by_default_every_host_up_to_three_gets_a_copy(world: World) -> None:
    hosts = [world.folder(name) for name in ("a", "b", "c", "d")]
    with world.pool(hosts) as cm:
        assert cm.redundancy == 3
        cm.upload(world.file(b"three"))
    assert [host.has(sha(b"three")) for host in hosts] == [True, True, True, False]


def test_two_hosts_of_one_name_are_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match="named"):
        world.pool([world.folder("same"), world.folder("same")])


def test_what_a_host_says_about_a_failed_upload_reaches_the_result(world: World) -> None:
    one = world.folder("one")
    one.down = True
    with world.pool([one], 100) as cm:
        (result,) = cm.upload_many([world.file(content(15, 5000))])
        assert result.hash is False
        assert isinstance(result.error, HostError)
        assert "does not answer" in str(result.error)


def test_the_cache_directory_is_for_its_owner_only(world: World) -> None:
    with world.pool([world.folder("one")]):
        assert world.storage.stat().st_mode & 0o777 == 0o700


def test_relative_paths_and_symlinks_to_files_are_uploaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = world.file(b"the target")
    link = target.with_name("link.txt")
    link.symlink_to(target)
    monkeypatch.chdir(target.parent)
    with world.pool([world.folder("one")]) as cm:
        assert cm.upload(Path("link.txt")) == sha(b"the target")
        info = cm.info(sha(b"the target"))
        assert info is not None
        assert info.file.name == "link.txt"
