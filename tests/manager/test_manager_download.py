"""Download: its answers, the way through bad hosts, read-repair, and who shares what."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from manager.world import World, content, sha

from cloudmanager.errors import CacheFull, HostUnavailable, IntegrityError, NoGoodCopy
from cloudmanager.model import Capabilities, UploadRecord

MIB = 1024 * 1024


def test_an_unknown_hash_is_none(world: World) -> None:
    with world.pool([world.folder("one")]) as cm:
        assert cm.download(sha(b"unknown")) is None
        assert cm.warm_up(sha(b"unknown")) is None
        assert cm.download(sha(b"unknown"), world.root / "target") is None
        assert cm.info(sha(b"unknown")) is None
        assert not cm.exists(sha(b"unknown"))
        assert not cm.on_cache(sha(b"unknown"))
        with pytest.raises(KeyError):
            cm.open(sha(b"unknown"))
        with pytest.raises(KeyError), cm.pinned(sha(b"unknown")):
            pass
    assert not (world.root / "target").exists()


@pytest.mark.parametrize("bad", ["", "6f7bed7", "g" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_malformed_hash_is_a_value_error_in_every_call(world: World, bad: str) -> None:
    with world.pool([world.folder("one")]) as cm:
        calls: list[Callable[[str], object]] = [
            cm.download,
            cm.warm_up,
            cm.fetch,
            cm.open,
            cm.exists,
            cm.on_cache,
            cm.info,
            cm.remove,
            cm.link,
            lambda bad: cm.download(bad, world.root / "target"),
            lambda bad: cm.pinned(bad).__enter__(),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="hash"):
                call(bad)


def test_a_hash_in_capitals_is_the_same_hash(world: World) -> None:
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(b"capitals"))
        upper = sha(b"capitals").upper()
        assert cm.exists(upper)
        assert cm.on_cache(upper)
        path = cm.download(upper)
        assert isinstance(path, Path)
        assert path.name == sha(b"capitals")
        cm.cache.clear()
        assert cm.download(upper) == path


@pytest.mark.parametrize(
    ("size", "fault"),
    [(0, "missing"), (0, "long"), (0, "down")]
    + [
        (size, fault)
        for size in (1000, 33 * MIB)
        for fault in ("missing", "other bytes", "short", "long", "down", "breaks")
    ],
)
def test_download_falls_through_a_bad_host_and_repairs_it(
    world: World, size: int, fault: str
) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    data = content(1, size)
    with world.pool([bad, good]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        if fault == "missing":
            bad.lose(sha(data))
        elif fault == "other bytes":
            bad.replace(sha(data), content(2, size))
        elif fault == "short":
            bad.replace(sha(data), data[:-1])
        elif fault == "long":
            bad.replace(sha(data), data + b"!")
        elif fault == "down":
            bad.down = True
        elif fault == "breaks":
            bad.get = _breaking(data, bad.name)  # type: ignore[assignment,method-assign]
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        repaired = bad.path(sha(data)).read_bytes() == data
        if fault == "long" and size == 33 * MIB:
            # Read in ranges of the right size, the right bytes came from it.
            assert good.count("get") == 0
        else:
            assert repaired
            info = cm.info(sha(data))
            assert info is not None
            assert {(u.host, u.status) for u in info.uploads} == {
                ("bad", "stored"),
                ("good", "stored"),
            }


def _breaking(data: bytes, name: str) -> Callable[..., Iterator[bytes]]:
    """A `get` whose connection always breaks in the middle of the file."""

    def get(location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        end = len(data) if length is None else min(len(data), offset + length)
        middle = len(data) // 2
        if offset < middle:
            yield data[offset : min(end, middle)]
        if end <= middle:
            return
        raise HostUnavailable("reset", host=name, operation="get", location=location)

    return get


@pytest.mark.parametrize("fault", ["missing", "other bytes"])
def test_without_read_repair_the_bad_copy_stays_as_it_is(world: World, fault: str) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    data = content(3, 1000)
    with world.pool([bad, good], read_repair=False) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        if fault == "missing":
            bad.lose(sha(data))
        else:
            bad.replace(sha(data), b"wrong")
        assert cm.download(sha(data))
        info = cm.info(sha(data))
        assert info is not None
        states = {u.host: (u.status, u.verdict) for u in info.uploads}
        assert states["bad"] == ("failed", "missing" if fault == "missing" else "wrong")
    assert bad.count("put") == 1
    assert fault == "missing" or bad.path(sha(data)).read_bytes() == b"wrong"


def test_a_repair_that_fails_waits_for_sync(world: World) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    data = content(4, 1000)

    def full(operation: str, _what: str) -> None:
        if operation == "put":
            raise HostUnavailable("not now", host="bad", operation="put")

    with world.pool([bad, good], 0) as cm:
        cm.upload(world.file(data))
        bad.lose(sha(data))
        bad.before = full
        assert cm.download(sha(data), world.root / "back")
        assert cm.sync_status().hosts == {"bad": 1}
        bad.before = lambda _operation, _what: None
        assert cm.cloud_sync().delivered == 1
    assert bad.path(sha(data)).read_bytes() == data


def test_a_file_that_was_removed_while_it_was_downloaded_does_not_come_back(world: World) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    data = content(5, 1000)
    with world.pool([bad, good], 0) as cm:
        cm.upload(world.file(data))
        bad.lose(sha(data))
        get = good.get

        def removed_meanwhile(location: str, **options: int) -> Iterator[bytes]:
            blocks = list(get(location, **options))
            del good.get  # type: ignore[method-assign]
            assert cm.remove(sha(data)) is True
            yield from blocks

        good.get = removed_meanwhile  # type: ignore[assignment,method-assign]
        target = cm.download(sha(data), world.root / "back")
        assert isinstance(target, Path)
        assert target.read_bytes() == data
        assert not cm.exists(sha(data))
    assert bad.objects() == good.objects() == []


@pytest.mark.parametrize("dest", [False, True])
def test_download_is_false_when_no_host_has_the_right_bytes_and_fetch_says_why(
    world: World, dest: bool
) -> None:
    hosts = [world.folder(name) for name in ("gone", "wrong", "down")]
    data = content(6, 1000)
    target = world.root / "target" if dest else None
    with world.pool(hosts) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        hosts[0].lose(sha(data))
        hosts[1].replace(sha(data), content(7, 1000))
        hosts[2].down = True
        assert cm.download(sha(data), target) is False
        with pytest.raises(NoGoodCopy) as caught:
            cm.fetch(sha(data), target)
        assert {type(exc).__name__ for exc in caught.value.errors} == {
            "ObjectNotFound",
            "IntegrityError",
            "HostUnavailable",
        }
        assert caught.value.wrong
        assert caught.value.retryable
        assert cm.used_space() == 0
        hosts[2].down = False
        path = cm.download(sha(data), target)
        assert isinstance(path, Path)
        assert path.read_bytes() == data


def test_dest_may_be_a_new_file_an_existing_one_or_a_folder(world: World) -> None:
    data = content(8, 1000)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(data, "original.txt"))
        for cached in (True, False):
            folder = world.root / f"folder-{cached}"
            folder.mkdir()
            new, old = folder / "new", folder / "old"
            old.write_bytes(b"something else that is longer" * 100)
            for dest, expected in (
                (new, new),
                (old, old),
                (folder, folder / "original.txt"),
                (str(folder), folder / "original.txt"),
            ):
                if not cached:
                    cm.cache.clear()
                assert cm.download(sha(data), dest) == expected
                assert expected.read_bytes() == data
            assert sorted(os.listdir(folder)) == ["new", "old", "original.txt"]


@pytest.mark.parametrize("name", ["..", ".", "../../escaped", "a/b", ""])
def test_a_name_from_the_catalog_never_leads_out_of_the_folder(world: World, name: str) -> None:
    with world.pool([world.folder("one")]) as cm:
        import io

        cm.upload_stream(io.BytesIO(b"named"), name)
        folder = world.root / "a" / "b"
        folder.mkdir(parents=True)
        path = cm.download(sha(b"named"), folder)
        assert isinstance(path, Path)
        assert path.resolve().parent == folder.resolve()
        assert path.read_bytes() == b"named"


def test_a_download_that_fails_leaves_the_existing_file_alone(world: World) -> None:
    one = world.folder("one")
    data = content(9, 5000)
    with world.pool([one], 0) as cm:
        cm.upload(world.file(data))
        one.replace(sha(data), content(10, 5000))
        target = world.file(b"precious")
        assert cm.download(sha(data), target) is False
        assert target.read_bytes() == b"precious"
        assert os.listdir(target.parent) == [target.name]


def test_a_dest_in_a_folder_that_is_missing_raises_file_not_found(world: World) -> None:
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(b"x"))
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                cm.download(sha(b"x"), world.root / "missing" / "file")
            cm.cache.clear()


@pytest.mark.parametrize("size", [5000, 33 * MIB])
def test_what_the_cache_cannot_hold_is_cache_full_that_names_the_ways_out(
    world: World, size: int
) -> None:
    data = content(11, size)
    with world.pool([world.folder("one")], 4000) as cm:
        cm.upload(world.file(data))
        with pytest.raises(CacheFull, match=r"open\(.*dest="):
            cm.download(sha(data))
        assert cm.used_space() == 0
        target = world.root / "target"
        assert cm.download(sha(data), target) == target
        assert target.read_bytes() == data
        with cm.open(sha(data)) as file:
            assert file.read() == data


@pytest.mark.parametrize("size", [1000, 33 * MIB])
def test_callers_at_once_share_one_fetch(world: World, size: int) -> None:
    one = world.folder("one")
    data = content(12, size)
    answers: list[object] = []
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        one.calls.clear()
        barrier = threading.Barrier(8)

        def call() -> None:
            barrier.wait()
            answers.append(cm.download(sha(data)))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert cm.total_incoming() == size
        path = cm.download(sha(data))
        assert answers == [path] * 8


def test_a_hit_asks_neither_hosts_nor_catalog(world: World) -> None:
    one = world.folder("one")
    with world.pool([one]) as cm:
        cm.upload(world.file(b"hit"))
        one.calls.clear()
        world.database.rename(world.database.with_suffix(".away"))
        path = cm.download(sha(b"hit"))
        assert isinstance(path, Path)
        assert path.read_bytes() == b"hit"
        world.database.with_suffix(".away").rename(world.database)
    assert one.calls == []


def test_a_pinned_file_survives_pressure_and_goes_when_it_is_let_go(world: World) -> None:
    first = content(13, 5000)
    others = [content(n, 5000) for n in range(20, 30)]
    with world.pool([world.folder("one")], 12_000) as cm:
        cm.upload(world.file(first))
        with cm.pinned(sha(first)) as path:
            for other in others:
                assert cm.upload(world.file(other))
                assert cm.used_space() <= 12_000
            assert path.read_bytes() == first
        for other in others[:4]:
            assert cm.download(sha(other))
        assert not cm.on_cache(sha(first))


def test_pinned_fetches_what_is_not_cached_yet(world: World) -> None:
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(b"pinned"))
        cm.cache.clear()
        with cm.pinned(sha(b"pinned")) as path:
            assert path.read_bytes() == b"pinned"


def test_a_cached_file_that_was_tampered_with_is_fetched_again(world: World) -> None:
    data = content(14, 5000)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(data))
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        path.chmod(0o600)
        path.write_bytes(b"tampered")
        again = cm.download(sha(data))
        assert isinstance(again, Path)
        assert again.read_bytes() == data


def test_many_downloads_each_get_an_answer(world: World) -> None:
    datas = [content(n, 1000 + n) for n in range(60)]
    with world.pool([world.folder("one")]) as cm:
        for data in datas:
            cm.upload(world.file(data))
        cm.cache.clear()
        folder = world.root / "out"
        folder.mkdir()
        wanted: list[tuple[str, Path | None]] = [(sha(d), folder / sha(d)) for d in datas]
        wanted += [(sha(b"unknown"), None), ("malformed", None)]
        answers = dict(cm.fetch_many(wanted))
        assert len(answers) == 62
        for data in datas:
            assert answers[sha(data)] == folder / sha(data)
            assert (folder / sha(data)).read_bytes() == data
        assert isinstance(answers[sha(b"unknown")], KeyError)
        assert isinstance(answers["malformed"], ValueError)


# -- open ------------------------------------------------------------------------------------------


def test_open_of_a_cached_file_pins_it_until_it_is_closed(world: World) -> None:
    data, other = content(15, 5000), content(16, 5000)
    with world.pool([world.folder("one")], 9000) as cm:
        cm.upload(world.file(data))
        with cm.open(sha(data)) as file:
            assert file.read(10) == data[:10]
            assert cm.upload(world.file(other))
            assert cm.on_cache(sha(data))
            assert not cm.on_cache(sha(other))
            file.seek(-10, os.SEEK_END)
            assert file.read() == data[-10:]
        assert cm.download(sha(other))
        assert not cm.on_cache(sha(data))


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_open_of_a_small_file_comes_verified_through_the_cache(world: World, size: int) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    data = content(17, size)
    with world.pool([bad, good]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        bad.replace(sha(data), content(18, size) + b"!")
        with cm.open(sha(data)) as file:
            assert file.read() == data
        assert cm.on_cache(sha(data))


def test_open_of_a_large_file_reads_only_what_is_asked_for(world: World) -> None:
    data = content(19, 40 * MIB)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        with cm.open(sha(data)) as file:
            assert file.seekable()
            assert file.readable()
            for offset in (30 * MIB + 7, 5, 40 * MIB - 10):
                file.seek(offset)
                assert file.read(1000) == data[offset : offset + 1000]
            file.seek(0, os.SEEK_END)
            assert file.tell() == len(data)
            assert file.read() == b""
            file.seek(10)
            file.seek(5, os.SEEK_CUR)
            assert file.read(5) == data[15:20]
            with pytest.raises(ValueError):
                file.seek(-1)
        assert not cm.on_cache(sha(data))
        assert cm.total_incoming() <= 8 * MIB


def test_open_read_from_start_to_end_gives_the_whole_file(world: World) -> None:
    data = content(20, 20 * MIB + 77)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        with cm.open(sha(data)) as file:
            assert sha(file.read()) == sha(data)
            file.seek(0)
            parts = list(iter(lambda: file.read(100_001), b""))
        assert b"".join(parts) == data


def test_open_never_hands_over_a_whole_wrong_file_however_often_it_is_asked(world: World) -> None:
    one = world.folder("one")
    data = content(21, 20 * MIB)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        one.replace(sha(data), content(22, 20 * MIB))
        with cm.open(sha(data)) as file:
            got = bytearray()
            for _ in range(3):
                with pytest.raises(NoGoodCopy):
                    while block := file.read(3 * MIB):
                        got += block
            assert len(got) < len(data)
            file.seek(0)
            with pytest.raises(NoGoodCopy):
                file.read()


def test_open_verifies_a_second_reading_from_the_start_as_well(world: World) -> None:
    one = world.folder("one")
    data = content(23, 20 * MIB)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        with cm.open(sha(data)) as file:
            assert file.read() == data
            one.replace(sha(data), content(24, 20 * MIB))
            file.seek(0)
            with pytest.raises(NoGoodCopy):
                file.read()


def test_open_goes_on_with_another_host_when_one_goes_down(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(25, 20 * MIB)
    with world.pool([one, two]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        with cm.open(sha(data)) as file:
            start = file.read(5 * MIB)
            one.down = True
            assert start + file.read() == data
            two.down = True
            file.seek(0)
            with pytest.raises(NoGoodCopy):
                file.read(10)


def test_open_works_on_hosts_without_ranges(world: World) -> None:
    one = world.folder("one", capabilities=Capabilities(range_read=False))
    data = content(26, 20 * MIB)
    with world.pool([one], "1MiB") as cm:
        cm.upload(world.file(data))
        with cm.open(sha(data)) as file:
            file.seek(7 * MIB)
            assert file.read(100) == data[7 * MIB : 7 * MIB + 100]
            file.seek(0)
            assert file.read() == data
        one.replace(sha(data), content(27, 20 * MIB))
        with pytest.raises(NoGoodCopy):
            cm.open(sha(data))


def test_a_short_object_is_an_integrity_error_of_its_host(world: World) -> None:
    one = world.folder("one")
    data = content(28, 20 * MIB)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        one.replace(sha(data), data[: 10 * MIB])
        with cm.open(sha(data)) as file:
            assert file.read(MIB) == data[:MIB]
            file.seek(15 * MIB)
            with pytest.raises(NoGoodCopy) as caught:
                file.read(10)
        assert isinstance(caught.value.errors[0], IntegrityError)


def test_what_is_external_is_read_but_never_repaired(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(29, 1000)
    with world.pool([one, two], redundancy=1) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        camera = two.root / "camera.mp4"
        camera.write_bytes(data)
        location = two.location("camera.mp4")
        cm._catalog.record([], [UploadRecord(sha(data), "two", location, external=True)])
        one.lose(sha(data))
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        cm.cache.clear()
        camera.write_bytes(b"overwritten")
        assert cm.download(sha(data))  # from `one`, which was repaired
        assert camera.read_bytes() == b"overwritten"
        assert cm.remove(sha(data)) is True
        assert cm.exists(sha(data))
    assert camera.exists()
    assert one.objects() == []
