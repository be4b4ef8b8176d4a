"""The command host with stand-ins that speak exactly plowshare's syntax, well behaved and not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import re
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from manager.world import FAST, World

from cloudmanager.errors import (
    ConfigurationError,
    HostError,
    HostUnavailable,
    NoGoodCopy,
    ObjectNotFound,
    SourceChanged,
    Unsupported,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.command import CommandHost
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.model import Capabilities, pool_key
from cloudmanager.retry import Retrier
from cloudmanager.source import BytesSource, FileSource, StreamSource

DATA = random.Random(1).randbytes(700_000)
SHA = hashlib.sha256(DATA).hexdigest()
KEY = pool_key(SHA)
URL = "https://locker.example/file/"

# plowup [OPTIONS] MODULE FILE: progress on stderr, then "#DEL url" and the url on stdout.
PLOWUP = """
    parser = argparse.ArgumentParser()
    parser.add_argument("--name")
    parser.add_argument("-q", action="store_true")
    parser.add_argument("module")
    parser.add_argument("file")
    args = parser.parse_args()
    if args.module != "locker":
        sys.exit("plowup: unknown module " + args.module)
    for number in map(str, range(1000)):
        place = os.path.join(LOCKER, number)
        try:
            os.mkdir(place)
        except FileExistsError:
            continue
        break
    name = args.name or os.path.basename(args.file)
    shutil.copyfile(args.file, os.path.join(place, name))
    print("Starting upload (" + args.module + "): " + name, file=sys.stderr)
    print("#DEL https://locker.example/remove/" + number)
    print("https://locker.example/file/" + number)
"""
# plowdown [OPTIONS] URL, here with -o DIR: the file under its name, the name on stdout.
PLOWDOWN = """
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", default=".")
    parser.add_argument("url")
    args = parser.parse_args()
    place = os.path.join(LOCKER, args.url.rpartition("/")[2])
    if not os.path.isdir(place):
        sys.exit(13)
    (name,) = os.listdir(place)
    shutil.copyfile(os.path.join(place, name), os.path.join(args.o, name))
    print(name)
"""
PLOWDEL = """
    place = os.path.join(LOCKER, sys.argv[1].rpartition("/")[2])
    if not os.path.isdir(place):
        sys.exit(13)
    shutil.rmtree(place)
"""
# plowprobe --printf %s URL: the size, where the module can tell.
PLOWPROBE = """
    assert sys.argv[1:3] == ["--printf", "%s%n"], sys.argv
    place = os.path.join(LOCKER, sys.argv[3].rpartition("/")[2])
    if not os.path.isdir(place):
        sys.exit(13)
    (name,) = os.listdir(place)
    print(os.path.getsize(os.path.join(place, name)))
"""

MakeHost = Callable[..., CommandHost]


class Programs:
    """A folder of stand-in programs, and the locker that they share."""

    def __init__(self, root: Path) -> None:
        self.root = root / "programs"
        self.locker = root / "locker"
        self.root.mkdir()
        self.locker.mkdir()
        for name, body in (
            ("plowup", PLOWUP),
            ("plowdown", PLOWDOWN),
            ("plowdel", PLOWDEL),
            ("plowprobe", PLOWPROBE),
        ):
            self.write(name, body)

    def write(self, name: str, body: str) -> Path:
        path = self.root / name
        head = "import argparse, fcntl, os, shutil, signal, subprocess, sys"
        path.write_text(
            f"#!{sys.executable} -IS\n{head}\nLOCKER = os.environ.get('LOCKER')\n"
            f"{textwrap.dedent(body)}"
        )
        path.chmod(0o755)
        return path

    def stored(self) -> dict[str, bytes]:
        """The names and bytes in the locker."""
        return {path.name: path.read_bytes() for path in self.locker.glob("*/*")}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path)
    monkeypatch.setenv("PATH", f"{made.root}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    monkeypatch.setenv("LOCKER", str(made.locker))
    return made


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files; whatever happens in a test, nothing may stay in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def plow(**options: Any) -> CommandHost:
    """A host of plowshare's programs, with some options changed."""
    merged: dict[str, Any] = {
        "put": "plowup locker {path}",
        "get": "plowdown {url} -o {dir}",
        "delete": "plowdel {url}",
        "owns": URL,
        "missing_codes": [13],
        **options,
    }
    host = open_host("command:", merged, name="locker")
    assert isinstance(host, CommandHost)
    return host


