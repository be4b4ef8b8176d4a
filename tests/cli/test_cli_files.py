"""Files in and out of the pool, as a shell sees it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from cli_program import Program

ODD_NAMES = (b"new\nline", b"back\\slash", b"not\xffutf-8", b"carriage\rreturn", b"sp ace", b"-n")


def test_a_file_goes_in_and_comes_out_by_its_hash_and_by_a_part_of_it(program: Program) -> None:
    sha256 = program.file("notes.txt", "some notes\n")
    up = program("upload", "notes.txt")
    assert up.lines == [f"{sha256}  notes.txt"]
    assert up.stderr == ""
    assert program("cat", sha256).stdout == b"some notes\n"
    assert program("cat", sha256[:6].upper()).stdout == b"some notes\n"
    (program.work / "out").mkdir()
    assert program("download", sha256[:12], "-o", "out").lines == ["out/notes.txt"]
    assert (program.work / "out/notes.txt").read_text() == "some notes\n"
    assert program("download", sha256, "-o", "as.txt").lines == ["as.txt"]
    assert (program.work / "as.txt").read_text() == "some notes\n"


def test_what_is_known_of_a_file_is_shown_in_lines_and_in_json(program: Program) -> None:
    sha256 = program.file("notes.txt", "some notes\n")
    program("upload", "notes.txt")
    (listed,) = program("ls").lines
    assert re.fullmatch(rf"{sha256} +11  \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ  notes.txt", listed)
    assert program("ls", sha256[:3]).lines == [listed]
    assert program("ls", "00000000000000").lines == []
    (known,) = program("--json", "ls").objects
    assert (known["hash"], known["size"], known["name"]) == (sha256, 11, "notes.txt")
    text = program("info", sha256[:8]).stdout.decode()
    for part in (sha256, "notes.txt", "11 (11 B)", "cached   yes", "stored   local  file:///"):
        assert part in text
    (told,) = program("--json", "info", sha256[:8]).objects
    assert told["cached"] is True
    (copy,) = told["uploads"]
    assert (copy["host"], copy["status"], copy["external"]) == ("local", "stored", False)
    (state,) = program("--json", "status").objects
    assert (state["files"], state["bytes"], state["waiting_copies"]) == (1, 11, 0)
    assert (state["cache_used"], state["total_outgoing"], state["hosts"]) == (11, 11, ["local"])
    shown = program("status").stdout.decode()
    assert "files     1 (11 B), each on 1 of 1 hosts" in shown
    assert "waiting   nothing" in shown


def test_uploading_the_same_content_again_stores_it_once_and_says_so(program: Program) -> None:
    sha256 = program.file("a", "same")
    program.file("b", "same")
    first, second = program("--json", "upload", "a", "b").objects
    assert first["hash"] == second["hash"] == sha256
    (again,) = program("--json", "upload", "b").objects
    assert again == {
        "path": "b",
        "hash": sha256,
        "size": 4,
        "new": False,
        "hosts": ["local"],
        "waiting": [],
    }
    (listed,) = program("--json", "ls").objects
    assert listed["name"] == "a"


def test_a_tree_is_stored_restored_and_checked_by_sha256sum_both_ways(program: Program) -> None:
    for number, name in enumerate(ODD_NAMES):
        program.file(b"tree/" + name, f"content {number}")
    program.file("tree/empty", "")
    program.file("tree/below/deeper/file", "deep")
    (program.work / "tree/link").symlink_to("empty")
    (program.work / "tree/folder-link").symlink_to("below")
    up = program("upload", "-r", "tree", "--manifest", "tree.sums")
    assert "folder-link" in up.complaint
    sums = (program.work / "tree.sums").read_bytes()
    assert sorted(up.stdout.splitlines()) == sorted(sums.splitlines())
    assert len(sums.splitlines()) == len(ODD_NAMES) + 3

    names = sorted(b"tree/" + name for name in (*ODD_NAMES, b"empty", b"link"))
    ours = subprocess.run(
        ["sha256sum", "--", *names, "tree/below/deeper/file"],
        cwd=program.work,
        capture_output=True,
        check=True,
    ).stdout
    assert sorted(sums.splitlines()) == sorted(ours.splitlines())
    subprocess.run(["sha256sum", "-c", "--quiet", "tree.sums"], cwd=program.work, check=True)

    (program.work / "theirs.sums").write_bytes(ours)
    program("download", "--manifest", "theirs.sums", "-o", "restored")
    restored = program.work / "restored"
    for name in names:
        assert (restored / os.fsdecode(name)).read_bytes() == (
            program.work / os.fsdecode(name)
        ).read_bytes()
    assert (restored / "tree/below/deeper/file").read_text() == "deep"
    subprocess.run(["sha256sum", "-c", "--quiet", "../tree.sums"], cwd=restored, check=True)


def test_a_restored_tree_is_left_alone_where_it_is_right_already(program: Program) -> None:
    program.file("tree/a", "one")
    program.file("tree/b", "two")
    program("upload", "-r", "tree", "--manifest", "m")
    program("download", "--manifest", "m", "-o", "out")
    before = (program.work / "out/tree/a").stat()
    (program.work / "out/tree/b").write_text("mine")
    done = program("download", "--manifest", "m", "-o", "out", code=1)
    assert "other content" in done.complaint
    assert (program.work / "out/tree/b").read_text() == "mine"
    after = (program.work / "out/tree/a").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    program("download", "--manifest", "m", "-o", "out", "--force")
    assert (program.work / "out/tree/b").read_text() == "two"


def test_a_manifest_cannot_write_outside_of_the_folder(program: Program) -> None:
    sha256 = program.file("a", "one")
    program("upload", "a")
    program.file("evil", f"{sha256}  ../escaped\n{sha256}  /rooted\n")
    done = program("download", "--manifest", "evil", "-o", "out", code=1)
    assert "would leave the folder" in done.complaint
    assert not (program.work / "escaped").exists()
    assert (program.work / "out/rooted").read_text() == "one"


def test_a_manifest_that_is_none_names_its_line(program: Program) -> None:
    program.file("m", "\nthis is no sum\n")
    done = program("download", "--manifest", "m", "-o", "out", code=2)
    assert "line 2" in done.complaint
    assert "line 2" in program("download", "--manifest", "m", "-o", ".", code=2).complaint


def test_paths_come_from_a_list_with_newlines_or_nuls_or_from_a_pipe(program: Program) -> None:
    one, two = program.file("one", "1"), program.file(b"two\nlines", "2")
    lines = program("upload", "--files-from", "-", stdin=b"one\n\none\n").lines
    assert lines == [f"{one}  one", f"{one}  one"]
    (program.work / "list").write_bytes(b"one\0two\nlines\0")
    lines = program("upload", "--files-from", "list").lines
    assert sorted(lines) == sorted([f"{one}  one", f"\\{two}  two\\nlines"])
    assert "'gone'" in program("upload", "--files-from", "gone", code=4).complaint


@pytest.mark.parametrize("size", [0, 5, 3 * 1024 * 1024])
def test_standard_input_is_a_file_too(program: Program, size: int) -> None:
    data = os.urandom(size)
    sha256 = hashlib.sha256(data).hexdigest()
    assert program("upload", "-", "--name", "dump.sql", stdin=data).lines == [f"{sha256}  dump.sql"]
    assert program("cat", sha256).stdout == data
    assert program("--json", "info", sha256).objects[0]["name"] == "dump.sql"


def test_a_download_replaces_other_content_only_when_forced(program: Program) -> None:
    sha256 = program.file("a", "one")
    program("upload", "a")
    (program.work / "a").write_text("changed since")
    done = program("download", sha256, code=1)
    assert "other content" in done.complaint
    assert "--force" in done.complaint
    assert (program.work / "a").read_text() == "changed since"
    assert program("download", "-f", sha256).lines == ["a"]
    assert (program.work / "a").read_text() == "one"
    assert not [name for name in os.listdir(program.work) if name.startswith(".")]


def test_two_files_of_one_name_do_not_overwrite_each_other(program: Program) -> None:
    hashes = [program.file("x/same", "one"), program.file("y/same", "two")]
    program("upload", "-r", "x", "y")
    (program.work / "out").mkdir()
    done = program("download", *hashes, "-o", "out", code=1)
    assert "two files would get this name" in done.complaint
    assert done.lines == ["out/same"]
    assert (program.work / "out/same").read_text() == "one"


def test_a_dry_run_changes_nothing(program: Program) -> None:
    sha256 = program.file("a", "one")
    assert program("upload", "-n", "a").lines == [f"upload  {sha256}  a"]
    assert program("ls").lines == []
    assert os.listdir(program.data / "cache/objects") == []
    program("upload", "a")
    assert program("upload", "-n", "a").lines == [f"known   {sha256}  a"]
    (told,) = program("--json", "upload", "--dry-run", "a").objects
    assert told == {"path": "a", "hash": sha256, "size": 3, "new": False, "dry_run": True}
    assert program("download", "-n", sha256, "-o", "b").lines == ["b"]
    program.file("m", f"{sha256}  deep/er\n")
    program("download", "-n", "--manifest", "m", "-o", "out")
    assert not (program.work / "b").exists()
    assert not (program.work / "out").exists()
    assert program("remove", "-n", sha256).lines == [f"would remove  {sha256}  a"]
    assert program("cat", sha256).stdout == b"one"
    assert program("cache", "clear", "-n").lines == ["would free at most 3 B"]
    assert program("rebuild", "-n").lines == ["1 objects (3 B) on host local"]
    assert program("sync", "-n").lines == []


def test_a_removed_file_is_gone_everywhere(program: Program) -> None:
    sha256 = program.file("a", "one")
    other = program.file("b", "two")
    program("upload", "a", "b")
    (told,) = program("--json", "remove", sha256[:10]).objects
    assert told == {"hash": sha256, "name": "a", "removed": True, "dry_run": False}
    stored = [path.name for path in (program.data / "files").rglob("*") if path.is_file()]
    assert stored == [other]
    assert not (program.data / f"cache/objects/{sha256[:2]}/{sha256}").exists()
    assert sha256 in program("cat", sha256, code=4).complaint
    assert program("remove", sha256, other, code=1).lines == [f"removed  {other}  b"]


def test_a_short_prefix_must_be_unique_and_long_enough(program: Program) -> None:
    # Two contents whose hashes share 6 digits; found by counting.
    seen: dict[str, str] = {}
    number = 0
    while True:
        text = f"{number}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest[:6] in seen:
            break
        seen[digest[:6]] = text
        number += 1
    first, second = program.file("a", seen[digest[:6]]), program.file("b", text)
    program("upload", "a", "b")
    done = program("cat", first[:6], code=2)
    assert first in done.complaint
    assert second in done.complaint
    assert program("cat", first[:20]).stdout == seen[digest[:6]].encode()
    assert "6 digits" in program("cat", first[:5], code=2).complaint
    assert "6 digits" in program("info", "nothex", code=2).complaint
    assert "not the beginning of a hash" in program("ls", "xyz", code=2).complaint


def test_names_that_are_no_text_do_not_break_the_terminal_or_json(program: Program) -> None:
    program.file(b"bell\x07\xff\x1b[31m", "x")
    sha256 = hashlib.sha256(b"x").hexdigest()
    program("upload", "-r", ".")
    (line,) = program("ls").stdout.splitlines()
    assert line.endswith(rb"bell\x07\xff\x1b[31m")
    assert b"\x1b" not in program("info", sha256).stdout
    (told,) = program("--json", "info", sha256).objects
    assert told["name"] == "bell\x07\ufffd\x1b[31m"
    (program.work / "out").mkdir()
    program("download", sha256, "-o", "out")
    assert os.listdir(os.fsencode(program.work / "out")) == [b"bell\x07\xff\x1b[31m"]


def test_links_to_files_are_followed_and_named_folders_behind_links_too(program: Program) -> None:
    sha256 = program.file("real/file", "x")
    (program.work / "file-link").symlink_to("real/file")
    (program.work / "folder-link").symlink_to("real")
    assert program("upload", "file-link").lines == [f"{sha256}  file-link"]
    assert program("upload", "-r", "folder-link").lines == [f"{sha256}  folder-link/file"]


def test_the_catalog_can_be_deleted_and_rebuilt_from_the_host(program: Program) -> None:
    hashes = {program.file(f"tree/{n}", f"content {n}") for n in range(20)}
    program("upload", "-r", "tree")
    for path in program.data.glob("catalog.sqlite3*"):
        path.unlink()
    program("cache", "clear")
    assert program("ls").lines == []
    (told,) = program("--json", "rebuild").objects
    assert told == {"objects": {"local": 20}, "files": 20, "new_files": 20}
    found = program("--json", "ls").objects
    assert {each["hash"] for each in found} == hashes
    if Path("/proc").exists():  # extended attributes hold the names there
        assert {each["name"] for each in found} == {f"{n}" for n in range(20)}
    assert program("rebuild", "--no-names").lines == [
        "20 objects on host local",
        "20 files in the catalog, 0 of them new",
    ]
    (program.work / "out").mkdir()
    assert len(program("download", *sorted(hashes), "-o", "out").lines) == 20
