"""Bad input and bad surroundings: one clear line, the right exit code, nothing lost."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_program import Program

_PR_CAPBSET_DROP = 24


def without_privileges() -> None:
    """Run before the program starts: root then obeys permissions like everybody else."""
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(_PR_CAPBSET_DROP, capability)


def small_files_only() -> None:
    """Run before the program starts: a file past 1 MiB fails, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


def test_bad_files_are_named_one_by_one_and_good_ones_among_them_stored(program: Program) -> None:
    good = program.file("good", "fine")
    program.file("folder/in it", "x")
    program.file("locked", "secret")
    (program.work / "locked").chmod(0)
    os.mkfifo(program.work / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(program.work)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        bad = ["gone", "folder", "locked", "pipe", "socket", "/dev/zero", "no/such", "a\0b"[:1]]
        done = program("upload", "good", *bad, code=1, preexec_fn=without_privileges)
    assert done.lines == [f"{good}  good"]
    told = done.stderr.splitlines()
    assert len(told) == len(bad)
    for name in bad:
        (line,) = [line for line in told if f"'{name}'" in line]
        assert line.startswith(f"cloudmanager: upload '{name}'")
    assert program("cat", good).stdout == b"fine"


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("gone", 4, "No such file"),
        ("folder", 2, "-r"),
        ("locked", 7, "Permission denied"),
        ("/dev/zero", 1, "not a regular file"),
    ],
)
def test_one_bad_file_has_its_exit_code(program: Program, path: str, code: int, words: str) -> None:
    program.file("locked").encode()
    (program.work / "locked").chmod(0)
    (program.work / "folder").mkdir()
    done = program("upload", path, code=code, preexec_fn=without_privileges)
    assert words in done.complaint
    assert done.stdout == b""


def test_an_unreadable_folder_in_a_tree_is_told_and_the_rest_stored(program: Program) -> None:
    sha256 = program.file("tree/ok", "ok")
    program.file("tree/closed/inside", "x")
    (program.work / "tree/closed").chmod(0)
    try:
        done = program("upload", "-r", "tree", code=1, preexec_fn=without_privileges)
    finally:
        (program.work / "tree/closed").chmod(0o700)
    assert done.lines == [f"{sha256}  tree/ok"]
    assert "'tree/closed': Permission denied" in done.complaint


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["upload"], 2, "nothing to upload"),
        (["upload", "-", "--files-from", "-"], 2, "not both"),
        (["upload", "a", "--name", "b"], 2, "--name is for standard input"),
        (["upload", "a", "--manifest", "no/m"], 2, "no folder"),
        (["upload", "a", "--manifest", "."], 2, "is a folder"),
        (["download"], 2, "nothing to download"),
        (["download", "--manifest", "m"], 2, "-o DIR"),
        (["download", "1234567", "7654321", "-o", "nodir"], 2, "not a folder"),
        (["download", "1234567", "-o", "nodir/"], 2, "no folder"),
        (["download", "z" * 64], 2, "SHA-256"),
        (["download", "0" * 64], 4, "no file of the pool"),
        (["cat", "12345"], 2, "6 digits"),
        (["info", "1234567"], 4, "1234567"),
        (["link", "1234567", "--expires", "soon"], 2, "15m, 12h, 7d"),
        (["frobnicate"], 2, "frobnicate"),
        (["ls", "--json"], 2, "before the command"),
        (["ls", "--frob"], 2, "cloudmanager ls --help"),
        (["--host", "nobody", "upload", "a"], 2, "'nobody'"),
        (["--host", "gopher://x/y", "upload", "a"], 2, "'gopher'"),
        (["--host", "/tmp", "--host", "/tmp", "ls"], 2, "named twice"),
        (["--redundancy", "2", "upload", "a"], 2, "redundancy is 2"),
        (["--redundancy", "0", "ls"], 2, "--redundancy"),
        (["--capacity", "much", "ls"], 2, "500MiB"),
        (["--config", "gone.toml", "ls"], 2, "gone.toml"),
        (["--database", "no/folder/db", "ls"], 2, "does not exist"),
        (["--database", ".", "ls"], 2, "is a directory"),
        (["--database", "a", "ls"], 2, "not a database"),
        (["--database", "mysql://u:hunter2@h/d", "ls"], 2, "mysql"),
        (["--storage", "a", "ls"], 2, "not a directory"),
        (["--host", "gone-disk", "upload", "a"], 2, "gone-disk"),
        (["--host", "./gone-disk", "host", "test"], 4, "gone-disk"),
        (["host", "test", "nobody"], 2, "there are: local"),
        (["host", "clean"], 2, "NAME"),
        (["link", "HASH"], 2, "makes links"),
        (["cache", "check", "--capacity"], 2, "before the command"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_mistake_gets_one_line_that_says_what_to_do(
    shared: Program, arguments: list[str], code: int, words: str
) -> None:
    known = shared.file("a", "x" * 5000)
    given = [known if each == "HASH" else each for each in arguments]
    done = shared(*given, code=code)
    assert words in done.complaint
    assert "hunter2" not in done.complaint
    assert done.stdout == b""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """One home for the mistakes: none of them changes anything."""
    program = Program(tmp_path_factory.mktemp("shared") / "home")
    program.file("a", "x" * 5000)
    program("upload", "a")
    return program


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("capacity = 20GiB", "not valid TOML"),
        ("capacity = 'huge'", "capacity"),
        ("colour = 'red'", "unknown setting colour"),
        ("redundancy = 0", "at least 1"),
        ("[hosts.a]\nregion = 'x'", "needs a url"),
        ("[hosts.a]\nurl = 'ftp://x'\n", "'ftp'"),
        ("[hosts.a]\nurl = '/x'\ncolour = 'red'\n", "unknown option colour"),
        (
            "[hosts.a]\nurl = 's3://b'\nsecret_access_key = { env = 'NOT_SET_AT_ALL' }\n",
            "NOT_SET_AT_ALL",
        ),
        (
            "[hosts.a]\nurl = 's3://b'\nsecret_access_key = { command = ['false', 'hunter2'] }\n",
            "'false' failed",
        ),
        ("[hosts.a]\nurl = 's3://b'\nsecret_access_key = { file = '/gone' }\n", "/gone"),
    ],
)
def test_a_mistake_in_the_configuration_is_told_without_its_secrets(
    program: Program, text: str, words: str
) -> None:
    program.configure(text)
    done = program("upload", "a", code=2)
    assert words in done.complaint
    assert "hunter2" not in done.complaint


