"""Rebuild: a lost catalog comes back from the hosts, and nothing wrong with it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from manager.world import World, content, sha

from cloudmanager.errors import HostUnavailable

MIB = 1024 * 1024


def _lose_catalog(world: World) -> None:
    for path in world.root.glob("catalog.sqlite3*"):
        path.unlink()


def test_every_file_downloads_after_the_catalog_was_deleted(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    rng = random.Random(1)
    datas = {f"file {n}.txt": content(n, rng.randrange(3000)) for n in range(50)}
    with world.pool([one, two]) as cm:
        paths = [world.file(data, name) for name, data in datas.items()]
        assert all(r.hash for r in cm.upload_many(paths))
        cm.cache.clear()
    _lose_catalog(world)
    with world.pool([one, two]) as cm:
        assert cm.totals() == (0, 0)
        assert {n: count for n, count, _ in cm.survey()} == {"one": 50, "two": 50}
        assert cm.totals() == (0, 0)
        result = cm.rebuild()
        assert result.objects == {"one": 50, "two": 50}
        assert (result.files, result.new_files, result.doubtful) == (50, 50, ())
        for name, data in datas.items():
            info = cm.info(sha(data))
            assert info is not None
            assert (info.file.name, info.file.size) == (name, len(data))
            assert {u.host for u in info.uploads} == {"one", "two"}
            path = cm.download(sha(data))
            assert isinstance(path, Path)
            assert path.read_bytes() == data
        again = cm.rebuild()
        assert (again.files, again.new_files) == (50, 0)


def test_what_is_not_the_pools_is_left_alone(world: World) -> None:
    one = world.folder("one")
    with world.pool([one]) as cm:
        cm.upload(world.file(b"mine"))
    (one.root / "camera.mp4").write_bytes(b"x")
    (one.root / "ab").mkdir()
    (one.root / "ab" / ("c" * 64)).write_bytes(b"under the wrong folder")
    _lose_catalog(world)
    with world.pool([one]) as cm:
        assert cm.rebuild().files == 1


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("wrong", [b"", b"short", content(9, 5000)])
def test_where_sizes_disagree_only_the_right_copy_counts(
    world: World, first: bool, wrong: bytes
) -> None:
    hosts = [world.folder("one"), world.folder("two")]
    bad, good = hosts if first else hosts[::-1]
    data = content(1, 1000)
    with world.pool(hosts) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
    bad.replace(sha(data), wrong)
    _lose_catalog(world)
    with world.pool(hosts) as cm:
        result = cm.rebuild()
        assert len(result.doubtful) == 1
        info = cm.info(sha(data))
        assert info is not None
        assert info.file.size == 1000
        assert {u.host: u.status for u in info.uploads} == {
            bad.name: "failed",
            good.name: "stored",
        }
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data


def test_the_only_object_has_the_wrong_size_and_is_never_served(world: World) -> None:
    one = world.folder("one")
    data = content(2, 1000)
    source = world.file(data)
    with world.pool([one]) as cm:
        cm.upload(source)
        cm.cache.clear()
    one.replace(sha(data), data[:10])
    _lose_catalog(world)
    with world.pool([one]) as cm:
        cm.rebuild()
        assert cm.download(sha(data)) is False
        assert cm.upload(source) == sha(data)
        cm.cache.clear()
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        info = cm.info(sha(data))
        assert info is not None
        assert info.file.size == 1000


def test_what_only_the_cache_owed_is_queued_again(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    nowhere, on_one = content(3, 1000), content(4, 1000)
    with world.pool([one, two]) as cm:
        two.down = True
        cm.upload(world.file(on_one))
        one.down = True
        cm.upload(world.file(nowhere))
    _lose_catalog(world)
    one.down = two.down = False
    with world.pool([one, two]) as cm:
        cm.rebuild()
        assert cm.sync_status().hosts == {"one": 1, "two": 2}
        assert set(cm.cache.owed()) == {sha(nowhere), sha(on_one)}
        assert cm.cloud_sync().delivered == 3
        assert list(cm.cache.owed()) == []
    for data in (nowhere, on_one):
        assert one.path(sha(data)).read_bytes() == two.path(sha(data)).read_bytes() == data


def test_sync_alone_finds_what_the_cache_owes_when_the_catalog_is_gone(world: World) -> None:
    one = world.folder("one")
    one.down = True
    data = content(5, 1000)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
    _lose_catalog(world)
    one.down = False
    with world.pool([one]) as cm:
        assert cm.cloud_sync().delivered == 1
        assert cm.exists(sha(data))
    assert one.path(sha(data)).read_bytes() == data


def test_a_listing_that_fails_raises_and_is_never_an_empty_one(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    with world.pool([one, two]) as cm:
        for n in range(5):
            cm.upload(world.file(content(n, 100)))
    _lose_catalog(world)
    listing = two.host.list

    def breaks(prefix: str = "", *, after: str = "") -> object:
        for count, info in enumerate(listing(prefix, after=after)):
            if count == 2 and not after:
                raise HostUnavailable("reset", host="two", operation="list")
            yield info

    with world.pool([one, two]) as cm:
        two.down = True
        with pytest.raises(HostUnavailable):
            cm.rebuild()
        with pytest.raises(HostUnavailable):
            list(cm.survey())
        two.down = False
        two.host.list = breaks  # type: ignore[assignment,method-assign]
        assert cm.rebuild().objects == {"one": 5, "two": 5}


def test_rebuild_does_not_bring_back_what_is_being_removed_or_known_to_be_wrong(
    world: World,
) -> None:
    one, two = world.folder("one"), world.folder("two")
    removed, wrong = content(6, 1000), content(7, 1000)
    with world.pool([one, two]) as cm:
        cm.upload(world.file(removed))
        cm.upload(world.file(wrong))
        one.replace(sha(wrong), content(8, 1000))
        cm.cache.clear()
        two.down = True
        assert cm.download(sha(wrong)) is False
        assert cm.remove(sha(removed)) is False
        two.down = False
        cm.rebuild()
        info = cm.info(sha(wrong))
        assert info is not None
        assert {u.host: u.status for u in info.uploads} == {"one": "failed", "two": "stored"}
        assert cm.sync_status().removals == 1
        cm.cloud_sync()
        assert not cm.exists(sha(removed))
    assert not two.has(sha(removed))
