"""Faults between two steps, two processes at once, and hosts that misbehave in odd ways."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manager.world import FAST, World, content, sha

from cloudmanager import CloudManager
from cloudmanager.config import HostSetting
from cloudmanager.errors import Busy, ConfigurationError, HostUnavailable, SourceChanged
from cloudmanager.hosts.base import OnBytes
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.model import ObjectInfo
from cloudmanager.retry import Backoff, Policy, Retrier
from cloudmanager.source import FileSource, Source, StreamSource


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def _between_pin_and_record(cm: CloudManager, action: Any) -> None:
    """Have `action` run after an upload has pinned its file, before the catalog knows."""
    record = cm._catalog.record

    def recording(*args: Any, **more: Any) -> None:
        cm._catalog.record = record  # type: ignore[method-assign]
        action()
        record(*args, **more)

    cm._catalog.record = recording  # type: ignore[method-assign]


def test_a_sync_meanwhile_does_not_take_the_name_from_a_file_that_is_being_uploaded(
    world: World,
) -> None:
    a = world.folder("a")
    a.down = True
    cm, other = world.pool([a]), world.pool([a])
    _between_pin_and_record(cm, other.cloud_sync)
    stored = cm.upload(world.file(b"holiday", "holiday.jpg"))
    assert stored == sha(b"holiday")
    info = cm.info(stored)
    assert info is not None
    assert info.file.name == "holiday.jpg"


def test_a_sync_meanwhile_does_not_unpin_what_an_upload_has_just_pinned(world: World) -> None:
    a = world.folder("a")
    cm, other = world.pool([a]), world.pool([a])
    path = world.file(b"only copy")
    assert cm.upload(path) == sha(b"only copy")
    a.down = True  # the catalog says it is there, but nobody can look
    _between_pin_and_record(cm, other.cloud_sync)
    assert cm.upload(path) == sha(b"only copy")
    a.lose(sha(b"only copy"))
    assert list(cm.cache.owed()) == [sha(b"only copy")]
    cm.cache.clear()
    a.down = False
    cm.cloud_sync()
    assert a.has(sha(b"only copy"))


def test_an_upload_through_one_of_the_hosts_keeps_what_another_one_is_owed(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    b.down = True
    path = world.file(b"two copies")
    both = world.pool([a, b])
    assert both.upload(path) == sha(b"two copies")
    with world.pool([a]) as alone:
        assert alone.upload(path) == sha(b"two copies")
    assert both.sync_status().hosts == {"b": 1}
    b.down = False
    both.cloud_sync()
    assert b.has(sha(b"two copies"))


class _NeverDone(FolderHost):
    """Takes every byte and then fails, keeping nothing."""

    tries = 0

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        self.tries += 1
        assert self.tries < 50, "it goes on for ever"
        if on_bytes is not None:
            on_bytes(source.size)
        raise HostUnavailable("reset at the very end", host=self.name, operation="put")


def test_sending_the_same_bytes_again_is_no_progress(tmp_path: Path) -> None:
    host = _NeverDone("never", tmp_path)
    policy = Policy(Backoff(initial=0.0, maximum=0.0), max_retries=3)
    retrying = RetryingHost(host, Retrier(policy, sleep=lambda _seconds: None))
    source = StreamSource(lambda _offset: iter(()), size=100 * 1024**2, label="large")
    with pytest.raises(HostUnavailable):
        retrying.put("key", source, sha256="0" * 64)
    assert host.tries <= 1 + 2 * (3 + 1)


def test_a_folder_in_the_place_of_an_object_sends_the_download_to_the_next_host(
    world: World,
) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    stored = cm.upload(world.file(b"two copies"))
    assert stored
    cm.cache.clear()
    a.lose(stored)
    a.path(stored).mkdir()
    path = cm.download(stored)
    assert isinstance(path, Path)
    assert path.read_bytes() == b"two copies"


def test_a_catalog_locked_for_writing_does_not_stop_downloads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudmanager.catalog.database.LOCK_WAIT", 0.1)
    cm = world.pool([world.folder("a")])
    stored = cm.upload(world.file(b"wanted"))
    assert stored
    cm.cache.clear()
    cm._meter._every = 0.0
    lock = sqlite3.connect(world.database, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        path = cm.download(stored)
        assert isinstance(path, Path)
        assert path.read_bytes() == b"wanted"
    finally:
        lock.close()
    assert cm.total_incoming() == len(b"wanted")


def test_a_download_is_good_though_the_repair_finds_the_file_being_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    stored = cm.upload(world.file(b"two copies"))
    assert stored
    cm.cache.clear()
    a.lose(stored)

    def busy(_hashes: Any) -> Any:
        raise Busy("somebody removes it")

    monkeypatch.setattr(cm._catalog, "sharing", busy)
    path = cm.download(stored)
    assert isinstance(path, Path)
    assert path.read_bytes() == b"two copies"


def test_sync_asks_a_dead_host_once_not_for_every_file(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b], redundancy=1, jobs=1)
    paths = [world.file(content(n, 100)) for n in range(20)]
    assert all(result.hash for result in cm.upload_many(paths))
    a.down = True
    cm._placer.redundancy = 2  # as a pool that was opened with more copies
    assert all(result.hash for result in cm.upload_many(paths))
    a.calls.clear()
    result = cm.cloud_sync()
    assert result.waiting == 20
    assert a.count("stat") <= 2 * (FAST.max_retries + 1)


def test_two_names_for_one_place_do_not_count_as_two_copies(world: World) -> None:
    folder = world.root / "one"
    folder.mkdir()
    cm = world.pool([FolderHost("a", folder), FolderHost("b", f"{folder}/../one")])
    with pytest.raises(ConfigurationError, match="same place"):
        cm.upload(world.file(b"twice"))


def test_a_full_disk_for_temporary_files_does_not_end_the_sync(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = world.folder("a"), world.folder("b")
    b.down = True
    cm = world.pool([a, b])
    first, second = content(1, 1000), content(2, 1000)
    stored = [cm.upload(world.file(data)) for data in sorted((first, second), key=sha)]
    for sha256 in stored:
        assert sha256
        cm.cache.remove(sha256)
    assert stored[0]
    a.replace(stored[0], content(3, 1000))  # streamed, found wrong, then fetched to the disk
    b.down = False
    monkeypatch.setattr("tempfile.tempdir", str(world.root / "missing"))
    result = cm.cloud_sync()
    assert (result.delivered, result.waiting) == (1, 1)


def test_a_rebuild_does_not_record_what_is_gone_since_it_was_listed(world: World) -> None:
    a = world.folder("a")
    stored = world.pool([a]).upload(world.file(b"removed"))
    assert stored

    def remove(operation: str, _what: str) -> None:
        if operation == "stat" and a.has(stored):
            a.lose(stored)

    a.before = remove
    fresh = world.pool([a], database=world.root / "fresh.sqlite3", storage=world.root / "fresh")
    fresh.rebuild()
    assert a.count("stat") > 0
    assert not fresh.exists(stored)


def test_a_removal_during_a_rebuild_removes_what_the_rebuild_has_just_found(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    stored = world.pool([a]).upload(world.file(b"removed"))
    assert stored
    b.replace(stored, b"removed")  # a copy that the catalog does not know yet
    # b is listed first: a removal that comes between the two listings knows both copies.
    cm, other = world.pool([b, a]), world.pool([b, a])
    removal = threading.Thread(target=cm.remove, args=(stored,))
    uploads_many = other._catalog.uploads_many

    def looking(hashes: Any) -> Any:
        found = uploads_many(hashes)
        if removal.ident is None:
            removal.start()
            removal.join(0.5)  # it has the time, if it may go on
        return found

    other._catalog.uploads_many = looking  # type: ignore[method-assign]
    other.rebuild()
    removal.join()
    other.rebuild()
    assert not other.exists(stored)
    assert not b.has(stored)


def test_a_rebuild_gives_no_verdict_on_what_it_could_not_read(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    data = content(1, 5000)
    stored = world.pool([a, b]).upload(world.file(data))
    assert stored
    a.replace(stored, data[:100])
    fresh = world.pool([a, b], database=world.root / "fresh.sqlite3", storage=world.root / "fresh")

    def fail(operation: str, what: str) -> None:
        if operation == "get":
            raise HostUnavailable("reset", host="b", operation=operation, location=what)

    b.before = fail
    with pytest.raises(HostUnavailable):
        fresh.rebuild()
    b.before = lambda _operation, _what: None
    fresh.rebuild()
    path = fresh.download(stored)
    assert isinstance(path, Path)
    assert path.read_bytes() == data


def test_the_command_that_tells_a_secret_does_not_eat_what_is_uploaded_from_a_pipe(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told"
    setting = HostSetting(
        "a", str(tmp_path), {"create": {"command": ["sh", "-c", f"cat >{told}; echo 1"]}}
    )
    reader, writer = os.pipe()
    os.write(writer, b"the beginning of a file")
    os.close(writer)
    before = os.dup(0)
    try:
        os.dup2(reader, 0)
        setting.open().close()
        assert os.read(0, 100) == b"the beginning of a file"
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(reader)
    assert told.read_bytes() == b""


def test_open_reads_from_the_hosts_when_the_cache_has_no_disk_left(world: World) -> None:
    cm = world.pool([world.folder("a")])
    stored = cm.upload(world.file(b"readable"))
    assert stored
    cm.cache.clear()
    temporary = world.storage / "tmp"
    temporary.rmdir()
    temporary.symlink_to("/dev/full")
    with cm.open(stored) as file:
        assert file.read() == b"readable"


def test_a_source_that_cannot_be_read_any_more_is_not_the_fault_of_the_host(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    cm = world.pool([world.folder("a")], capacity=1000)
    large = world.file(content(1, 2 * 1024**2))

    def denied(_source: FileSource, _offset: int = 0) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(large))

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "open", denied)
        with pytest.raises(SourceChanged, match="Permission denied"):
            cm.upload(large)
    assert cm.upload(world.file(b"another")) == sha(b"another")
    assert cm.sync_status().copies == 0


def test_what_was_stored_before_the_list_of_paths_broke_off_is_reported(world: World) -> None:
    cm = world.pool([world.folder("a")])
    paths = [world.file(content(n, 100)) for n in range(5)]

    def listed() -> Iterator[Path]:
        yield from paths
        raise OSError("the list cannot be read")

    results = []
    with pytest.raises(OSError, match="the list cannot be read"):
        for result in cm.upload_many(listed()):
            results.append(result)
    assert sorted(result.path for result in results) == sorted(map(str, paths))


def test_finding_a_copy_gone_keeps_the_debt_of_that_host(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    data = content(1, 5000)
    cm = world.pool([a, b], capacity=1000, read_repair=False)
    path = world.file(data)
    assert cm.upload(path) == sha(data)
    a.down = True
    assert cm.upload(path) == sha(data)  # nobody could look whether a still has it
    a.down = False
    a.lose(sha(data))
    cm._ring.forgive()
    assert cm.sync_status().hosts == {"a": 1}
    assert cm.download(sha(data), world.root / "out") == world.root / "out"
    cm.cloud_sync()
    assert a.has(sha(data))
