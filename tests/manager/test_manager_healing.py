"""verify and repair: finding and mending what hosts lost or spoiled."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from manager.world import Folder, World, content, sha

from cloudmanager import CloudManager
from cloudmanager.errors import HostUnavailable
from cloudmanager.manager import CopyVerdict
from cloudmanager.model import Checksum, FileRecord, ObjectInfo, UploadRecord


def _verdicts(found: list[CopyVerdict]) -> dict[tuple[str, str], str]:
    assert len({(each.hash, each.host) for each in found}) == len(found), "a copy was told twice"
    return {(each.hash, each.host): each.verdict for each in found}


def _fill(cm: CloudManager, world: World, count: int, size: int = 100) -> list[str]:
    paths = [world.file(content(n, size)) for n in range(count)]
    hashes = [str(result.hash) for result in cm.upload_many(paths)]
    cm.cache.clear()
    return sorted(hashes)


def _states(cm: CloudManager, sha256: str) -> dict[str, tuple[str, str | None]]:
    info = cm.info(sha256)
    assert info is not None
    return {u.host: (u.status, u.verdict) for u in info.uploads}


def test_what_three_hosts_lost_spoiled_or_hide_is_named_and_repaired(world: World) -> None:
    loses, spoils, down = (world.folder(name) for name in ("loses", "spoils", "down"))
    cm = world.pool([loses, spoils, down])
    hashes = _fill(cm, world, 100)
    chosen = random.Random(7)
    lost, spoiled = set(chosen.sample(hashes, 5)), set(chosen.sample(hashes, 5))
    for sha256 in lost:
        loses.lose(sha256)
    for sha256 in spoiled:
        spoils.replace(sha256, b"!" * 100)  # of the right size: only reading tells
    down.down = True

    found = _verdicts(list(cm.verify(read=True)))
    assert {key[0] for key, verdict in found.items() if verdict == "missing"} == lost
    assert {key for key, verdict in found.items() if verdict == "missing"} == {
        (sha256, "loses") for sha256 in lost
    }
    assert {key for key, verdict in found.items() if verdict == "wrong"} == {
        (sha256, "spoils") for sha256 in spoiled
    }
    assert {key for key, verdict in found.items() if verdict == "unreachable"} == {
        (sha256, "down") for sha256 in hashes
    }
    assert Counter(found.values())["good"] == 200 - 10
    assert down.count("get") <= 10, "a dead host is not asked for every copy"
    assert {each.file.hash for each in cm.shortages()} == lost | spoiled

    down.down = False
    cm._ring.forgive()
    done = list(cm.repair())
    assert {(each.hash, each.host, each.action) for each in done} == {
        *((sha256, "loses", "restored") for sha256 in lost),
        *((sha256, "spoils", "replaced") for sha256 in spoiled),
    }
    again = list(cm.verify(read=True))
    assert Counter(each.verdict for each in again) == {"good": 300}
    assert list(cm.shortages()) == []
    assert list(cm.repair()) == []


def test_what_a_host_cannot_prove_is_unverifiable_until_it_is_read(world: World) -> None:
    only = world.folder("only")  # a folder tells no checksum
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    (asked,) = cm.verify()
    assert (asked.verdict, asked.read) == ("unverifiable", 0)
    assert _states(cm, sha256) == {"only": ("stored", None)}, "nothing is known now that was not"
    (read,) = cm.verify(read=True)
    assert (read.verdict, read.read) == ("good", 100)
    assert _states(cm, sha256) == {"only": ("stored", "good")}
    assert cm.current_incoming() == 100


@pytest.mark.parametrize(
    ("kept", "told", "verdict"),
    [
        (Checksum("md5", "aa"), Checksum("md5", "aa"), "good"),
        (Checksum("md5", "aa"), Checksum("md5", "bb"), "wrong"),
        (None, Checksum("sha256", "right"), "good"),
        (None, Checksum("sha256", "other"), "wrong"),
        (Checksum("md5", "aa"), None, "unverifiable"),
        (Checksum("md5", "aa"), Checksum("crc32c", "aa"), "unverifiable"),
        (Checksum("md5-composite", "a-2", 8), Checksum("md5-composite", "a-2", 8), "good"),
        (Checksum("md5-composite", "a-2", 8), Checksum("md5-composite", "b-2", 8), "wrong"),
        (Checksum("md5-composite", "a-2", 8), Checksum("md5-composite", "b-3", 5), "unverifiable"),
    ],
)
def test_a_checksum_proves_what_it_is_one_of(
    world: World, kept: Checksum | None, told: Checksum | None, verdict: str
) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    if told is not None and told.kind == "sha256":
        told = Checksum("sha256", sha256 if told.value == "right" else sha(b"other"))
    (upload,) = cm._catalog.uploads(sha256)
    cm._catalog.record([], [replace(upload, checksum=kept)])
    stat = only.stat

    def telling(location: str) -> ObjectInfo:
        return replace(stat(location), checksum=told)

    only.stat = telling  # type: ignore[method-assign]
    assert [found.verdict for found in cm.verify()] == [verdict]


def test_another_size_is_wrong_without_reading(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    only.replace(sha256, b"short")
    (found,) = cm.verify()
    assert found.verdict == "wrong"
    assert "5 bytes" in found.detail
    assert _states(cm, sha256) == {"only": ("failed", "wrong")}


def test_a_copy_that_was_bad_and_is_good_again_counts_again(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    data = only.path(sha256).read_bytes()
    only.lose(sha256)
    assert [found.verdict for found in cm.verify()] == ["missing"]
    only.replace(sha256, data)
    assert [found.verdict for found in cm.verify(read=True)] == ["good"]
    assert _states(cm, sha256) == {"only": ("stored", "good")}
    assert list(cm.shortages()) == []


def test_samples_and_interrupted_runs_get_round_to_every_copy(world: World) -> None:
    cm = world.pool([world.folder("only")])
    hashes = _fill(cm, world, 40)
    seen: list[str] = []
    for _ in range(4):
        part = [found.hash for found in cm.verify(read=True, sample=0.25)]
        assert len(part) == 10
        seen += part
    assert sorted(seen) == hashes, "the oldest come first: no copy twice before all had their turn"
    run = cm.verify(read=True)
    first = {next(run).hash for _ in range(3)}
    run.close()  # type: ignore[attr-defined]
    rest = [found.hash for found in cm.verify(read=True, older_than=timedelta(0))]
    assert sorted(rest) == hashes
    assert first <= set(hashes)


def test_older_than_leaves_out_what_was_proven_since(world: World) -> None:
    cm = world.pool([world.folder("only")])
    hashes = _fill(cm, world, 5)
    assert len(list(cm.verify(read=True, sample=0.4))) == 2
    left = [found.hash for found in cm.verify(read=True, older_than=timedelta(hours=1))]
    assert len(left) == 3
    assert set(left) < set(hashes)
    assert list(cm.verify(read=True, older_than=timedelta(hours=1))) == []


def test_a_budget_is_not_exceeded(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    _fill(cm, world, 10, size=1000)
    found = list(cm.verify(read=True, budget="3500"))
    assert len(found) == 3
    assert sum(each.read for each in found) == 3000
    assert only.count("get") == 3


def test_a_copy_that_was_replaced_while_it_was_looked_at_is_not_called_wrong(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    data = only.path(sha256).read_bytes()
    only.replace(sha256, b"wrong")

    def put_right(operation: str, _what: str) -> None:
        if operation == "get":
            only.before = lambda *_: None
            only.replace(sha256, b"wrong")  # it is read as it was
            (upload,) = cm._catalog.uploads(sha256)
            cm._catalog.record([], [replace(upload, stored_at=1.0)])  # uploaded anew meanwhile

    only.before = put_right
    assert [found.verdict for found in cm.verify(read=True)] == ["wrong"]
    assert _states(cm, sha256) == {"only": ("stored", None)}
    only.replace(sha256, data)


def test_a_file_that_was_removed_while_it_was_verified_stays_removed(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)
    other = world.pool([world.folder("only")])

    def remove(operation: str, _what: str) -> None:
        if operation == "get":
            assert other.remove(sha256)

    only.before = remove
    assert [found.verdict for found in cm.verify(read=True)] == ["missing"]
    assert not cm.exists(sha256)


def test_what_is_external_is_verified_and_never_repaired(world: World) -> None:
    pool, elsewhere = world.folder("pool"), world.folder("elsewhere")
    cm = world.pool([pool, elsewhere], redundancy=1)
    path = elsewhere.root / "camera.mp4"
    path.write_bytes(b"spoiled")
    sha256 = sha(b"recorded")
    location = elsewhere.location("camera.mp4")
    external = UploadRecord(sha256, "elsewhere", location, external=True)
    cm._catalog.record([FileRecord(sha256, "camera.mp4", 8, 1.0)], [external])
    assert [found.verdict for found in cm.verify(read=True)] == ["wrong"]
    assert _states(cm, sha256) == {"elsewhere": ("stored", "wrong")}
    assert list(cm.shortages()) == []
    assert list(cm.repair()) == []
    assert path.read_bytes() == b"spoiled"


# -- repair ----------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_does_nothing(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    (sha256,) = _fill(cm, world, 1)
    b.replace(sha256, b"wrong")
    list(cm.verify(read=True))
    before = _states(cm, sha256)
    (planned,) = cm.repair(dry_run=True)
    assert (planned.host, planned.action) == ("b", "replaced")
    assert _states(cm, sha256) == before
    assert b.path(sha256).read_bytes() == b"wrong"


def test_a_file_with_no_good_copy_left_is_named_and_stays_in_the_catalog(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    gone, kept = _fill(cm, world, 2)
    a.lose(gone)
    b.replace(gone, b"wrong")
    list(cm.verify(read=True))
    (told,) = cm.repair()
    assert (told.hash, told.action) == (gone, "lost")
    assert told.name == "file.bin"
    assert cm.exists(gone)
    assert cm.exists(kept)
    assert b.path(gone).read_bytes() == b"wrong", "somebody may still want to look at it"


def test_the_cache_is_a_good_copy_too(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    stored = cm.upload(world.file(b"still cached"))
    assert stored
    only.lose(stored)
    assert [found.verdict for found in cm.verify()] == ["missing"]
    assert [done.action for done in cm.repair()] == ["restored"]
    assert only.path(stored).read_bytes() == b"still cached"


def test_a_copy_for_a_host_that_is_down_waits_and_sync_delivers_it(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    (sha256,) = _fill(cm, world, 1)
    b.lose(sha256)
    list(cm.verify())
    b.down = True
    (waits,) = cm.repair()
    assert (waits.host, waits.action) == ("b", "waiting")
    assert waits.detail
    b.down = False
    assert cm.cloud_sync().delivered == 1
    assert b.has(sha256)
    assert list(cm.shortages()) == []


def test_what_a_host_owes_it_still_owes_after_it_was_verified(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    (sha256,) = _fill(cm, world, 1)
    b.lose(sha256)
    list(cm.verify())
    b.down = True
    list(cm.repair())
    b.down = False
    cm._ring.forgive()
    assert [found.verdict for found in cm.verify()].count("missing") == 1
    assert cm.sync_status().copies == 1
    assert cm.cloud_sync().delivered == 1
    assert b.has(sha256)


def test_a_copy_that_turns_out_wrong_as_the_source_of_a_repair_is_no_source(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    (sha256,) = _fill(cm, world, 1)
    b.lose(sha256)
    list(cm.verify())
    a.replace(sha256, b"!" * 100)  # since it was looked at
    (told,) = cm.repair()
    assert told.action == "lost"
    assert not b.has(sha256)
    assert _states(cm, sha256)["a"] == ("failed", "wrong")


def test_a_pool_that_shall_hold_more_copies_gets_them_by_repair(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    with world.pool([a, b], redundancy=1) as cm:
        hashes = _fill(cm, world, 30)
    cm = world.pool([a, b], redundancy=2)
    assert {each.file.hash for each in cm.shortages()} == set(hashes)
    done = list(cm.repair())
    assert Counter((each.host, each.action) for each in done) == {("b", "restored"): 30}
    assert b.objects() == hashes
    assert list(cm.shortages()) == []


def test_a_host_that_was_renamed_is_still_the_same_place(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    with world.pool([a, b]) as cm:
        (sha256,) = _fill(cm, world, 1)
    b.lose(sha256)
    renamed = [Folder(world.root / name, f"new {name}") for name in ("a", "b")]
    cm = world.pool(renamed)
    assert [found.verdict for found in cm.verify()].count("missing") == 1
    (done,) = cm.repair()
    assert (done.host, done.action) == ("new b", "restored")
    assert b.has(sha256)
    assert list(cm.shortages()) == []
    assert {found.verdict for found in cm.verify(read=True)} == {"good"}
    assert list(cm.repair()) == []


def test_a_repair_makes_no_more_copies_than_there_shall_be(world: World) -> None:
    a, b, c = (world.folder(name) for name in ("a", "b", "c"))
    cm = world.pool([a, b, c], redundancy=2)
    (sha256,) = _fill(cm, world, 1)
    b.lose(sha256)
    list(cm.verify())
    assert [(done.host, done.action) for done in cm.repair()] == [("b", "restored")]
    assert (a.has(sha256), b.has(sha256), c.has(sha256)) == (True, True, False)


def test_two_repairs_at_once_end_with_one_right_copy_each(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    hashes = _fill(cm, world, 20)
    for sha256 in hashes:
        b.lose(sha256)
    list(cm.verify())
    other = world.pool([world.folder("a"), world.folder("b")])
    with ThreadPoolExecutor(2) as both:
        for done in both.map(lambda each: list(each.repair()), (cm, other)):
            assert {each.action for each in done} <= {"restored"}
    assert b.objects() == hashes
    assert Counter(found.verdict for found in cm.verify(read=True)) == {"good": 40}


def test_a_repair_that_was_interrupted_goes_on(world: World) -> None:
    a, b = world.folder("a"), world.folder("b")
    cm = world.pool([a, b])
    hashes = _fill(cm, world, 40)
    for sha256 in hashes:
        b.lose(sha256)
    list(cm.verify())
    run = cm.repair()
    next(run)
    run.close()  # type: ignore[attr-defined]
    cm.close()
    fresh = world.pool([a, b])
    fresh.cloud_sync()
    list(fresh.repair())
    assert b.objects() == hashes


def test_a_host_that_fails_while_it_is_read_is_unreachable_not_wrong(world: World) -> None:
    only = world.folder("only")
    cm = world.pool([only])
    (sha256,) = _fill(cm, world, 1)

    def fail(operation: str, what: str) -> None:
        if operation == "get":
            raise HostUnavailable("reset", host="only", operation="get", location=what)

    only.before = fail
    assert [found.verdict for found in cm.verify(read=True)] == ["unreachable"]
    assert _states(cm, sha256) == {"only": ("stored", None)}


_MEMORY = """
import resource, sys
from cloudmanager import CloudManager
cm = CloudManager(sys.argv[1], sys.argv[2], "1GiB", [sys.argv[3], sys.argv[4]], redundancy=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
bad = sum(found.verdict != "good" for found in cm.verify(read=True))
mended = sum(done.action == "restored" for done in cm.repair())
left = sum(found.verdict != "good" for found in cm.verify(read=True))
cm.close()
print(bad, mended, left, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_thousand_objects_are_verified_and_repaired_in_bounded_memory(world: World) -> None:
    a, b = world.root / "a", world.root / "b"
    a.mkdir()
    b.mkdir()
    hosts = [Folder(a, "a"), Folder(b, "b")]
    with world.pool(hosts, capacity="1GiB") as cm:
        paths = (world.file(b"%d" % n) for n in range(20_000))
        hashes = [str(result.hash) for result in cm.upload_many(paths)]
        cm.cache.clear()
    for sha256 in hashes[::20]:
        hosts[1].lose(sha256)
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, world.database, world.storage, a, b],
        capture_output=True,
        text=True,
        check=True,
    )
    bad, mended, left, grown = map(int, done.stdout.split())
    assert (bad, mended, left) == (1000, 1000, 0)
    assert grown * 1024 < 100 * 1024**2