def put(host: CommandHost, data: bytes = DATA, filename: str | None = "a.bin") -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    info = host.put(pool_key(sha256), BytesSource(data), sha256=sha256, filename=filename)
    assert info.size == len(data)
    return info.location


# -- what it is for ------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "large"])
def test_what_was_put_comes_back_and_can_be_deleted(programs: Programs, data: bytes) -> None:
    host = plow()
    host.check()
    location = put(host, data)
    assert location == URL + "0"
    assert host.owns(location)
    assert b"".join(host.get(location)) == data
    assert programs.stored() == {"a.bin": data}
    host.delete([location])
    host.delete([location])  # plowdel's 13, a dead link
    assert programs.stored() == {}
    for read in (lambda: next(host.get(location)), lambda: host.stat(location)):
        with pytest.raises(ObjectNotFound, match="exit code 13"):
            read()


def test_a_pool_stores_reads_confirms_and_removes_with_programs_alone(
    programs: Programs, tmp_path: Path
) -> None:
    world = World(tmp_path)
    data = random.Random(2).randbytes(3_000_000)
    sha256 = hashlib.sha256(data).hexdigest()
    path = world.file(data, "my holiday.mov")
    try:
        with world.pool([plow()], retry=FAST) as cm:
            assert cm.upload(path) == sha256
            assert cm.upload(path) == sha256
            assert programs.stored() == {"my holiday.mov": data}
        with world.pool([plow()], storage=tmp_path / "elsewhere", retry=FAST) as cm:
            target = cm.download(sha256, tmp_path / "back")
            assert isinstance(target, Path)
            assert target.read_bytes() == data
            assert cm.remove(sha256) is True
            assert programs.stored() == {}
            assert not cm.exists(sha256)
    finally:
        world.close()


