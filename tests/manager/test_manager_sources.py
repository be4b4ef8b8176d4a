"""Bad and unusual input: odd names, special files, files that change, disks that are full."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable

import pytest
from manager.world import World, content, sha

from cloudmanager.errors import NotARegularFile, SourceChanged
from cloudmanager.model import UploadRecord

MIB = 1024 * 1024

ODD_NAMES = [
    b"two\nlines",
    b"tab\tand\r",
    b"not \xff\xfe utf-8",
    "grüße 🎈".encode(),
    b"-o",
    b"quote\"and'apostrophe",
    b" ",
    b"...",
    b"x" * 255,
]


def _run(program: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_of_any_bytes_comes_back_as_it_was(world: World, name: bytes) -> None:
    folder = os.fsencode(world.root / "odd")
    os.mkdir(folder)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(b"odd")
    path = os.fsdecode(os.path.join(folder, name))
    with world.pool([world.folder("one")]) as cm:
        assert cm.upload(path) == sha(b"odd")
        info = cm.info(sha(b"odd"))
        assert info is not None
        assert os.fsencode(info.file.name) == name
        target = world.root / "target"
        target.mkdir()
        back = cm.download(sha(b"odd"), target)
        assert back
        assert os.listdir(os.fsencode(target)) == [name]
        assert back.read_bytes() == b"odd"


def test_a_name_of_any_bytes_survives_the_loss_of_the_catalog(world: World) -> None:
    name = os.fsdecode(b"two\nlines \xff")
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(b"odd", name))
    world.database.unlink()
    with world.pool([world.folder("one")]) as cm:
        cm.rebuild()
        info = cm.info(sha(b"odd"))
        assert info is not None
        assert info.file.name == name


@pytest.fixture
def special(world: World) -> Callable[[str], str]:
    def make(kind: str) -> str:
        path = str(world.root / kind)
        if kind == "directory":
            os.mkdir(path)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                folder = os.getcwd()
                os.chdir(world.root)  # the path of a socket is limited to some 100 bytes
                try:
                    server.bind(kind)
                finally:
                    os.chdir(folder)
        elif kind == "device":
            path = "/dev/zero"
        elif kind == "link to a directory":
            os.symlink(world.root, path)
        return path

    return make


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "link to a directory"])
def test_what_is_not_a_regular_file_is_refused_at_once(
    world: World, special: Callable[[str], str], kind: str
) -> None:
    path = special(kind)
    with world.pool([world.folder("one")]) as cm:
        with pytest.raises(NotARegularFile):
            cm.upload(path)
        (result,) = cm.upload_many([path])
        assert result.hash is False
        assert isinstance(result.error, NotARegularFile)
        assert cm.totals() == (0, 0)
        assert cm.used_space() == 0


def test_a_missing_file_and_a_dangling_link_raise_file_not_found(world: World) -> None:
    link = world.root / "dangling"
    link.symlink_to("nowhere")
    with world.pool([world.folder("one")]) as cm:
        for path in (world.root / "missing", link):
            with pytest.raises(FileNotFoundError):
                cm.upload(path)
        assert cm.totals() == (0, 0)


# Root reads and writes everything, so a child gives up its rights. It has imported all it needs
# by then: the interpreter itself may lie where only root can read.
_AS_NOBODY = """
import os, pathlib, tempfile
from cloudmanager import CloudManager
from cloudmanager.errors import CacheUnusable

def pool(root):
    (root / "host").mkdir(exist_ok=True)
    os.environ["HOME"] = str(root)
    return CloudManager(root / "db", root / "storage", "64MiB", [root / "host"])

with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    (root / "file").write_bytes(b"warm")
    with pool(root) as cm:
        list(cm.upload_many([root / "file", root / "missing"]))
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
"""


def test_an_unreadable_file_raises_permission_error_and_leaves_nothing() -> None:
    done = _run(
        _AS_NOBODY
        + """
with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    small, large = root / "small", root / "large"
    small.write_bytes(b"secret")
    large.write_bytes(b"secret" * 1000000)
    small.chmod(0)
    large.chmod(0)
    with pool(root) as cm:
        for path in (small, large):
            try:
                print(cm.upload(path))
            except PermissionError:
                print("refused")
        results = list(cm.upload_many([small, large]))
        print([type(r.error).__name__ for r in results], cm.used_space(), cm.totals())
"""
    )
    assert done.stdout.splitlines() == [
        "refused",
        "refused",
        "['PermissionError', 'PermissionError'] 0 (0, 0)",
    ], done.stderr


def test_a_read_only_cache_directory_is_a_clear_error() -> None:
    done = _run(
        _AS_NOBODY
        + """
