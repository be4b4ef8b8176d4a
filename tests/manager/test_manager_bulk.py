"""Many small files at once: what travels together must still succeed and fail one by one."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from manager.world import World, content, sha

from cloudmanager.catalog import Catalog
from cloudmanager.errors import CatalogError, HostUnavailable, IntegrityError, NoGoodCopy
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.manager import CloudManager
from cloudmanager.model import Checksum, FileRecord, UploadRecord

KIB = 1024


def _restore(cm: CloudManager, folder: Path, datas: list[bytes]) -> dict[str, Path | Exception]:
    folder.mkdir(exist_ok=True)
    wanted = [(sha(data), folder / sha(data)) for data in datas]
    return dict(cm.fetch_many(wanted, fill_cache=False, exact=True))


# -- down ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["missing", "other bytes", "short", "long", "down"])
def test_a_restore_falls_through_a_bad_host_and_repairs_it(world: World, fault: str) -> None:
    bad, good = world.folder("bad"), world.folder("good")
    datas = [content(n, 4 * KIB) for n in range(10)]
    with world.pool([bad, good]) as cm:
        stored = [result.hash for result in cm.upload_many(map(world.file, datas))]
        cm.cache.clear()
        for data in datas[:3]:
            if fault == "missing":
                bad.lose(sha(data))
            elif fault == "other bytes":
                bad.replace(sha(data), content(99, 4 * KIB))
            elif fault == "short":
                bad.replace(sha(data), data[:-1])
            elif fault == "long":
                bad.replace(sha(data), data + b"!")
        bad.down = fault == "down"
        out = world.root / "out"
        answers = _restore(cm, out, datas)
        assert answers == {sha256: out / str(sha256) for sha256 in stored}
        for data in datas:
            assert (out / sha(data)).read_bytes() == data
            assert bad.path(sha(data)).read_bytes() == data
        assert len(os.listdir(out)) == len(datas)
        assert cm.used_space() == 0, "a restore leaves the cache as it is"
        assert cm.current_incoming() >= sum(map(len, datas))


def test_one_file_that_cannot_be_restored_does_not_stop_the_rest(world: World) -> None:
    only = world.folder("only")
    datas = [content(n, 4 * KIB) for n in range(20)]
    with world.pool([only]) as cm:
        list(cm.upload_many(map(world.file, datas)))
        cm.cache.clear()
        lost, blocked = datas[3], datas[7]
        only.replace(sha(lost), b"wrong")
        out = world.root / "out"
        (out / sha(blocked)).mkdir(parents=True)
        answers = _restore(cm, out, datas)
        assert isinstance(answers.pop(sha(lost)), NoGoodCopy)
        assert isinstance(answers.pop(sha(blocked)), IsADirectoryError)
        assert set(answers) == {sha(data) for data in datas} - {sha(lost), sha(blocked)}
        assert all((out / name).read_bytes() for name in answers)
        assert not [name for name in os.listdir(out) if name.startswith(".")]
        info = cm.info(sha(lost))
        assert info is not None
        assert [u.verdict for u in info.uploads] == ["wrong"]


def test_a_restore_of_cached_files_asks_no_host(world: World) -> None:
    only = world.folder("only")
    datas = [content(n, 4 * KIB) for n in range(5)]
    with world.pool([only]) as cm:
        list(cm.upload_many(map(world.file, datas)))
        answers = _restore(cm, world.root / "out", datas)
        assert all(isinstance(answer, Path) for answer in answers.values())
    assert only.count("get") == 0


def test_without_exact_a_dest_may_be_a_folder(world: World) -> None:
    with world.pool([world.folder("only")]) as cm:
        stored = cm.upload(world.file(b"named", "report.pdf"))
        assert stored
        cm.cache.clear()
        out = world.root / "out"
        out.mkdir()
        assert list(cm.fetch_many([(stored, out)], fill_cache=False)) == [
            (stored, out / "report.pdf")
        ]
    assert (out / "report.pdf").read_bytes() == b"named"


def test_what_was_stored_with_other_rights_is_restored_with_those_of_any_new_file(
    world: World,
) -> None:
    with world.pool([world.folder("only")]) as cm:
        stored = cm.upload(world.file(b"data"))
        assert stored
        cm.cache.clear()
        _restore(cm, world.root / "out", [b"data"])
        _restore(cm, world.root / "out", [b"data"])  # an existing one is replaced
    umask = os.umask(0)
    os.umask(umask)
    assert (world.root / "out" / stored).stat().st_mode & 0o777 == 0o666 & ~umask


def _wait_for_workers() -> None:
    """Batches that were under way end behind the back of who does not wait for them."""
    until = time.monotonic() + 60
    while any(thread.name.startswith("upload") for thread in threading.enumerate()):
        assert time.monotonic() < until, "the workers did not end"
        time.sleep(0.01)


# -- up --------------------------------------------------------------------------------------------


def test_a_consumer_that_leaves_early_leaves_nothing_held(world: World) -> None:
    only = world.folder("only")
    gate = threading.Event()
    only.before = lambda operation, _: gate.wait(20) and None if operation == "put" else None
    paths = [world.file(content(n, 4 * KIB)) for n in range(200)]
    cm = world.pool([only])
    results = cm.upload_many(paths)
    first = threading.Thread(target=next, args=(results,))
    first.start()
    while only.count("put") < 4:  # all workers are in the middle of their shares
        time.sleep(0.01)
    gate.set()
    first.join()
    results.close()  # type: ignore[attr-defined]
    _wait_for_workers()
    objects = (world.storage / "objects").rglob("*")
    kept = sum(path.stat().st_size for path in objects if path.is_file())
    assert cm.used_space() == kept, "room is still reserved"
    for sha256 in only.objects():
        # What was sent is known, and nobody holds it any more: it can be removed.
        assert cm.exists(sha256)
        assert cm.remove(sha256)
    assert only.objects() == []


def test_large_files_that_nobody_waits_for_are_not_begun(world: World) -> None:
    only = world.folder("only")
    gate = threading.Event()
    only.before = lambda operation, _: gate.wait(20) and None if operation == "put" else None
    cm = world.pool([only], capacity="256MiB")
    results = cm.upload_many([world.file(content(n, 1100 * KIB)) for n in range(12)])
    first = threading.Thread(target=next, args=(results,))
    first.start()
    while only.count("put") < 3:  # as many as are sent at once
        time.sleep(0.01)
    closed = threading.Event()
    only.before = lambda operation, _: closed.wait(20) and None if operation == "put" else None
    gate.set()  # lets those three through; the next ones wait for the other
    first.join()
    results.close()  # type: ignore[attr-defined]
    closed.set()
    _wait_for_workers()
    # Three had been sent, three more were under way; two were waiting for their turn.
    assert only.count("put") <= 6
    assert all(cm.exists(sha256) for sha256 in only.objects())


def test_a_cancelled_upload_keeps_what_was_sent(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])

    def stop(operation: str, _what: str) -> None:
        if operation == "put" and only.count("put") == 20:
            cm.cancel()

    only.before = stop
    told = set()
    with pytest.raises(Exception, match="stopped"):
        for result in cm.upload_many([world.file(content(n, 4 * KIB)) for n in range(200)]):
            told.add(result.hash)
    _wait_for_workers()
    fresh = world.pool([only])
    known = {sha256 for sha256 in only.objects() if fresh.exists(sha256)}
    assert told <= known
    # But for what was under way at that moment, all that was sent is known.
    assert len(only.objects()) - len(known) <= 4
    for sha256 in known:
        path = fresh.download(sha256)
        assert isinstance(path, Path)
        assert sha(path.read_bytes()) == sha256


def test_a_catalog_that_fails_ends_the_upload_and_nothing_stays_reserved(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = world.folder("only")
    cm = world.pool([only])

    def broken(*_args: object, **_options: object) -> None:
        raise CatalogError("the disk of the catalog is full")

    monkeypatch.setattr(cm._catalog, "record", broken)
    with pytest.raises(CatalogError, match="full"):
        list(cm.upload_many([world.file(content(n, 4 * KIB)) for n in range(50)]))
    _wait_for_workers()
    assert cm.used_space() == 0


def test_a_few_files_are_sent_at_the_same_time(world: World) -> None:
    only = world.folder("only")
    together = threading.Barrier(8)
    only.before = lambda operation, _: together.wait(20) and None if operation == "put" else None
    with world.pool([only], jobs=8) as cm:
        results = list(cm.upload_many([world.file(content(n, 100)) for n in range(8)]))
    assert all(result.hash for result in results)


# -- what they are made of -------------------------------------------------------------------------


def test_read_gives_the_whole_object_and_refuses_a_longer_one(tmp_path: Path) -> None:
    host = FolderHost("folder", tmp_path)
    (tmp_path / "object").write_bytes(b"12345")
    location = host.location("object")
    assert host.read(location, limit=5) == b"12345"
    assert host.read(location, limit=9) == b"12345"
    with pytest.raises(IntegrityError, match="more than the 4 bytes"):
        host.read(location, limit=4)


def test_a_host_that_is_down_is_tried_again_by_read(world: World) -> None:
    flaky = world.folder("flaky")
    failures = iter([True, True])

    def fail(operation: str, what: str) -> None:
        if operation == "get" and next(failures, False):
            raise HostUnavailable("reset", host="flaky", operation="get", location=what)

    with world.pool([flaky]) as cm:
        stored = cm.upload(world.file(b"data"))
        assert stored
        cm.cache.clear()
        flaky.before = fail
        assert _restore(cm, world.root / "out", [b"data"]) == {stored: world.root / "out" / stored}
    assert flaky.count("get") == 3


@pytest.mark.parametrize("count", [1, 499, 500, 501, 1201])
def test_a_catalog_takes_any_number_of_rows_at_once(tmp_path: Path, count: int) -> None:
    with Catalog.open(str(tmp_path / "catalog.sqlite3")) as catalog:
        hashes = [sha(str(n).encode()) for n in range(count)]
        owed = [UploadRecord(each, "slow", status="queued") for each in hashes]
        catalog.record([FileRecord(each, "ä\udcff", 1, 2.5) for each in hashes], owed)
        copies = [
            UploadRecord(
                each,
                "slow",
                f"file:///pool/{each}",
                checksum=Checksum("md5-composite", "0-2", 8),
                stored_at=1.25,
                etag="e",
            )
            for each in hashes
        ]
        external = UploadRecord(hashes[0], "slow", "file:///elsewhere", external=True)
        catalog.record([FileRecord(hashes[0], "other", 9, 9.0)], [*copies, external])
        found = catalog.uploads_many(hashes)
        assert sorted(found) == sorted(hashes)
        assert [copy for each in hashes[1:] for copy in found[each]] == copies[1:]
        assert set(found[hashes[0]]) == {copies[0], external}
        assert catalog.get(hashes[0]) == FileRecord(hashes[0], "ä\udcff", 1, 2.5)
        assert catalog.totals() == (count, count)