def test_many_files_at_once_keep_their_names_and_bytes(programs: Programs, tmp_path: Path) -> None:
    world = World(tmp_path)
    files = {f"file {n}": random.Random(n).randbytes(5000 + n) for n in range(12)}
    try:
        paths = [world.file(data, name) for name, data in files.items()]
        with world.pool([plow()], retry=FAST) as cm:
            assert all(result.error is None for result in cm.upload_many(paths))
        assert programs.stored() == files
        with world.pool([plow()], storage=tmp_path / "elsewhere", retry=FAST) as cm:
            for name, data in files.items():
                target = cm.fetch(hashlib.sha256(data).hexdigest(), tmp_path / name)
                assert target.read_bytes() == data
    finally:
        world.close()


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: b"?" + data[1:]])
def test_a_truncated_or_altered_download_never_gets_through_the_pool(
    programs: Programs, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    world = World(tmp_path)
    try:
        with world.pool([plow()], retry=FAST) as cm:
            cm.upload(world.file(DATA, "a.bin"))
        (programs.locker / "0" / "a.bin").write_bytes(harm(DATA))
        with world.pool([plow()], storage=tmp_path / "elsewhere", retry=FAST) as cm:
            with pytest.raises(NoGoodCopy) as caught:
                cm.fetch(SHA, tmp_path / "back")
            assert caught.value.wrong
            assert not (tmp_path / "back").exists()
    finally:
        world.close()


@pytest.mark.usefixtures("programs")
def test_without_a_program_for_it_stat_reads_the_object_and_tells_its_hash() -> None:
    host = plow()
    info = host.stat(put(host))
    assert info.size == len(DATA)
    assert info.checksum is not None
    assert (info.checksum.kind, info.checksum.value) == ("sha256", SHA)


def test_stat_believes_the_program_for_it_and_reads_when_that_prints_no_size(
    programs: Programs,
) -> None:
    host = plow(stat="plowprobe --printf %s%n {url}")
    location = put(host)
    info = host.stat(location)
    assert (info.size, info.checksum) == (len(DATA), None)
    with pytest.raises(ObjectNotFound):
        host.stat(URL + "99")
    programs.write("plowprobe", "print('unknown')")
    assert host.stat(location).checksum is not None


def test_a_get_without_a_place_is_read_from_standard_output_and_a_put_fed_on_standard_input(
    programs: Programs,
) -> None:
    programs.write(
        "store",
        """
        with open(os.path.join(LOCKER, sys.argv[1]), "xb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        print("https://locker.example/file/" + sys.argv[1])
        """,
    )
    host = plow(put="store {sha256}", get=["fetch", "{url}"])
    location = put(host)
    assert location == URL + SHA
    assert (programs.locker / SHA).read_bytes() == DATA
    programs.write(
        "fetch",
        "with open(LOCKER + '/' + sys.argv[1][-64:], 'rb') as file:\n"
        "    shutil.copyfileobj(file, sys.stdout.buffer)",
    )
    assert b"".join(host.get(location)) == DATA


def test_a_get_with_a_path_reads_the_file_that_appears_there(programs: Programs) -> None:
    programs.write(
        "fetch",
        "assert not os.path.exists(sys.argv[2])\nopen(sys.argv[2], 'wb').write(b'seen')",
    )
    assert b"".join(plow(get="fetch {url} {path}").get(URL + "0")) == b"seen"


def test_all_the_placeholders_of_put_are_filled(programs: Programs) -> None:
    programs.write(
        "store",
        "print(*sys.argv[1:], sep='\\n', file=open(LOCKER + '/said', 'w'))\n"
        "print('https://locker.example/file/1')",
    )
    host = plow(put="store --size={size} {key} '{sha256} {{}}' --name {name} {path}")
    put(host)
    size, key, sha256, _, name, path = (programs.locker / "said").read_text().splitlines()
    assert (size, key, sha256, name) == (f"--size={len(DATA)}", KEY, f"{SHA} {{}}", "a.bin")
    assert path.endswith(f"/{SHA}")  # the name is told apart


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("two words.txt", "two words.txt"),
        ('it\'s "quoted" `x` $(touch y) ; & | > *.txt', None),
        ("{url} {sha256} {}", None),
        ("-rf", "_rf"),
        ("--help", "_-help"),
        ("a\nhttps://locker.example/file/evil\n", "a_https:__locker.example_file_evil_"),
        ("../../x", ".._.._x"),
        ("..", SHA),
        ("", SHA),
        (None, SHA),
        (os.fsdecode(b"caf\xe9 \xc3\xa9"), None),
        ("ü" * 140 + ".jpeg", "ü" * 125 + ".jpeg"),
    ],
)
@pytest.mark.parametrize("template", ["plowup locker {path}", "plowup --name {name} locker {path}"])
def test_a_name_is_one_argument_and_nothing_but_a_name(
    programs: Programs, template: str, name: str | None, stored: str | None
) -> None:
    host = plow(put=template)
    location = put(host, filename=name)
    assert location == URL + "0"
    assert programs.stored() == {stored or name: DATA}
    assert b"".join(host.get(location)) == DATA


# -- what the bytes come from ------------------------------------------------------------------


