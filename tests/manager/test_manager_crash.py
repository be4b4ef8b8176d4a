"""SIGKILL at random instants: nothing acknowledged is lost, the capacity holds, all reopens."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from manager.world import FAST, World, sha

CAPACITY = 400_000

_UPLOADER = """
    import pathlib, sys
    from cloudmanager import CloudManager
    root, capacity = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    cm = CloudManager(root / "catalog.sqlite3", root / "storage", capacity,
                      [root / "one", root / "two"], jobs=3)
    print("ready", flush=True)
    for result in cm.upload_many(sorted((root / "in").iterdir())):
        if result.hash:
            print(result.hash, flush=True)
    print("done", flush=True)
"""

_DOWNLOADER = """
    import pathlib, random, sys
    from cloudmanager import CloudManager
    from cloudmanager.hashing import sha256_of
    root, capacity, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    cm = CloudManager(root / "catalog.sqlite3", root / "storage", capacity,
                      [root / "one", root / "two"], jobs=3)
    rng = random.Random(seed)
    hashes = [file.hash for file in cm.files()]
    print("ready", flush=True)
    while True:
        sha256 = rng.choice(hashes)
        with cm.pinned(sha256) as path, path.open("rb") as file:
            print("right" if sha256_of(file) == sha256 else "wrong", flush=True)
        dest = root / f"out-{seed}"
        cm.download(rng.choice(hashes), dest)