def test_a_download_to_where_nothing_can_be_written_leaves_nothing(program: Program) -> None:
    sha256 = program.file("a", "one")
    program("upload", "a")
    closed = program.work / "closed"
    closed.mkdir(mode=0o500)
    done = program("download", sha256, "-o", "closed", code=7, preexec_fn=without_privileges)
    assert "Permission denied" in done.complaint
    assert os.listdir(closed) == []
    assert "no such folder" in program("download", sha256, "-o", "no/way", code=4).complaint
    assert "is not replaced" in program("download", sha256, "-fo", "/dev/null", code=1).complaint
    assert Path("/dev/null").is_char_device()
    (program.work / "out/tree").mkdir(parents=True)
    program.file("m", f"{sha256}  tree\n")
    assert "Is a directory" in program("download", "--manifest", "m", "-o", "out", code=2).complaint


def test_a_cache_directory_that_is_read_only_is_told(program: Program) -> None:
    sha256 = program.file("a", "one")
    program("upload", "a")
    cache = program.data / "cache"
    cache.chmod(0o500)
    try:
        done = program("upload", "a", code=7, preexec_fn=without_privileges)
    finally:
        cache.chmod(0o700)
    assert str(cache) in done.complaint
    assert "permissions" in done.complaint
    assert program("cat", sha256).stdout == b"one"


def test_a_catalog_that_is_read_only_is_told(program: Program) -> None:
    program.file("a", "one")
    program("upload", "a")
    (program.data / "catalog.sqlite3").chmod(0o400)
    done = program("upload", "a", code=7, preexec_fn=without_privileges)
    assert "catalog.sqlite3" in done.complaint
    assert "permissions" in done.complaint


def test_a_full_disk_fails_that_file_only_and_leaves_nothing_behind(program: Program) -> None:
    small = program.file("small", "fits")
    big = program.file("big", os.urandom(3 * 2**20))
    done = program("upload", "big", "small", code=1, preexec_fn=small_files_only)
    assert done.lines == [f"{small}  small"]
    assert "upload 'big'" in done.stderr.splitlines()[-1]
    assert "free some space" in done.stderr.splitlines()[-1]
    stored = {path.name for path in (program.data / "files").rglob("*") if path.is_file()}
    assert stored == {small}
    assert program("--json", "status").objects[0]["cache_used"] == 4
    assert program("upload", "big").lines == [f"{big}  big"]


