"""verify and repair on the command line."""

from __future__ import annotations

import pytest
from cli_program import Program


def _two_hosts(program: Program) -> None:
    program.configure(
        "".join(f'[hosts.{name}]\nurl = "{program.home / name}"\n' for name in ("one", "two"))
    )
    for name in ("one", "two"):
        (program.home / name).mkdir()


def test_what_was_spoiled_is_found_named_and_mended(program: Program) -> None:
    _two_hosts(program)
    good, bad, gone = (program.file(name, name) for name in ("good", "bad", "gone"))
    program("upload", "good", "bad", "gone")
    program("cache", "clear")
    (spoiled := program.home / "one" / bad[:2] / bad).chmod(0o600)
    spoiled.write_text("b4d")
    (program.home / "two" / gone[:2] / gone).unlink()

    done = program("verify", "--read", code=6)
    assert sorted(line.split()[:3] for line in done.lines) == sorted(
        [
            ["wrong", bad, "one"],
            ["missing", gone, "two"],
            ["too", "few", "copies"],
            ["too", "few", "copies"],
        ]
    )
    assert "6 copies looked at: 4 good, 1 missing, 1 wrong" in done.stderr
    assert "cloudmanager repair" in done.stderr

    planned = program("--json", "repair", "--dry-run").objects
    assert {(each["hash"], each["host"], each["action"]) for each in planned} == {
        (bad, "one", "replaced"),
        (gone, "two", "restored"),
    }
    assert spoiled.read_text() == "b4d"
    done = program("repair")
    assert {tuple(line.split()[:3]) for line in done.lines} == {
        ("replaced", bad, "one"),
        ("restored", gone, "two"),
    }
    assert spoiled.read_text() == "bad"
    again = program("--json", "verify", "--read").objects
    assert [each["verdict"] for each in again] == ["good"] * 6
    assert {each["hash"] for each in again} == {good, bad, gone}
    assert all(each["location"].startswith("file://") for each in again)
    assert program("repair").lines == []


def test_a_file_of_which_nothing_is_left_is_named_with_its_code(program: Program) -> None:
    _two_hosts(program)
    sha256 = program.file("only", "only")
    program("upload", "only")
    program("cache", "clear")
    for name in ("one", "two"):
        (program.home / name / sha256[:2] / sha256).unlink()
    program("verify", code=6)
    done = program("repair", code=6)
    assert done.lines[0].startswith(f"lost  {sha256}  -  only")
    assert program("ls").lines[0].startswith(sha256)


def test_a_host_that_cannot_be_asked_is_told_with_its_code(program: Program) -> None:
    _two_hosts(program)
    sha256 = program.file("a", "a")
    program("upload", "a")
    (program.home / "two").rename(program.home / "away")
    done = program("verify", "--read", code=5)
    assert [line.split()[:3] for line in done.lines] == [["unreachable", sha256, "two"]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--sample", "150%"), "not a share"),
        (("--sample", "x"), "not a share"),
        (("--older-than", "soon"), "not a span of time"),
        (("--budget", "1GiB"), "--read"),
        (("--read", "--budget", "much"), "not a size"),
    ],
)
def test_a_wrong_option_is_one_line(
    program: Program, arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in program("verify", *arguments, code=2).complaint
