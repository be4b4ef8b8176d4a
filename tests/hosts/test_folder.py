"""The folder host, arranged and inspected behind its back."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostFull,
    ObjectNotFound,
    SourceChanged,
    Unsupported,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.source import BytesSource, FileSource


@pytest.fixture
def host(tmp_path: Path) -> FolderHost:
    (tmp_path / "root").mkdir()
    return FolderHost("folder", tmp_path / "root")


def put(host: FolderHost, key: str, data: bytes, **more: str) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    return host.put(key, BytesSource(data), sha256=sha256, **more).location


def test_what_is_put_lies_in_the_folder_whole_and_read_only(host: FolderHost) -> None:
    info = host.put("6f/abc", BytesSource(b"hello"), sha256="x", filename="a name.txt")
    path = host.root / "6f" / "abc"
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o444
    assert (info.location, info.key, info.size) == (path.as_uri(), "6f/abc", 5)
    assert os.listdir(host.root / ".cloudmanager-tmp") == []


def test_a_file_put_behind_its_back_is_read(host: FolderHost) -> None:
    (host.root / "dir").mkdir()
    (host.root / "dir" / "x").write_bytes(b"0123456789")
    location = host.location("dir/x")
    assert b"".join(host.get(location)) == b"0123456789"
    assert b"".join(host.get(location, offset=3, length=4)) == b"3456"
    assert b"".join(host.get(location, offset=8, length=9)) == b"89"
    assert b"".join(host.get(location, offset=50)) == b""
    assert host.stat(location).size == 10


def test_the_original_name_is_remembered_where_the_file_system_can(host: FolderHost) -> None:
    location = put(host, "6f/n", b"x", filename="n\udcff\nm")
    try:
        os.getxattr(host.root / "6f" / "n", "user.cloudmanager.name")
        expected: str | None = "n\udcff\nm"
    except OSError:
        expected = None
    assert host.stat(location).filename == expected


def test_an_object_is_replaced_in_one_step(host: FolderHost) -> None:
    location = put(host, "k", b"old")
    assert put(host, "k", b"new!") == location
    assert b"".join(host.get(location)) == b"new!"


def test_a_reader_of_the_old_object_keeps_it(host: FolderHost) -> None:
    data = os.urandom(3_000_000)
    location = put(host, "k", data)
    reading = host.get(location)
    first = next(reading)
    put(host, "k", b"new")
    assert first + b"".join(reading) == data


def test_a_source_with_another_hash_leaves_nothing(host: FolderHost, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * 2_000_000)
    with pytest.raises(SourceChanged):
        host.put("k", FileSource(file), sha256="0" * 64)
    assert list(host.list()) == []
    assert os.listdir(host.root / ".cloudmanager-tmp") == []


def test_what_is_missing_raises_object_not_found(host: FolderHost) -> None:
    location = host.location("no/thing")
    with pytest.raises(ObjectNotFound) as caught:
        host.stat(location)
    assert (caught.value.host, caught.value.operation) == ("folder", "stat")
    assert caught.value.location == location
    assert not caught.value.retryable
    with pytest.raises(ObjectNotFound):
        next(host.get(location))


def test_deleting_is_idempotent(host: FolderHost) -> None:
    location = put(host, "a/b", b"x")
    host.delete([location, host.location("never"), host.location("a/b/c")])
    host.delete([location])
    assert list(host.list()) == []


def test_a_folder_that_is_not_there_is_never_an_empty_host(tmp_path: Path) -> None:
    host = FolderHost("gone", tmp_path / "not mounted")
    calls = [
        lambda: list(host.list()),
        host.check,
        lambda: host.stat(host.location("k")),
        lambda: next(host.get(host.location("k"))),
        lambda: host.delete([host.location("k")]),
        lambda: put(host, "k", b"x"),
    ]
    for call in calls:
        with pytest.raises(ContainerNotFound):
            call()
    assert not (tmp_path / "not mounted").exists()


def test_the_embedded_default_makes_its_folder(tmp_path: Path) -> None:
    host = open_host(str(tmp_path / "a" / "b"), {"create": True})
    host.check()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "b", "a.txt", "a-", "ä", "A", "a0"]), min_size=1, max_size=3
        ),
        max_size=12,
    ),
    st.sampled_from(["", "a", "a/", "a/b", "ä", "zz"]),
    st.sampled_from(["", "a", "a/a", "a.txt", "b/a"]),
)
@settings(max_examples=60, deadline=None)
def test_listing_is_ascending_by_the_bytes_of_the_key(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], prefix: str, after: str
) -> None:
    root = tmp_path_factory.mktemp("list")
    host = FolderHost("f", root)
    keys = set()
    for names in parts:
        path = root.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"x")
                keys.add("/".join(names))
        except (FileExistsError, NotADirectoryError):
            continue
    wanted = sorted(
        (k for k in keys if k.startswith(prefix) and k.encode() > after.encode()), key=str.encode
    )
    assert [info.key for info in host.list(prefix, after=after)] == wanted


def test_links_and_unfinished_files_are_not_listed(host: FolderHost, tmp_path: Path) -> None:
    put(host, "real", b"x")
    (host.root / "link").symlink_to(tmp_path)
    (host.root / ".cloudmanager-tmp" / "left").write_bytes(b"half")
    os.mkfifo(host.root / "fifo")
    assert [info.key for info in host.list()] == ["real"]


def test_unfinished_files_are_cleaned_when_they_are_old_enough(host: FolderHost) -> None:
    put(host, "real", b"x")
    left = host.root / ".cloudmanager-tmp" / "left"
    left.write_bytes(b"half")
    assert list(host.clean(older_than=timedelta(hours=1))) == []
    os.utime(left, (0, 0))
    assert len(list(host.clean(older_than=timedelta(hours=1)))) == 1
    assert not left.exists()


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/x", "a//b", ".", "", "a\0b", ".cloudmanager-tmp/x"]
)
def test_a_key_cannot_leave_the_folder(host: FolderHost, key: str) -> None:
    with pytest.raises(HostError, match="cannot be a file name"):
        put(host, key, b"x")


def test_it_owns_only_what_lies_below_it(host: FolderHost, tmp_path: Path) -> None:
    assert host.owns(host.location("a b/ü\udcff#?%"))
    for location in (
        f"file://{tmp_path}/other/x",
        f"file://{host.root}-2/x",
        f"file://{host.root}/../x",
        f"file://{host.root}",
        f"file://elsewhere{host.root}/x",
        f"file://{host.root}/a?b",
        "s3://bucket/x",
        "",
    ):
        assert not host.owns(location), location


def test_keys_with_any_character_come_back(host: FolderHost) -> None:
    key = "a b/ü%41#?&+\udcff\n"
    location = put(host, key, b"x")
    assert location.isascii()
    assert b"".join(host.get(location)) == b"x"
    assert [info.key for info in host.list()] == [key]


def test_signed_links_are_unsupported_before_any_io(tmp_path: Path) -> None:
    host = FolderHost("gone", tmp_path / "nothing")
    with pytest.raises(Unsupported):
        host.signed_url(host.location("k"), expires=timedelta(hours=1))


def test_an_unknown_option_or_a_remote_file_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown option speed"):
        open_host(str(tmp_path), {"speed": 1})
    with pytest.raises(ConfigurationError, match="not a local folder"):
        open_host("file://server/share")


FULL_DISK = """
import resource, signal, sys
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.source import BytesSource
from cloudmanager.errors import HostFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FolderHost("f", sys.argv[1]).put("k", BytesSource(b"x" * 200_000), sha256="")
except HostFull as exc:
    print(exc)