def test_an_untrusted_file_that_changed_is_not_shown_to_the_program(
    programs: Programs, tmp_path: Path
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(SourceChanged):
        plow().put(KEY, FileSource(path), sha256=SHA, filename="a")
    assert programs.stored() == {}


def test_a_program_is_given_a_copy_of_a_file_that_may_change(
    programs: Programs, tmp_path: Path
) -> None:
    path = tmp_path / "mine"
    path.write_bytes(DATA)
    programs.write(
        "plowup",
        f"open({str(path)!r}, 'r+b').write(b'changed under the upload')\n{textwrap.dedent(PLOWUP)}",
    )
    plow().put(KEY, FileSource(path), sha256=SHA, filename="a")
    assert programs.stored() == {"a": DATA}
    assert path.read_bytes() != DATA


def test_a_file_of_the_cache_is_linked_and_stays_when_the_program_removes_its_own(
    programs: Programs, tmp_path: Path
) -> None:
    path = tmp_path / "cached"
    path.write_bytes(DATA)
    programs.write(
        "plowup",
        "open(LOCKER + '/inode', 'w').write(str(os.stat(sys.argv[2]).st_ino))\n"
        "os.unlink(sys.argv[2])\nprint('https://locker.example/file/1')",
    )
    plow().put(KEY, FileSource(path, trusted=True), sha256=SHA, filename="a")
    assert (programs.locker / "inode").read_text() == str(path.stat().st_ino)
    assert path.read_bytes() == DATA


def test_bytes_that_come_from_another_host_are_hashed_before_a_program_sees_them(
    programs: Programs,
) -> None:
    def start(data: bytes) -> StreamSource:
        return StreamSource(
            lambda offset: iter([data[offset:]]), size=len(DATA), label="a copy elsewhere"
        )

    host = plow()
    with pytest.raises(SourceChanged, match="a copy elsewhere"):
        host.put(KEY, start(b"?" + DATA[1:]), sha256=SHA, filename="a")
    assert programs.stored() == {}
    host.put(KEY, start(DATA), sha256=SHA, filename="a")
    assert programs.stored() == {"a": DATA}


# -- what programs print -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("'https://locker.example/file/1\\nhttps://locker.example/file/2\\n'", "2"),
        ("'https://locker.example/file/1'", "1"),
        ("'\\x00\\xff junk\\n  https://locker.example/file/1 \\r\\nDone: 100%\\n'", "1"),
        ("'https://locker.example/file/1\\nsee https://locker.example/file/2 there\\n'", "1"),
        ("'https://locker.example/file/1\\n#ADM https://locker.example/file/2\\n'", "1"),
        ("'x' * 50_000_000 + '\\nhttps://locker.example/file/1\\n' + 'y\\n' * 3_000_000", "1"),
    ],
    ids=["two", "no end of line", "junk", "in a sentence", "not alone", "huge"],
)
def test_the_last_line_that_is_nothing_but_a_url_is_the_location(
    programs: Programs, printed: str, found: str
) -> None:
    programs.write("plowup", f"sys.stdout.buffer.write(({printed}).encode('latin-1'))")
    assert put(plow()) == URL + found


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "printed no line with a URL"),
        ("see https://locker.example/file/1", "printed no line with a URL"),
        ("https://locker.example/file/" + "x" * 100_000, "printed no line with a URL"),
        ("https://other.example/file/1?key=geheim", "at https://other.example that the option"),
        ("https://me:geheim@locker.example/file/1", "at https://locker.example that the option"),
        ("https://locker.example/file/../1", "at https://locker.example that the option"),
        ("file:///etc/passwd", "a URL at file:// that the option owns"),
    ],
)
def test_an_upload_without_a_url_that_is_ours_is_an_error(
    programs: Programs, printed: str, message: str
) -> None:
    programs.write("plowup", f"print({printed!r})")
    with pytest.raises(HostError, match=message) as caught:
        put(plow())
    assert not caught.value.retryable
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_report_on_standard_error_neither_blocks_nor_is_kept(programs: Programs) -> None:
    programs.write(
        "plowup",
        "for _ in range(200):\n    sys.stderr.write('noise ' * 20_000 + '\\n')\n"
        "sys.exit('plowup: the last word')",
    )
    with pytest.raises(HostError, match="the last word") as caught:
        put(plow())
    assert len(str(caught.value)) < 600


# -- failing programs --------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "retryable"), [(1, False), (3, True), (75, False), (13, False)])
def test_an_exit_code_is_an_error_with_the_last_words_and_only_the_named_ones_are_retryable(
    programs: Programs, code: int, retryable: bool
) -> None:
    programs.write(
        "plowup",
        "print('https://locker.example/file/1')\n"
        f"print('first\\n\\nno\\tway:\\x1b[1m full\\n', file=sys.stderr)\nsys.exit({code})",
    )
    with pytest.raises(HostError, match=f"exit code {code}: first . no way: .1m full$") as caught:
        put(plow(retry_codes=[3]))
    assert caught.value.retryable is retryable
    assert not isinstance(caught.value, ObjectNotFound)
    assert caught.value.operation == "put"


def test_a_temporary_failure_is_tried_again_without_being_told_to(programs: Programs) -> None:
    programs.write(
        "plowup",
        "if not os.path.exists(LOCKER + '/tried'):\n"
        "    open(LOCKER + '/tried', 'w')\n    sys.exit(75)\n"
        "print('https://locker.example/file/1')",
    )
    host = RetryingHost(plow(), Retrier(FAST))
    assert host.put(KEY, BytesSource(DATA), sha256=SHA).location == URL + "1"


