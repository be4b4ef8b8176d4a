"""Which hosts get the copies, and what happens while hosts are down, lie, or refuse."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from manager.world import Folder, World, content, sha

from cloudmanager.errors import ContainerNotFound
from cloudmanager.manager import SyncStatus

MIB = 1024 * 1024


def _unmount(host: Folder) -> None:
    host.root.rename(host.root.with_suffix(".away"))


def _mount(host: Folder) -> None:
    host.root.with_suffix(".away").rename(host.root)


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_redundancy_takes_the_first_hosts_in_their_order(world: World, size: int) -> None:
    hosts = [world.folder(name) for name in ("z", "a", "m")]
    data = content(1, size)
    with world.pool(hosts, redundancy=2) as cm:
        (result,) = cm.upload_many([world.file(data)])
        assert result.hosts == ("z", "a")
        assert result.waiting == ()
    assert [host.has(sha(data)) for host in hosts] == [True, True, False]


@pytest.mark.parametrize("down", [0, 1])
def test_a_host_that_is_down_is_substituted_and_nothing_waits(world: World, down: int) -> None:
    hosts = [world.folder(name) for name in ("a", "b", "c")]
    _unmount(hosts[down])
    data = content(2, 1000)
    with world.pool(hosts, redundancy=2) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        assert cm.sync_status() == SyncStatus(0, 0, 0, {}, ())
        assert hosts[2].has(sha(data))
        assert hosts[1 - down].has(sha(data))


@pytest.mark.parametrize("size", [1000, 3 * MIB])
@pytest.mark.parametrize("down", [0, 1])
def test_with_one_of_two_hosts_down_uploads_work_wait_and_are_delivered(
    world: World, size: int, down: int
) -> None:
    hosts = [world.folder(name) for name in ("a", "b")]
    datas = [content(n, size) for n in range(5)]
    paths = [world.file(data) for data in datas]
    _unmount(hosts[down])
    with world.pool(hosts) as cm:
        for path, data in zip(paths, datas, strict=True):
            assert cm.upload(path) == sha(data)
        name = hosts[down].name
        assert cm.sync_status() == SyncStatus(5, 5 * size, 0, {name: 5}, ())
        queue = list(cm.upload_queue_info())
        assert [copy.hash for copy in queue] == sorted(map(sha, datas))
        assert {(copy.host, copy.removal) for copy in queue} == {(name, False)}
        assert all("there is no folder" in str(copy.error) for copy in queue)

        result = cm.cloud_sync()
        assert (result.delivered, result.waiting) == (0, 5)
        assert "there is no folder" in result.errors[0]
        for n, data in enumerate(datas):
            target = cm.download(sha(data), world.root / f"back-{n}")
            assert isinstance(target, Path)
            assert target.read_bytes() == data

        _mount(hosts[down])
        result = cm.cloud_sync()
        assert (result.delivered, result.waiting, result.errors) == (5, 0, ())
        assert cm.sync_status() == SyncStatus(0, 0, 0, {}, ())
        assert list(cm.cache.owed()) == []
        assert cm.cloud_sync().delivered == 0
    for data in datas:
        assert hosts[down].path(sha(data)).read_bytes() == data


def test_downloads_work_all_the_time_while_hosts_come_and_go(world: World) -> None:
    hosts = [world.folder(name) for name in ("a", "b")]
    datas = [content(n, 20_000) for n in range(20)]
    stop = threading.Event()
    with world.pool(hosts, 0) as cm:
        for data in datas:
            cm.upload(world.file(data))

        def toggle() -> None:
            turn = 0
            while not stop.is_set():
                host = hosts[turn % 2]
                host.down = True
                stop.wait(0.02)
                host.down = False
                stop.wait(0.005)
                turn += 1

        toggling = threading.Thread(target=toggle)
        toggling.start()
        try:
            for turn in range(3):
                for data in datas:
                    target = world.root / f"back-{turn}"
                    assert cm.download(sha(data), target) == target
                    assert target.read_bytes() == data
        finally:
            stop.set()
            toggling.join()


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_with_all_hosts_down_the_bytes_are_pinned_and_delivered_later(
    world: World, size: int
) -> None:
    hosts = [world.folder(name) for name in ("a", "b")]
    data = content(3, size)
    source = world.file(data)
    for host in hosts:
        _unmount(host)
    with world.pool(hosts) as cm:
        (result,) = cm.upload_many([source])
        assert result.hash == sha(data)
        assert result.hosts == ()
        assert result.waiting == ("a", "b")
        assert isinstance(result.error, ContainerNotFound)
        assert list(cm.cache.owed()) == [sha(data)]
    source.unlink()
    with world.pool(hosts) as cm:
        path = cm.download(sha(data))
        assert isinstance(path, Path)
        assert path.read_bytes() == data
        for host in hosts:
            _mount(host)
        assert cm.cloud_sync().delivered == 2
        assert list(cm.cache.owed()) == []
    for host in hosts:
        assert host.path(sha(data)).read_bytes() == data


def test_what_hosts_owe_is_never_evicted_and_upload_is_false_when_no_room_is_left(
    world: World,
) -> None:
    one = world.folder("one")
    datas = [content(n, 10_000) for n in range(8)]
    one.down = True
    with world.pool([one], 50_000) as cm:
        answers = [cm.upload(world.file(data)) for data in datas]
        assert answers == [sha(data) for data in datas[:5]] + [False] * 3
        assert cm.totals() == (5, 50_000)
        assert cm.sync_status().copies == 5
        assert world.cached_bytes() == 50_000
        one.down = False
        assert cm.cloud_sync().delivered == 5
        assert cm.upload(world.file(datas[7])) == sha(datas[7])
    assert len(one.objects()) == 6


@pytest.mark.parametrize("many", [False, True])
def test_content_that_is_pinned_already_is_accepted_though_there_is_no_room_for_a_second_copy(
    world: World, many: bool
) -> None:
    one = world.folder("one")
    one.down = True
    data = content(4, 10_000)
    path = world.file(data)
    with world.pool([one], 10_000) as cm:
        for _ in range(2):
            if many:
                (result,) = cm.upload_many([path])
                assert result.hash == sha(data)
            else:
                assert cm.upload(path) == sha(data)
        one.down = False
        assert cm.cloud_sync().delivered == 1
    assert one.path(sha(data)).read_bytes() == data


def test_a_cached_file_becomes_pinned_when_it_is_uploaded_again_and_its_host_lost_it(
    world: World,
) -> None:
    one = world.folder("one")
    data = content(5, 10_000)
    path = world.file(data)
    with world.pool([one], 10_000) as cm:
        cm.upload(path)
        one.down = True
        with cm.pinned(sha(data)):  # no room, and nothing that may be evicted to make some
            assert cm.upload(path) == sha(data)
        assert list(cm.cache.owed()) == [sha(data)]


def test_a_large_file_with_one_host_down_is_copied_from_host_to_host_later(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(6, 3 * MIB)
    source = world.file(data)
    two.down = True
    with world.pool([one, two], "1MiB") as cm:
        assert cm.upload(source) == sha(data)
        assert list(cm.cache.owed()) == []
        source.unlink()
        two.down = False
        assert cm.cloud_sync().delivered == 1
        assert cm.total_incoming() == len(data)
        assert cm.total_outgoing() == 2 * len(data)
    assert two.path(sha(data)).read_bytes() == data


@pytest.mark.parametrize("size", [3 * MIB, 33 * MIB])
def test_a_copy_from_host_to_host_falls_through_a_host_with_wrong_bytes(
    world: World, size: int
) -> None:
    hosts = [world.folder(name) for name in ("liar", "honest", "late")]
    data = content(7, size)
    hosts[2].down = True
    with world.pool(hosts, "1MiB") as cm:
        assert cm.upload(world.file(data)) == sha(data)
        hosts[0].replace(sha(data), content(8, size))
        hosts[2].down = False
        result = cm.cloud_sync()
        assert (result.delivered, result.waiting) == (1, 0)
        assert cm.sync_status().copies == 0
    assert hosts[2].path(sha(data)).read_bytes() == data


def test_nothing_is_delivered_when_no_host_has_the_right_bytes(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(9, 3 * MIB)
    two.down = True
    with world.pool([one, two], "1MiB") as cm:
        cm.upload(world.file(data))
        one.replace(sha(data), content(10, 3 * MIB))
        two.down = False
        result = cm.cloud_sync()
        assert (result.delivered, result.waiting) == (0, 1)
        assert result.errors
        assert cm.sync_status().copies == 1
    assert two.objects() == []


def test_sync_puts_a_copy_again_that_its_host_lost_while_it_was_owed(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(11, 1000)
    path = world.file(data)
    with world.pool([one, two]) as cm:
        cm.upload(path)
        one.down = True
        assert cm.upload(path) == sha(data)
        assert cm.sync_status().hosts == {"one": 1}
        one.lose(sha(data))
        one.down = False
        result = cm.cloud_sync()
        assert (result.delivered, result.waiting, result.errors) == (1, 0, ())
    assert one.path(sha(data)).read_bytes() == data


def test_thousands_of_uploads_do_not_each_wait_for_a_dead_host(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    one.down = True
    paths = [world.file(content(n, 100)) for n in range(200)]
    with world.pool([one, two], jobs=4) as cm:
        results = list(cm.upload_many(paths))
        assert all(result.hosts == ("two",) for result in results)
        assert all(result.waiting == ("one",) for result in results)
        # Every worker may meet it once, with all the tries that the policy allows.
        assert len(one.calls) <= 4 * 3 * 2
        one.down = False
        assert cm.cloud_sync().delivered == 200
    assert one.objects() == two.objects()


def test_downloads_ask_a_dead_host_last(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    datas = [content(n, 100) for n in range(60)]
    with world.pool([one, two], 0) as cm:
        for data in datas:
            cm.upload(world.file(data))
        one.down = True
        one.calls.clear()
        for data in datas:
            assert cm.download(sha(data), world.root / "back")
        assert len(one.calls) <= 3


def test_the_hosts_of_another_pool_wait_as_unknown(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    two.down = True
    data = content(12, 100)
    with world.pool([one, two]) as cm:
        cm.upload(world.file(data))
    with world.pool([world.folder("one")]) as cm:
        assert cm.sync_status() == SyncStatus(1, 100, 0, {"two": 1}, ("two",))
        result = cm.cloud_sync()
        assert (result.delivered, result.waiting) == (0, 1)
        assert "two" in result.errors[0]


@pytest.mark.parametrize("lie", ["other bytes", "truncated", "nothing"])
def test_a_host_that_acknowledges_what_it_did_not_store_never_gets_wrong_bytes_served(
    world: World, lie: str
) -> None:
    liar, honest = world.folder("liar"), world.folder("honest")
    data = content(13, 5000)
    put = liar.put

    def lying(key: str, source: object, **options: object) -> object:
        info = put(key, source, **options)  # type: ignore[arg-type]
        if lie == "nothing":
            liar.lose(sha(data))
        else:
            liar.replace(sha(data), content(14, 5000) if lie == "other bytes" else data[:99])
        return info

    liar.put = lying  # type: ignore[assignment,method-assign]
    with world.pool([liar, honest], 0) as cm:
        assert cm.upload(world.file(data)) == sha(data)
        del liar.put  # type: ignore[method-assign]
        target = cm.download(sha(data), world.root / "back")
        assert isinstance(target, Path)
        assert target.read_bytes() == data
    assert liar.path(sha(data)).read_bytes() == data  # read-repair


def test_the_only_host_lies_and_download_says_false(world: World) -> None:
    liar = world.folder("liar")
    data = content(15, 5000)
    with world.pool([liar], 0) as cm:
        cm.upload(world.file(data))
        liar.replace(sha(data), content(16, 5000))
        target = world.root / "back"
        assert cm.download(sha(data), target) is False
        assert not target.exists()
        info = cm.info(sha(data))
        assert info is not None
        assert [(u.status, u.verdict) for u in info.uploads] == [("failed", "wrong")]
        assert cm.upload(world.file(data)) == sha(data)
        assert cm.download(sha(data), target) == target
    assert target.read_bytes() == data