"""


def test_a_full_disk_is_said_and_leaves_nothing(host: FolderHost) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(host.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "free some space" in done.stdout
    assert issubclass(HostFull, HostError)
    assert list(host.list()) == []
    assert os.listdir(host.root / ".cloudmanager-tmp") == []


NOT_ALLOWED = """
import os, sys
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.source import BytesSource
from cloudmanager.errors import AccessDenied
if os.getuid() == 0:
    os.setuid(65534)
for call in (
    lambda h: h.put("k", BytesSource(b"x"), sha256=""),
    lambda h: h.check(),
):
    try:
        call(FolderHost("f", sys.argv[1]))
    except AccessDenied as exc:
        print(exc)
"""


def test_a_folder_that_may_not_be_written_is_access_denied(
    host: FolderHost, tmp_path: Path
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if os.stat(folder).st_uid == os.getuid() and folder != Path(folder.root):
            folder.chmod(folder.stat().st_mode | 0o055)
    host.root.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", NOT_ALLOWED, str(host.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("check the folder's owner and mode") == 2
    assert issubclass(AccessDenied, HostError)


def test_many_threads_put_the_same_and_different_objects(host: FolderHost) -> None:
    data = {f"{n:02x}/{n}": os.urandom(50_000) for n in range(8)}
    errors: list[Exception] = []

    def work() -> None:
        try:
            for key, content in data.items():
                location = put(host, key, content)
                assert b"".join(host.get(location)) == content
        except Exception as exc:  # noqa: BLE001 - shown by the assertion below
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert {info.key: (host.root / info.key).read_bytes() for info in host.list()} == data


def test_a_folder_removed_under_way_is_made_again(host: FolderHost) -> None:
    host.delete([put(host, "6f/a", b"x")])
    (host.root / "6f").rmdir()
    put(host, "6f/b", b"y")
    assert [info.key for info in host.list()] == ["6f/b"]


def test_a_root_that_two_make_at_once_is_there_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "new"
    host = open_host(str(root), {"create": True}, name="new")
    is_dir = Path.is_dir

    def just_before_the_other_made_it(path: Path) -> bool:
        if path == root:
            monkeypatch.setattr(Path, "is_dir", is_dir)
            root.mkdir()
            return False
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", just_before_the_other_made_it)
    host.check()


def test_a_file_in_the_place_of_the_root_is_told(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(ContainerNotFound, match="there is no folder"):
        open_host(str(tmp_path / "new"), {"create": True}, name="new").check()