def test_a_locked_catalog_can_be_read_and_says_try_again_to_writers(program: Program) -> None:
    sha256 = program.file("a", "one")
    other = program.file("b", "two")
    program("upload", "a")
    database = sqlite3.connect(program.data / "catalog.sqlite3", isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        writer = program.start("upload", "b")
        assert program("cat", sha256).stdout == b"one"
        assert len(program("ls").lines) == 1
        done = program.end(writer)
        assert done.code == 5
        assert "locked" in done.complaint
        database.execute("ROLLBACK")
    finally:
        database.close()
    assert program("upload", "b").lines == [f"{other}  b"]


def test_a_corrupt_catalog_says_so_and_can_be_rebuilt_from_the_host(program: Program) -> None:
    sha256 = program.file("a", "one")
    program("upload", "a")
    database = program.data / "catalog.sqlite3"
    whole = database.read_bytes()
    assert len(whole) > 8192
    database.write_bytes(whole[:8192] + b"\xee" * (len(whole) - 8192))
    for command in (["ls"], ["upload", "a"]):
        done = program(*command, code=2)
        assert "damaged" in done.complaint
        assert "rebuild" in done.complaint
    for path in program.data.glob("catalog.sqlite3*"):
        path.unlink()
    assert program("rebuild").lines[-1] == "1 files in the catalog, 1 of them new"
    assert program("cat", sha256).stdout == b"one"


def test_a_corrupt_cache_index_is_repaired_and_wrong_files_are_found(program: Program) -> None:
    one, two = program.file("a", "one"), program.file("b", "two")
    program("upload", "a", "b")
    assert program("cache", "check").lines == ["the cache is sound"]
    cached = program.data / "cache/objects" / one[:2] / one
    cached.chmod(0o600)
    cached.write_text("0ne")
    (found,) = program("--json", "cache", "check", code=6).objects
    assert (found["path"], found["fixed"]) == (str(cached), False)
    (fixed,) = program("--json", "cache", "check", "--fix").objects
    assert (fixed["path"], fixed["kind"], fixed["fixed"]) == (str(cached), "wrong", True)
    assert program("cat", one).stdout == b"one"

    for path in (program.data / "cache").glob("index.sqlite3*"):
        path.unlink()
    (program.data / "cache/index.sqlite3").write_bytes(b"no index" * 1000)
    done = program("cache", "check", code=6)
    assert "cache check --fix" in done.complaint
    assert program("status", code=6).complaint == done.complaint
    program("cache", "check", "--fix")
    assert program("cache", "check").lines == ["the cache is sound"]
    assert program("cat", two).stdout == b"two"


def test_processes_that_start_at_once_on_nothing_all_succeed(program: Program) -> None:
    hashes = [program.file(f"f{n}", f"content {n}") for n in range(4)]
    running = [program.start("upload", f"f{n}") for n in range(4)]
    for number, process in enumerate(running):
        done = program.end(process)
        assert (done.code, done.stderr) == (0, "")
        assert done.lines == [f"{hashes[number]}  f{number}"]
    assert [each["hash"] for each in program("--json", "ls").objects] == sorted(hashes)


def test_a_file_that_changes_while_it_is_read_is_never_stored_under_a_wrong_hash(
    program: Program,
) -> None:
    program.file("growing", os.urandom(64 * 2**20))
    # Appends until it is told to stop. On a busy machine it may get no turn while the file is
    # read: then what was read is right, and it is tried again.
    writer = subprocess.Popen(
        [sys.executable, "-c", "while 1: open('growing', 'ab').write(b'more')"], cwd=program.work
    )
    stored: list[str] = []
    refused = False
    try:
        for _ in range(20):
            done = program.end(program.start("upload", "growing"))
            assert done.code in (0, 1), done.stderr
            if refused := done.code == 1:
                assert "'growing'" in done.complaint
                break
            stored.append(done.lines[0][:64])
    finally:
        writer.kill()
        writer.wait()
    assert refused
    objects = [p for p in (program.data / "files").rglob("*") if p.is_file()]
    assert sorted(p.name for p in objects) == sorted(set(stored))
    for path in objects:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_with_every_host_gone_files_wait_in_the_cache_and_are_delivered_later(
    program: Program,
) -> None:
    disk = program.home / "disk"
    sha256 = program.file("a", "one")
    program.configure(f'[hosts.disk]\nurl = "{disk}"\n')
    done = program("upload", "a", code=4)
    assert done.lines == [f"{sha256}  a"]
    why, waits = done.stderr.splitlines()
    assert "mount it" in why
    assert (
        waits
        == "cloudmanager: 1 copy waits for host disk; `cloudmanager sync` delivers when it is back"
    )
    assert program("cat", sha256).stdout == b"one"
    assert program("cache", "clear").lines == ["freed 0 B"]
    (waiting,) = program("--json", "status", "--waiting").objects
    assert (waiting["hash"], waiting["host"], waiting["removal"]) == (sha256, "disk", False)
    assert sha256 in program("status", "--waiting").lines[0]
    assert program("sync", "--dry-run").lines == program("status", "--waiting").lines
    still = program("sync", code=5)
    assert still.lines == ["0 copies sent, 0 objects deleted, 1 wait"]
    assert "mount it" in still.complaint
    disk.mkdir()
    (told,) = program("--json", "sync").objects
    assert told == {"delivered": 1, "removed": 0, "waiting": 0}
    assert (disk / sha256[:2] / sha256).read_text() == "one"
    assert program("cache", "clear").lines == ["freed 3 B"]
    assert program("cat", sha256).stdout == b"one"


def test_with_one_of_two_hosts_gone_uploads_and_downloads_go_on(program: Program) -> None:
    one, two = program.home / "one", program.home / "two"
    two.mkdir()
    program.configure(f'[hosts.one]\nurl = "{one}"\n[hosts.two]\nurl = "{two}"\n')
    sha256 = program.file("a", "content")
    done = program("upload", "a")
    assert done.lines == [f"{sha256}  a"]
    assert "1 copy waits for host one" in done.stderr
    assert "host      one: 1 wait" in program("status").lines
    program("cache", "clear")
    assert program("cat", sha256).stdout == b"content"
    one.mkdir()
    assert program("sync").lines == ["1 copies sent, 0 objects deleted, 0 wait"]
    stored = one / sha256[:2] / sha256
    assert stored.read_text() == "content"

    # A host that lies: found out, told, and put right from the other one.
    stored.chmod(0o600)
    stored.write_text("c0ntent")
    program("cache", "clear")
    done = program("cat", sha256)
    assert done.stdout == b"content"
    assert "hash" in done.stderr
    assert stored.read_text() == "content"
    stored.unlink()
    (two / sha256[:2] / sha256).unlink()
    program("cache", "clear")
    done = program("cat", sha256, code=4)
    assert "no such object" in done.stderr.splitlines()[-1]
    one.rename(program.home / "away")
    done = program("remove", sha256, code=5)
    why, then = done.stderr.splitlines()
    assert "mount it" in why
    assert "`cloudmanager sync` finishes that" in then
    (program.home / "away").rename(one)
    assert program("sync").lines == ["0 copies sent, 1 objects deleted, 0 wait"]
    assert program("ls").lines == []


def test_wrong_bytes_on_the_only_host_are_never_handed_over(program: Program) -> None:
    sha256 = program.file("a", "content")
    program("upload", "a")
    program("cache", "clear")
    stored = program.data / "files" / sha256[:2] / sha256
    stored.chmod(0o600)
    stored.write_text("c0ntent")
    done = program("download", sha256, "-o", "out", code=6)
    assert "do not have that hash" in done.complaint
    assert done.stdout == b""
    assert not (program.work / "out").exists()
    assert program("cat", sha256, code=6).stdout == b""


@pytest.mark.parametrize("module", ["cloudmanager", "cloudmanager.cli.setup_db"])
def test_help_loads_no_sdk_and_no_database_library(program: Program, module: str) -> None:
    heavy = ("boto3", "botocore", "azure", "obstore", "sqlalchemy", "alembic", "requests", "rich")
    code = (
        f"import runpy, sys; sys.argv = ['cloudmanager', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        f"except SystemExit: pass\n"
        f"sys.stderr.write(' '.join(m for m in {heavy!r} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=program.work
    )
    assert "Usage:" in done.stdout
    assert done.stderr == ""


def test_debug_shows_a_traceback_and_nothing_else_does(program: Program) -> None:
    assert "Traceback" not in program("-v", "cat", "0" * 64, code=4).stderr
    assert "Traceback" in program("--debug", "cat", "0" * 64, code=4).stderr
    assert "Traceback" in program("--debug", "upload", "gone", code=4).stderr


def test_secrets_of_the_configuration_show_up_nowhere(
    program: Program, tmp_path: Path, fails: Callable[[Program, list[str]], str]
) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text("hunter2-file\n")
    program.configure(
        f"""
        [hosts.cloud]
        url = "s3+http://127.0.0.1:9/bucket"
        region = "us-east-1"
        access_key_id = "AKIAEXAMPLE"
        secret_access_key = "hunter2-key"
        session_token = {{ file = "{secret_file}" }}
        [hosts.blobs]
        url = "azure+http://127.0.0.1:9/account/container"
        connection_string = "AccountName=account;AccountKey=aHVudGVyMi1ibG9i"
        [hosts.web]
        url = "http://127.0.0.1:9/files"
        headers = {{ Authorization = "Bearer hunter2-web" }}
        """
    )
    program.file("a", "x")
    text = ""
    for arguments in (
        ["config", "show"],
        ["--json", "config", "show"],
        ["host", "ls"],
        ["--json", "host", "ls"],
        ["--debug", "host", "test"],
    ):
        text += fails(program, arguments)
    assert "AKIAEXAMPLE" in text
    assert "***" in text
    assert "hunter2" not in text
    assert "aHVudGVyMi1ibG9i" not in text


@pytest.fixture
def fails() -> Callable[[Program, list[str]], str]:
    """Runs the program, whatever its exit code, and gives all that it printed."""

    def run(program: Program, arguments: list[str]) -> str:
        done = program.end(program.start(*arguments))
        return done.stdout.decode() + done.stderr

    return run