def test_a_program_that_somebody_kills_is_an_error_that_names_the_signal(
    programs: Programs,
) -> None:
    programs.write("plowdown", "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(HostError, match="'plowdown' was ended by SIGKILL") as caught:
        next(plow().get(URL + "1"))
    assert not caught.value.retryable


def test_a_download_that_ends_with_an_error_raises_though_bytes_came(programs: Programs) -> None:
    programs.write(
        "plowdown", "sys.stdout.write('half')\nsys.stdout.flush()\nsys.exit('reset by peer')"
    )
    blocks = plow(get="plowdown {url}").get(URL + "1")
    got = b""
    with pytest.raises(HostError, match="reset by peer"):
        for block in blocks:
            got += block
    assert got == b"half"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "left no file where one was expected"),
        ("[open(sys.argv[3] + '/' + n, 'w') for n in 'ab']", "left 2 files"),
        ("os.symlink('/etc/passwd', sys.argv[3] + '/x')", "cannot be used: .*symbolic"),
        ("os.mkfifo(sys.argv[3] + '/x')", "left is no file"),
        ("os.mkdir(sys.argv[3] + '/x')", "left is no file"),
    ],
    ids=["none", "two", "symlink", "pipe", "folder"],
)
def test_a_download_is_one_regular_file_and_nothing_else(
    programs: Programs, body: str, message: str
) -> None:
    programs.write("plowdown", body)
    with pytest.raises(HostError, match=message) as caught:
        next(plow().get(URL + "1"))
    assert not caught.value.retryable


def test_a_program_that_is_not_there_is_named_before_it_is_needed(programs: Programs) -> None:
    host = plow(put="plow-nothing {path}")
    with pytest.raises(HostError, match="no program 'plow-nothing'") as caught:
        host.check()
    with pytest.raises(HostError, match="no program 'plow-nothing'"):
        put(host)
    assert not caught.value.retryable
    (programs.root / "plowdown").chmod(0o644)
    with pytest.raises(HostError, match="no program"):
        plow().check()


def test_the_program_for_it_decides_a_check(programs: Programs) -> None:
    programs.write("plowmod", "sys.exit(int(open(LOCKER + '/code').read()))")
    host = plow(check="plowmod --status")
    (programs.locker / "code").write_text("0")
    host.check()
    (programs.locker / "code").write_text("4")
    with pytest.raises(HostError, match="check on host locker: 'plowmod' ended with exit code 4"):
        host.check()


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        "login of me:geheim1 failed",
        "GET https://x.example/a?key=geheim2 gave 403",
        "GET https://x.example/a#!geheim2 gave 403",
        "Authorization: Bearer geheim3",
        "password = geheim4",
        "https://me:geheim5@x.example/ is wrong",
        "the header was X-Key geheim6",
        "token geheim7",
    ],
)
def test_what_a_program_says_is_told_without_its_secrets(programs: Programs, said: str) -> None:
    programs.write("plowup", f"sys.exit('plowup: ' + {said!r})")
    host = plow(put="plowup -a me:geheim1 -H 'X-Key: geheim6' --token=geheim7 locker {path}")
    with pytest.raises(HostError, match="plowup: ") as caught:
        put(host)
    assert "geheim" not in str(caught.value)
    assert "***" in str(caught.value)
    assert "geheim" not in repr(host) + repr(host.options)


def test_a_key_in_a_location_is_not_shown(programs: Programs) -> None:
    programs.write("plowdown", "sys.exit(1)")
    host = plow(owns="https://locker.example/#!")
    with pytest.raises(HostError, match=r"https://locker.example/#\*\*\* on host") as caught:
        next(host.get("https://locker.example/#!id!geheim"))
    assert "geheim" not in str(caught.value)


# -- programs that hang ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", ["signal.pause()", "sys.stdout.close()\nos.close(2)\nsignal.pause()"]
)
@pytest.mark.parametrize("operation", ["put", "get"])
def test_a_program_that_shows_no_life_is_ended_and_the_host_unavailable(
    programs: Programs, operation: str, body: str
) -> None:
    programs.write("plowup", body)
    programs.write("plowdown", body)
    host = plow(time_limit=0.2)
    with pytest.raises(HostUnavailable, match=r"was ended: no sign of life for 0.2 s") as caught:
        if operation == "put":
            put(host)
        else:
            next(host.get(URL + "1"))
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, TimeoutError)


HANGS = """
    if os.environ.get("DEAF"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    def hold(name):
        file = open(os.path.join(LOCKER, name), "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file
    first = hold("first")
    reader, writer = os.pipe()
    if os.fork() == 0:
        second = hold("second")
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    open(os.path.join(LOCKER, "ready"), "w").close()
    if os.environ.get("LEAVES"):
        print("https://locker.example/file/1")
        sys.exit()
    while True:
        signal.pause()
"""