with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    (root / "storage").mkdir()
    (root / "storage").chmod(0o555)
    try:
        pool(root)
    except CacheUnusable as exc:
        print(str(root / "storage") in str(exc), chr(10) in str(exc))
"""
    )
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("capacity", ["256MiB", "4MiB"])
def test_a_large_file_that_changes_while_it_is_read_is_refused_or_right(
    world: World, capacity: str
) -> None:
    one = world.folder("one")
    path = world.file(content(1, 24 * MIB))
    stop = threading.Event()

    def rewrite() -> None:
        seed = 100
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                for offset in range(0, 24 * MIB, 2 * MIB):
                    file.seek(offset)
                    file.write(content(seed, 4096))
                seed += 1

    with world.pool([one], capacity) as cm:
        writer = threading.Thread(target=rewrite)
        writer.start()
        outcomes: list[object] = []
        try:
            while None not in outcomes:  # whether one upload meets a write is up to the scheduler
                try:
                    outcomes.append(cm.upload(path))
                except SourceChanged as exc:
                    assert str(path) in str(exc)  # noqa: PT017 - both outcomes are right
                    outcomes.append(None)
        finally:
            stop.set()
            writer.join()
        if capacity == "4MiB":
            assert cm.used_space() == 0
    for name in one.objects():
        assert sha(one.path(name).read_bytes()) == name
    for name in (world.storage / "objects").rglob("*"):
        if name.is_file():
            assert sha(name.read_bytes()) == name.name


@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_file_that_grows_between_looking_and_reading_is_never_stored_under_a_wrong_hash(
    world: World, size: int
) -> None:
    one = world.folder("one")
    path = world.file(b"x" * size)
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < size + 4 * MIB:
                file.write(b"y" * 100)

    with world.pool([one], "1GiB") as cm:
        writer = threading.Thread(target=append)
        writer.start()
        try:
            for _ in range(10):
                with contextlib.suppress(SourceChanged):  # both outcomes are right
                    cm.upload(path)
        finally:
            stop.set()
            writer.join()
        whole = path.read_bytes()
        assert cm.upload(path) == sha(whole)
    for name in one.objects():
        stored = one.path(name).read_bytes()
        assert sha(stored) == name
        assert whole.startswith(stored)


def test_a_file_that_changes_between_its_two_readings_is_refused_and_not_stored(
    world: World,
) -> None:
    """The file bypasses the cache, and changes without a trace in size and time."""
    one = world.folder("one")
    data = content(2, 3 * MIB)
    path = world.file(data)

    def change(operation: str, _what: str) -> None:
        if operation == "put":
            before = path.stat()
            with path.open("r+b") as file:
                file.seek(2 * MIB)
                file.write(b"changed")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    one.before = change
    with world.pool([one], "1MiB") as cm:
        with pytest.raises(SourceChanged):
            cm.upload(path)
        assert cm.totals() == (0, 0)
        assert cm.sync_status().copies == 0
    assert one.objects() == []


@pytest.mark.parametrize("size", [600_000, 3 * MIB])
def test_a_file_is_stored_though_the_disk_under_the_cache_is_full(world: World, size: int) -> None:
    """A limit on the size of written files stands for the full disk; the host is elsewhere."""
    data = content(3, size)
    source = world.file(data)
    done = _run(
        """
        import hashlib, pathlib, resource, signal, sys
        from cloudmanager import CloudManager
        from cloudmanager.hosts.folder import FolderHost
        from cloudmanager.model import ObjectInfo, pool_key

        class Elsewhere(FolderHost):
            def put(self, key, source, *, sha256, filename=None, on_bytes=None):
                data = source.read()
                self.seen = hashlib.sha256(data).hexdigest()
                return ObjectInfo(self.location(key), key, len(data))

        root, source = map(pathlib.Path, sys.argv[1:])
        (root / "host").mkdir()
        host = Elsewhere("host", root / "host")
        cm = CloudManager(root / "db", root / "storage", "64MiB", [host])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        answer = cm.upload(source)
        print(answer, host.seen, cm.on_cache(answer), cm.used_space())
        cm.close()
        """,
        world.root,
        source,
    )
    assert done.stdout.split() == [sha(data), sha(data), "False", "0"], done.stderr


@pytest.mark.parametrize("size", [600_000, 3 * MIB])
def test_upload_is_false_when_no_host_is_up_and_the_disk_under_the_cache_is_full(
    world: World, size: int
) -> None:
    source = world.file(content(4, size))
    done = _run(
        """
        import pathlib, resource, signal, sys
        from cloudmanager import CloudManager
        root, source = map(pathlib.Path, sys.argv[1:])
        cm = CloudManager(root / "db", root / "storage", "64MiB", [root / "not-mounted"])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
        print(cm.upload(source), cm.totals(), cm.used_space(), cm.sync_status().copies)
        cm.close()
        """,
        world.root,
        source,
    )
    assert done.stdout.strip() == "False (0, 0) 0 0", done.stderr


def test_a_download_to_a_file_works_though_the_disk_under_the_cache_is_full(
    world: World,
) -> None:
    data = content(5, 3 * MIB)
    with world.pool([world.folder("one")]) as cm:
        cm.upload(world.file(data))
    done = _run(
        """
        import errno, os, pathlib, sys
        from cloudmanager import CloudManager
        root, sha256 = pathlib.Path(sys.argv[1]), sys.argv[2]
        cm = CloudManager(root / "catalog.sqlite3", root / "new", "64MiB", [root / "one"])
        full = str(root / "new" / "tmp")

        def no_room(event, args):
            if event == "open" and str(args[0]).startswith(full):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])

        sys.addaudithook(no_room)
        target = cm.download(sha256, root / "target")
        print(target == root / "target", cm.used_space())
        cm.close()
        """,
        world.root,
        sha(data),
    )
    assert done.stdout.split() == ["True", "0"], done.stderr
    assert (world.root / "target").read_bytes() == data


# Not `ru_maxrss` on Linux: a child inherits there the peak of the process that started it.
_PEAK = """
        import resource, sys
        def peak():
            if sys.platform == "darwin":
                return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with open("/proc/self/status") as status:
                return 1024 * int(next(l for l in status if l.startswith("VmHWM")).split()[1])