"""


class _Observer(threading.Thread):
    """Looks at a cache from outside and keeps the most bytes it saw there at one instant.

    A file counts when it was there in two scans, one wholly after the other, with the
    smaller of its sizes: so many bytes were there together in between, whatever moved. It
    is the same file when its inode and its path or its time are the same: inodes are reused.
    """

    def __init__(self, storage: Path) -> None:
        super().__init__(daemon=True)
        self._storage = storage
        self._stop_now = threading.Event()
        self.most = 0
        self.scans = 0

    def run(self) -> None:
        before = self._scan()
        while not self._stop_now.wait(0.001):
            after = self._scan()
            together = 0
            for inode in before.keys() & after.keys():
                (path, time, size), (path_now, time_now, size_now) = before[inode], after[inode]
                if path == path_now or time == time_now:
                    together += min(size, size_now)
            self.most = max(self.most, together)
            self.scans += 1
            before = after

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    def _scan(self) -> dict[int, tuple[str, int, int]]:
        found: dict[int, tuple[str, int, int]] = {}
        for top in ("objects", "tmp"):
            for folder, _, names in os.walk(self._storage / top):
                for name in names:
                    path = os.path.join(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                        seen = os.stat(path)
                        found[seen.st_ino] = (path, seen.st_mtime_ns, seen.st_size)
        return found


def _start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


def _kill_after(child: subprocess.Popen[str], lines: int, pause: float) -> list[str]:
    """What the child said until it was killed, some time after its line number `lines`."""
    assert child.stdout is not None
    said: list[str] = []
    with child:
        for line in child.stdout:
            said.append(line.strip())
            if len(said) > lines:
                break
        threading.Event().wait(pause)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read()
        said += rest[: rest.rfind("\n") + 1].split()
    return said


def _fill(world: World, rng: random.Random, turn: int) -> None:
    folder = world.root / "in"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for n in range(40):
        size = rng.choice([0, 10, 3000, 3000, 30_000])
        (folder / f"{turn}-{n}").write_bytes(rng.randbytes(size))
    (folder / f"{turn}-large").write_bytes(rng.randbytes(1_500_000))
    (folder / f"{turn}-larger").write_bytes(rng.randbytes(300_000))


def _hosts(world: World) -> list[Path]:
    hosts = [world.root / "one", world.root / "two"]
    for host in hosts:
        host.mkdir(exist_ok=True)
    return hosts


def _kill_uploads(world: World, kills: int, seed: int, *, down: str | None) -> None:
    """Kill uploads; with `down`, one host or all are away, so that the cache owes."""
    rng = random.Random(seed)
    hosts = _hosts(world)
    acknowledged: set[str] = set()
    observer: _Observer | None = None
    away = [host for host in hosts if down in (host.name, "all")]
    capacity = CAPACITY if down is None else 400_000_000
    for host in away:
        host.rename(host.with_suffix(".away"))
    try:
        for turn in range(kills):
            _fill(world, rng, turn)
            child = _start(_UPLOADER, world.root, capacity)
            if observer is None:
                observer = _Observer(world.storage)
                observer.start()
            said = _kill_after(child, rng.choice([1, 1, 5, 30]), rng.uniform(0, 0.1))
            assert said[0] == "ready"
            acknowledged.update(line for line in said[1:] if len(line) == 64)
    finally:
        assert observer is not None
        observer.stop()
    assert observer.scans > 10
    assert observer.most <= capacity
    assert acknowledged
    # What follows proves that the source files are not needed any more.
    for path in (world.root / "in").iterdir():
        path.unlink()
    with world.pool(hosts, capacity, retry=FAST) as cm:
        if down is not None:
            for sha256 in acknowledged:
                assert cm.on_cache(sha256) or down != "all"
        for host in away:
            host.with_suffix(".away").rename(host)
        result = cm.cloud_sync()
        assert (result.waiting, result.errors) == (0, ())
        assert cm.used_space() == world.cached_bytes()
        for finding in cm.cache.check():
            raise AssertionError(finding)
        cm.cache.clear()
        target = world.root / "target"
        for sha256 in acknowledged:
            assert cm.exists(sha256)
            assert all((host / sha256[:2] / sha256).exists() for host in hosts)
            assert cm.download(sha256, target) == target
            assert sha(target.read_bytes()) == sha256


def _kill_downloads(world: World, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    hosts = _hosts(world)
    _fill(world, rng, 0)
    (world.root / "in" / "0-large").unlink()
    with world.pool(hosts, CAPACITY) as cm:
        assert all(r.hash for r in cm.upload_many((world.root / "in").iterdir()))
    observer = _Observer(world.storage)
    observer.start()
    try:
        for turn in range(kills):
            children = [_start(_DOWNLOADER, world.root, CAPACITY, 2 * turn + n) for n in range(2)]
            for child in children:
                said = _kill_after(child, rng.choice([1, 5, 20]), rng.uniform(0, 0.05))
                assert said[0] == "ready"
                assert set(said[1:]) <= {"right"}
    finally:
        observer.stop()
    assert observer.most <= CAPACITY
    with world.pool(hosts, CAPACITY) as cm:
        assert cm.used_space() == world.cached_bytes()
        for finding in cm.cache.check():
            raise AssertionError(finding)
        for file in cm.files():
            path = cm.download(file.hash)
            assert isinstance(path, Path)
            assert sha(path.read_bytes()) == file.hash


@pytest.mark.parametrize("down", [None, "one", "all"])
def test_killed_uploads_lose_nothing_that_was_acknowledged(world: World, down: str | None) -> None:
    _kill_uploads(world, 3 if down is None else 2, 1, down=down)


def test_killed_downloads_leave_a_whole_cache_within_its_capacity(world: World) -> None:
    _kill_downloads(world, 2, 2)


@pytest.mark.long
@pytest.mark.parametrize("down", [None, "one", "all"])
def test_fifty_killed_uploads_lose_nothing_that_was_acknowledged(
    world: World, down: str | None
) -> None:
    _kill_uploads(world, 50, _seed(), down=down)


@pytest.mark.long
def test_fifty_killed_downloads_leave_a_whole_cache_within_its_capacity(world: World) -> None:
    _kill_downloads(world, 25, _seed())


def _seed() -> int:
    seed = int(os.environ.get("CLOUDMANAGER_TEST_SEED") or random.randrange(10**6))
    print(f"CLOUDMANAGER_TEST_SEED={seed}")
    return seed


def test_two_processes_that_start_at_once_on_an_empty_directory_both_work(world: World) -> None:
    rng = random.Random(3)
    _hosts(world)
    _fill(world, rng, 0)
    contents = {sha(path.read_bytes()) for path in (world.root / "in").iterdir()}
    children = [_start(_UPLOADER, world.root, CAPACITY) for _ in range(3)]
    for child in children:
        with child:
            assert child.stdout is not None
            said = child.stdout.read().split()
        assert child.returncode == 0
        assert said[-1] == "done"
        assert set(said[1:-1]) == contents