class Stopped(Exception):
    """What ends a transfer in these tests."""


@pytest.mark.parametrize("deaf", ["", "yes"])
def test_an_upload_that_is_cancelled_ends_the_program_with_all_its_children(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, deaf: str
) -> None:
    monkeypatch.setenv("DEAF", deaf)
    programs.write("plowup", HANGS)

    def on_bytes(size: int) -> None:
        assert size == 0
        if (programs.locker / "ready").exists():
            raise Stopped

    with pytest.raises(Stopped):
        plow().put(KEY, BytesSource(DATA), sha256=SHA, on_bytes=on_bytes)
    _wait_for_the_end_of_both(programs)


def test_children_that_a_program_leaves_are_ended_and_do_not_keep_us(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAVES", "yes")
    programs.write("plowup", HANGS)
    assert put(plow()) == URL + "1"
    _wait_for_the_end_of_both(programs)


def test_a_download_that_nobody_reads_on_ends_its_program(programs: Programs) -> None:
    programs.write("plowdown", "print('x', flush=True)\n" + textwrap.dedent(HANGS))
    blocks = plow(get="plowdown {url}").get(URL + "1")
    assert next(blocks) == b"x\n"
    blocks.close()  # type: ignore[attr-defined]
    for path in programs.locker.glob("*"):
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def _wait_for_the_end_of_both(programs: Programs) -> None:
    for name in ("first", "second"):
        with (programs.locker / name).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # each held its lock until it ended


def test_bytes_count_once_as_gone_out_and_only_when_they_are_stored(programs: Programs) -> None:
    sizes: list[int] = []
    plow().put(KEY, BytesSource(DATA), sha256=SHA, on_bytes=sizes.append)
    assert [size for size in sizes if size] == [len(DATA)]
    programs.write("plowup", "sys.exit(1)")
    with pytest.raises(HostError):
        plow().put(KEY, BytesSource(DATA), sha256=SHA, on_bytes=sizes.append)
    assert [size for size in sizes if size] == [len(DATA)]


# -- locations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "location", "ours"),
    [
        (URL, URL + "1", True),
        (URL, "HTTPS://Locker.Example/file/1", True),
        (URL, URL, False),
        (URL, "https://locker.example/FILE/1", False),
        (URL, "http://locker.example/file/1", False),
        (URL, "https://locker.example.evil/file/1", False),
        (URL, "https://evil@locker.example/file/1", False),
        (URL, URL + "../admin", False),
        (URL, URL + "%2E%2e/admin", False),
        (URL, URL + "a\\..\\b", False),
        (URL, URL + "a b", False),
        (URL, URL + '"', False),
        (URL, URL + "{a,b}", False),
        (URL, URL + "a|b`c`", False),
        (URL, URL + "a\nb", False),
        (URL, URL + "ä", False),
        (URL, "", False),
        (URL, "-o/etc/passwd", False),
        (URL, "/etc/passwd", False),
        (URL, URL + "x" * 5000, False),
        ("https://locker.example/file", "https://locker.example/files/1", False),
        ("https://locker.example/file", "https://locker.example/file/1", True),
        ("https://locker.example/?d=", "https://locker.example/?d=ABC", True),
        ("https://locker.example/?d=", "https://locker.example/?e=ABC", False),
        ("https://locker.example/#!", "https://locker.example/#!id!key", True),
        ("ftp://Example.ORG/", "ftp://example.org/x", True),
    ],
)
def test_a_location_is_ours_only_below_a_beginning_that_was_named(
    programs: Programs, prefix: str, location: str, ours: bool
) -> None:
    host = plow(owns=["https://elsewhere.example/", prefix])
    assert host.owns(location) is ours
    if not ours:
        programs.write("plowdown", "open(LOCKER + '/started', 'w')")
        for call in (host.get, host.stat, lambda where: host.delete([where])):
            with pytest.raises(HostError, match="not on this host"):
                call(location)
        assert not (programs.locker / "started").exists()


