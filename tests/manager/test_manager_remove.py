"""Remove: complete, resumable, and never at the cost of what upload acknowledged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from manager.world import World, content, sha

from cloudmanager.errors import Busy

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB])
def test_remove_deletes_the_file_everywhere(world: World, size: int) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(1, size)
    with world.pool([one, two]) as cm:
        cm.upload(world.file(data))
        assert cm.remove(sha(data)) is True
        assert not cm.exists(sha(data))
        assert not cm.on_cache(sha(data))
        assert cm.download(sha(data)) is None
        assert cm.used_space() == 0
        assert cm.totals() == (0, 0)
        assert cm.remove(sha(data)) is None
    assert one.objects() == two.objects() == []
    assert world.cached_bytes() == 0


def test_what_was_removed_can_be_uploaded_again(world: World) -> None:
    one = world.folder("one")
    path = world.file(b"again")
    with world.pool([one]) as cm:
        for _ in range(3):
            assert cm.upload(path) == sha(b"again")
            assert cm.remove(sha(b"again")) is True
        assert cm.upload(path) == sha(b"again")
        cm.cache.clear()
        assert cm.download(sha(b"again"))


def test_remove_with_a_host_down_is_finished_by_sync(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(2, 1000)
    with world.pool([one, two]) as cm:
        cm.upload(world.file(data))
        two.down = True
        assert cm.remove(sha(data)) is False
        assert cm.exists(sha(data))
        assert not cm.on_cache(sha(data))
        assert cm.download(sha(data)) is False
        assert cm.sync_status().removals == 1
        assert [(q.host, q.removal) for q in cm.upload_queue_info()] == [("two", True)]
        assert cm.cloud_sync().waiting == 1
        two.down = False
        result = cm.cloud_sync()
        assert (result.removed, result.waiting) == (1, 0)
        assert not cm.exists(sha(data))
    assert one.objects() == two.objects() == []


def test_an_upload_takes_back_a_removal_that_still_waits(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    data = content(3, 1000)
    path = world.file(data)
    with world.pool([one, two]) as cm:
        cm.upload(path)
        two.down = True
        assert cm.remove(sha(data)) is False
        assert cm.upload(path) == sha(data)
        two.down = False
        cm.cloud_sync()
        assert cm.sync_status().copies == cm.sync_status().removals == 0
        cm.cache.clear()
        assert cm.download(sha(data))
    assert one.path(sha(data)).read_bytes() == two.path(sha(data)).read_bytes() == data


def test_remove_of_what_only_the_cache_holds_drops_the_debt_too(world: World) -> None:
    one = world.folder("one")
    one.down = True
    data = content(4, 1000)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        assert cm.remove(sha(data)) is True
        assert cm.used_space() == 0
        one.down = False
        assert cm.cloud_sync().delivered == 0
        assert cm.totals() == (0, 0)
    assert one.objects() == []


def test_remove_of_a_file_that_is_being_read_is_busy_and_removes_nothing(world: World) -> None:
    one = world.folder("one")
    data = content(5, 1000)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        with cm.pinned(sha(data)):
            with pytest.raises(Busy):
                cm.remove(sha(data))
            assert cm.exists(sha(data))
            assert cm.sync_status().removals == 0
            cm.cloud_sync()
            assert one.has(sha(data))
        assert cm.remove(sha(data)) is True


def test_remove_racing_upload_in_threads_loses_nothing_acknowledged(world: World) -> None:
    """After every acknowledged upload that no later removal followed, the bytes are there."""
    one, two = world.folder("one"), world.folder("two")
    path = world.file(content(6, 2000))
    sha256 = sha(path.read_bytes())
    with world.pool([one, two]) as cm:
        removing = threading.Event()

        def remove() -> None:
            removing.set()
            for _ in range(10):
                cm.remove(sha256)

        for _ in range(4):
            removing.clear()
            remover = threading.Thread(target=remove)
            remover.start()
            removing.wait()
            for _ in range(10):
                assert cm.upload(path) == sha256
            remover.join()
            # The last one to act was one of the two; either way the state is whole.
            _require_whole(world, cm.exists(sha256), one.has(sha256), two.has(sha256))
            assert cm.upload(path) == sha256
            cm.cache.clear()
            back = cm.download(sha256)
            assert isinstance(back, Path)
            assert sha(back.read_bytes()) == sha256
        assert cm.sync_status().copies == cm.sync_status().removals == 0


def _require_whole(world: World, known: bool, *there: bool) -> None:
    assert set(there) == {known}, (world.root, known, there)


_REMOVER = """
    import pathlib, sys
    from cloudmanager import CloudManager
    root, hashes = pathlib.Path(sys.argv[1]), sys.argv[2:]
    cm = CloudManager(root / "catalog.sqlite3", root / "storage", "64MiB",
                      [root / "one", root / "two"])
    print("ready", flush=True)
    for turn in range(int(sys.stdin.readline())):
        for sha256 in hashes:
            cm.remove(sha256)
    cm.close()