"""


def test_memory_stays_bounded_while_a_huge_file_goes_straight_to_a_host(world: World) -> None:
    assert _peak_while_uploading(world, 512 * MIB, "64MiB") <= 200 * MIB


@pytest.mark.long
@pytest.mark.parametrize("capacity", ["1GiB", "12GiB"])
def test_memory_stays_below_200_mib_for_10_gib(world: World, capacity: str) -> None:
    disk = os.statvfs(world.root)
    size = 10 * 1024 * MIB
    if capacity == "12GiB" and disk.f_bavail * disk.f_frsize < 2 * size:
        size = disk.f_bavail * disk.f_frsize // 3
    assert _peak_while_uploading(world, size, capacity) <= 200 * MIB


def _peak_while_uploading(world: World, size: int, capacity: str) -> int:
    """Peak resident bytes of a process that uploads a sparse file to a host that discards it."""
    source = world.root / "sparse"
    with source.open("wb") as file:
        file.truncate(size)
    done = _run(
        _PEAK
        + """
        import pathlib, sys
        from cloudmanager import CloudManager
        from cloudmanager.hosts.folder import FolderHost
        from cloudmanager.model import ObjectInfo
        from cloudmanager.source import HashedReader

        class Sink(FolderHost):
            def put(self, key, source, *, sha256, filename=None, on_bytes=None):
                reader = source.open() if source.trusted else HashedReader(source, sha256)
                size = 0
                with reader:
                    while data := reader.read(1 << 20):
                        size += len(data)
                return ObjectInfo(self.location(key), key, size)

        root, source = map(pathlib.Path, sys.argv[1:3])
        hosts = [Sink("one", root / "one"), Sink("two", root / "two")]
        with CloudManager(root / "db", root / "storage", sys.argv[3], hosts) as cm:
            assert cm.upload(source)
        print(peak())
        """,
        world.root,
        source,
        capacity,
    )
    source.unlink()
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_does_not_grow_with_the_number_of_files(world: World) -> None:
    done = _run(
        _PEAK
        + """
        import pathlib, sys
        from cloudmanager import CloudManager
        root = pathlib.Path(sys.argv[1])
        (root / "one").mkdir()
        (root / "in").mkdir()
        def paths(first, count):
            for n in range(first, first + count):
                path = root / "in" / str(n)
                path.write_bytes(b"%d" % n)
                yield path
        with CloudManager(root / "db", root / "storage", "64KiB", [root / "one"]) as cm:
            assert all(r.hash for r in cm.upload_many(paths(0, 300)))
            before = peak()
            assert all(r.hash for r in cm.upload_many(paths(300, 1000)))
            after = peak()
        print(after - before)
        """,
        world.root,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * MIB


def test_a_queued_copy_never_carries_a_location(world: World) -> None:
    one = world.folder("one")
    one.down = True
    with world.pool([one]) as cm:
        cm.upload(world.file(b"waits"))
        info = cm.info(sha(b"waits"))
        assert info is not None
        (upload,) = info.uploads
        assert isinstance(upload, UploadRecord)
        assert (upload.status, upload.location) == ("queued", "")