def test_what_programs_cannot_do_is_refused_before_any_is_started(programs: Programs) -> None:
    for name in ("plowup", "plowdown"):
        programs.write(name, "open(LOCKER + '/started', 'w')")
    host = plow(put=None, delete=None)
    capabilities = host.capabilities
    assert capabilities == Capabilities(
        put=False, list=False, delete=False, atomic_put=False, range_read=False
    )
    for call in (
        lambda: put(host),
        lambda: host.get(URL + "1", offset=1),
        lambda: host.get(URL + "1", length=1),
        lambda: host.delete([URL + "1"]),
        lambda: host.list(),
        lambda: host.location(KEY),
        lambda: host.signed_url(URL + "1", expires=timedelta(hours=1)),
    ):
        with pytest.raises(Unsupported):
            call()
    assert not (programs.locker / "started").exists()
    assert plow().capabilities.put
    assert plow().capabilities.delete


# -- temporary folders ---------------------------------------------------------------------------


def test_cleaning_removes_what_killed_processes_left_and_nothing_that_is_in_use(
    programs: Programs, scratch: Path
) -> None:
    (scratch / "cloudmanager-command-dead").mkdir()
    (scratch / "cloudmanager-command-dead" / "half").write_bytes(DATA)
    (scratch / "somebody-else").mkdir()
    host = plow()
    assert list(host.clean(older_than=timedelta(days=1))) == []
    programs.write("plowdown", "print('x', flush=True)\nopen(sys.argv[3] + '/f', 'w').write('y')")
    blocks = host.get(put(host))
    assert next(blocks) == b"y"  # its folder is there as long as it is read
    removed = list(host.clean(older_than=timedelta(seconds=-3600)))
    assert removed == [f"removed the unfinished transfer {scratch / 'cloudmanager-command-dead'}"]
    assert list(blocks) == []
    (scratch / "somebody-else").rmdir()


@pytest.mark.usefixtures("programs")
def test_without_room_for_temporary_files_the_error_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(HostError, match=r"nowhere.*set TMPDIR"):
        put(plow())


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"get": "plowdown {url} {geheim}"}, "unknown placeholder"),
        ({"get": "plowdown {url} {sha256}"}, "it may have: {dir}, {path}, {url}"),
        ({"put": "plowup {url}"}, "unknown placeholder {url}"),
        ({"put": "plowup {0}"}, "unknown placeholder"),
        ({"put": "plowup {"}, "lone '{'; write it as '{{'"),
        ({"put": "plowup 'geheim {path}"}, "a quote without its partner"),
        ({"put": "{path} x"}, "the program itself cannot be a placeholder"),
        ({"put": ""}, "must name a program"),
        ({"put": []}, "must name a program"),
        ({"put": ["plowup", 3]}, "a command line or a list of texts"),
        ({"get": "plowdown geheim"}, "get needs {url}"),
        ({"delete": "plowdel geheim"}, "delete needs {url}"),
        ({"get": None}, "a command host needs get"),
        ({"owns": None}, "a command host needs owns"),
        ({"owns": []}, "owns must be"),
        ({"owns": "https://locker.example"}, "owns must hold"),
        ({"owns": "https:///x/"}, "owns must hold"),
        ({"owns": "file:///srv/x/"}, "owns must hold"),
        ({"owns": "https://me:geheim@locker.example/"}, "owns must hold"),
        ({"owns": "https://locker.example/a/../b/"}, "owns must hold"),
        ({"time_limit": 0}, "time_limit must be"),
        ({"time_limit": True}, "time_limit must be"),
        ({"total_time_limit": "5"}, "total_time_limit must be"),
        ({"retry_codes": [0]}, "retry_codes must be exit codes"),
        ({"missing_codes": "13"}, "missing_codes must be exit codes"),
        ({"password": "geheim"}, "unknown option password"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_without_being_shown(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        plow(**options)
    assert "geheim" not in str(caught.value).replace("{geheim}", "")


@pytest.mark.parametrize("url", ["command:plowup", "command://locker", "command:?x"])
def test_the_url_of_a_command_host_says_nothing_else(url: str) -> None:
    with pytest.raises(ConfigurationError, match="command: and no more"):
        open_host(url, {"get": "x {url}", "owns": URL})


def test_the_examples_of_the_documentation_are_hosts() -> None:
    page = (Path(__file__).parents[2] / "docs/hosts.md").read_text("utf-8")
    section = page.partition("\n## Command\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    assert blocks
    for block in blocks:
        for name, table in tomllib.loads(block)["hosts"].items():
            assert isinstance(open_host(table.pop("url"), table, name=name), CommandHost)
