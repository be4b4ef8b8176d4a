"""Signals, pipes and terminals."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_program import HANGS, Program, wait_until


def in_flight(program: Program, size: int) -> bool:
    """Whether an unfinished file of at least `size` bytes lies in the cache."""
    for path in (program.data / "cache/tmp").glob("*"):
        try:
            if path.stat().st_size >= size:
                return True
        except FileNotFoundError:
            continue
    return False


@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_an_upload_at_once_and_a_rerun_completes_it(
    program: Program, signum: int, code: int, word: str
) -> None:
    data = os.urandom(3 * 2**20)
    sha256 = program.file("whole", data)
    process = program.start("upload", "-", "--name", "whole", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(data[: 2 * 2**20])
    process.stdin.flush()
    wait_until(lambda: in_flight(program, 2**20), process)
    process.send_signal(signum)
    assert process.wait(HANGS) == code
    assert process.stderr is not None
    assert process.stdout is not None
    assert process.stderr.read().decode() == f"cloudmanager: {word}\n"
    assert process.stdout.read() == b""
    process.stderr.close()
    process.stdout.close()
    process.stdin.close()
    assert program("upload", "whole").lines == [f"{sha256}  whole"]
    assert not in_flight(program, 0)
    assert program("--json", "status").objects[0]["cache_used"] == len(data)


def test_an_interrupted_tree_keeps_what_was_printed_and_a_rerun_does_the_rest(
    program: Program,
) -> None:
    hashes = {program.file(f"tree/{n:04}", f"content {n}") for n in range(3000)}
    # Unbuffered, as `communicate` would not see what `readline` read ahead.
    process = program.start("upload", "-r", "tree", bufsize=0)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=HANGS)
    assert stderr == b"cloudmanager: interrupted\n"
    assert process.returncode == 130
    printed = {line[:64].decode() for line in (first + rest).splitlines()}
    known = {each["hash"] for each in program("--json", "ls").objects}
    assert printed
    assert printed <= known
    assert len(program("upload", "-r", "tree").lines) == 3000
    assert {each["hash"] for each in program("--json", "ls").objects} == hashes


def test_a_second_interrupt_does_no_harm(program: Program) -> None:
    process = program.start("upload", "-", stdin=subprocess.PIPE)
    wait_until(lambda: in_flight(program, 0), process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANGS) == 130
    _, stderr = process.communicate()
    assert b"Traceback" not in stderr


def test_a_reader_that_leaves_is_no_error_and_stops_no_upload(program: Program) -> None:
    for number in range(3000):
        program.file(f"tree/{number}", f"content {number}")
    run = f"{sys.executable} -m cloudmanager"

    def piped(command: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", f"{command} | head -1; echo ${{PIPESTATUS[0]}}"],
            cwd=program.work,
            env=program.environment,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=True,
        )
        assert done.stderr == ""
        first, code = done.stdout.splitlines()
        assert code == "0"
        return first.split()

    assert piped(f"{run} upload -r tree")[1].startswith("tree/")
    assert program("--json", "status").objects[0]["files"] == 3000
    assert piped(f"{run} ls")[1].isdigit()
    assert piped(f"{run} --json ls")[0].startswith("{")


class Terminal:
    """The other side of a terminal; `seen` grows as the program writes."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self.seen = b""
        self._reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # Linux says so when the other side is closed
                return
            if not data:
                return
            self.seen += data

    def __enter__(self) -> Terminal:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.theirs)
        self._reader.join(HANGS)
        os.close(self._ours)


def test_a_progress_bar_shows_on_a_terminal_for_long_work_and_nowhere_else(
    program: Program,
) -> None:
    for number in range(1000):
        program.file(f"{number}", f"content {number}")
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "env": {"TERM": "xterm"}}
    with Terminal() as terminal:
        process = program.start("upload", "--files-from", "-", stderr=terminal.theirs, **options)
        assert process.stdin is not None
        for number in range(1000):
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
            if terminal.seen:
                break
            time.sleep(0.1)
        process.communicate(timeout=HANGS)
    assert process.returncode == 0
    assert b"upload" in terminal.seen
    assert b"files" in terminal.seen

    with Terminal() as terminal:
        process = program.start("ls", stderr=terminal.theirs, **options)
        process.communicate(timeout=HANGS)
    assert process.returncode == 0
    assert terminal.seen == b""


def many_tiny_files(program: Program, count: int) -> None:
    """Store them, list them, restore them and compare."""
    folder = program.work / "tree"
    for number in range(count):
        below = folder / f"{number // 1000:03}"
        if number % 1000 == 0:
            below.mkdir(parents=True)
        (below / f"{number}").write_text(f"tiny {number}")
    up = program("upload", "-r", "tree", "--manifest", "m")
    assert up.stderr == ""
    assert len(up.lines) == count
    (state,) = program("--json", "status").objects
    assert (state["files"], state["waiting_copies"]) == (count, 0)
    assert len(program("ls").lines) == count
    program("cache", "clear")
    assert len(program("download", "--manifest", "m", "-o", "out").lines) == count
    subprocess.run(
        ["sha256sum", "-c", "--quiet", Path("..") / "m"], cwd=program.work / "out", check=True
    )
    assert program("cache", "check").lines == ["the cache is sound"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_standard_stream_that_is_closed_harms_nothing(program: Program, closed: str) -> None:
    sha256 = program.file("a", "content")
    for command in ("upload a", "verify", "status", "--help", "upload gone"):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m cloudmanager {command} {closed}"],
            cwd=program.work,
            env=program.environment,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        assert done.returncode == (4 if command == "upload gone" else 0), done.stderr
        assert "Traceback" not in done.stderr
        assert "internal" not in done.stderr
    assert program("cat", sha256).stdout == b"content"


def test_five_thousand_tiny_files_go_in_and_come_out(program: Program) -> None:
    many_tiny_files(program, 5000)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_tiny_files_go_in_and_come_out(program: Program) -> None:
    program.patience = 1500
    many_tiny_files(program, 100_000)