"""


def _start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_remove_racing_upload_in_two_processes_loses_nothing_acknowledged(world: World) -> None:
    for name in ("one", "two"):
        (world.root / name).mkdir()
    paths = [world.file(content(n, 2000)) for n in range(3)]
    hashes = [sha(path.read_bytes()) for path in paths]
    hosts = [world.root / "one", world.root / "two"]
    with world.pool(hosts) as cm, _start(_REMOVER, world.root, *hashes) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        child.stdin.write("15\n")
        child.stdin.flush()
        while child.poll() is None:
            for path, sha256 in zip(paths, hashes, strict=True):
                assert cm.upload(path) == sha256
        assert child.returncode == 0
        for path, sha256 in zip(paths, hashes, strict=True):
            there = {(host / sha256[:2] / sha256).exists() for host in hosts}
            assert there == {cm.exists(sha256)}
            assert cm.upload(path) == sha256
        cm.cache.clear()
        for sha256 in hashes:
            back = cm.download(sha256)
            assert isinstance(back, Path)
            assert sha(back.read_bytes()) == sha256


def test_a_removal_that_was_killed_is_finished_by_removing_again_or_by_sync(world: World) -> None:
    one, two = world.folder("one"), world.folder("two")
    hosts = [world.root / "one", world.root / "two"]
    rng = random.Random(7)
    datas = [content(n, 500) for n in range(25)]
    hashes = [sha(data) for data in datas]
    for _ in range(3):
        with world.pool(hosts) as cm:
            assert all(r.hash for r in cm.upload_many([world.file(data) for data in datas]))
        with _start(_REMOVER, world.root, *hashes) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdout.readline()
            child.stdin.write("1\n")
            child.stdin.flush()
            threading.Event().wait(rng.uniform(0.0, 0.25))
            os.kill(child.pid, signal.SIGKILL)
        with world.pool(hosts) as cm:
            result = cm.cloud_sync()
            assert result.waiting == 0
            for sha256 in hashes:
                known = cm.exists(sha256)
                assert one.has(sha256) == two.has(sha256) == known
                if known:
                    assert cm.download(sha256)
                    assert cm.remove(sha256) is True
            assert cm.totals() == (0, 0)
            assert cm.used_space() == 0
    assert one.objects() == two.objects() == []


def test_upload_is_busy_while_a_removal_of_the_same_content_does_not_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudmanager.catalog.queries.WAIT", 0.2)
    one = world.folder("one")
    path = world.file(b"contested")
    sha256 = sha(b"contested")
    reached, go_on = threading.Event(), threading.Event()

    def slow(operation: str, _what: str) -> None:
        if operation == "delete":
            reached.set()
            go_on.wait()

    with world.pool([one]) as cm:
        cm.upload(path)
        one.before = slow
        remover = threading.Thread(target=cm.remove, args=(sha256,))
        remover.start()
        reached.wait()
        try:
            with pytest.raises(Busy):
                cm.upload(path)
            (result,) = cm.upload_many([path])
            assert result.hash is False
            assert isinstance(result.error, Busy)
        finally:
            go_on.set()
            remover.join()
        assert not cm.exists(sha256)
        assert cm.upload(path) == sha256


@pytest.mark.parametrize("together", [False, True])
def test_a_file_removed_while_it_is_downloaded_is_not_served_afterwards(
    world: World, together: bool
) -> None:
    one = world.folder("one")
    data = content(9, 1000)
    with world.pool([one]) as cm:
        cm.upload(world.file(data))
        cm.cache.clear()
        whole = one.get

        def get_and_remove(location: str, **more: int) -> object:
            blocks = list(whole(location, **more))
            assert cm.remove(sha(data)) is True
            return iter(blocks)

        one.get = get_and_remove  # type: ignore[assignment, method-assign]
        if together:
            ((_, outcome),) = cm.fetch_many([(sha(data), None)])
            assert isinstance(outcome, KeyError)
        else:
            assert cm.download(sha(data)) is None
        assert not cm.on_cache(sha(data))
        assert cm.download(sha(data)) is None
        assert cm.used_space() == 0
