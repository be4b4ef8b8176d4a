"""How programs are run: limits by a clock of the test, lines out of any pieces."""

from __future__ import annotations

import os
import sys
import time

import pytest

from cloudmanager.hosts.command_process import Lines, Program

PAUSE = "import signal; signal.pause()"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def second(self) -> None:
        self.now += 1.0


def python(program: str) -> list[str]:
    return [sys.executable, "-IS", "-c", program]


def test_silence_is_measured_from_the_last_sign_of_life() -> None:
    clock = Clock()
    program = "import signal; print('x', flush=True); signal.pause()"
    heard_at = -1.0
    with Program(python(program), time_limit=5, clock=clock) as running:
        blocks = running.blocks(beat=lambda: clock.second() if heard_at >= 0 else None)
        assert next(blocks) == b"x\n"
        heard_at = clock.now = 100.0
        with pytest.raises(TimeoutError, match="no sign of life for 5 s"):
            list(blocks)
    assert clock.now == heard_at + 5


def test_the_time_that_the_reader_takes_is_not_the_programs() -> None:
    clock = Clock()
    reader, writer = os.pipe()
    program = (
        "import sys\n"
        "print('x', flush=True)\n"
        "while sys.stdin.buffer.raw.read(1):\n"
        "    print('x', flush=True)\n"
    )
    with (
        os.fdopen(reader, "rb", 0) as stdin,
        os.fdopen(writer, "wb", 0) as prompt,
        Program(python(program), time_limit=5, stdin=stdin, clock=clock) as running,
    ):
        count = 0
        for block in running.blocks():
            count += block.count(b"x")
            clock.now += 100
            if count < 5:
                prompt.write(b"?")
            else:
                prompt.close()
    assert (count, running.returncode) == (5, 0)


def test_growth_of_what_is_watched_is_a_sign_of_life() -> None:
    clock = Clock()
    with (
        Program(python(PAUSE), time_limit=2, clock=clock) as running,
        pytest.raises(TimeoutError, match="no sign of life"),
    ):
        list(running.blocks(beat=clock.second, watch=lambda: int(min(clock.now, 7))))
    assert clock.now >= 9


def test_the_whole_run_has_a_limit_of_its_own() -> None:
    clock = Clock()
    program = "while True: print('still waiting', flush=True)"
    with (
        Program(python(program), time_limit=5, total_time_limit=20, clock=clock) as running,
        pytest.raises(TimeoutError, match="not done after 20 s"),
    ):
        for _ in running.blocks():
            clock.second()


def test_a_program_has_no_terminal_no_input_and_our_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOMETHING", "handed on")
    program = (
        "import os, sys\n"
        "print(os.environ['SOMETHING'], os.getsid(0) == os.getpid(), repr(sys.stdin.read()))\n"
        "try:\n    open('/dev/tty')\nexcept OSError:\n    print('no terminal')"
    )
    with Program(python(program), time_limit=60) as running:
        said = b"".join(running.blocks())
    assert said == b"handed on True ''\nno terminal\n"


def test_what_a_helper_in_its_own_session_writes_for_ever_does_not_keep_us() -> None:
    # Out of the group's reach it holds the pipe, and fills it while a slow reader is busy.
    helper = (
        "import os\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    os.write(1, b'y')\n"
        "    os.write(writer, b'x')\n"
        "    while True: os.write(1, b'y' * 65536)\n"
        "os.read(reader, 1)\n"
    )
    total = 0
    with Program(python(helper), time_limit=60) as running:
        for block in running.blocks():
            total += len(block)
            time.sleep(0.01)
    assert running.returncode == 0
    assert 1 <= total <= 64 * 1024 * 1024


def test_of_what_a_program_says_on_standard_error_the_end_is_kept() -> None:
    program = "import sys; sys.stderr.write('y' * 1_000_000 + 'the end')"
    with Program(python(program), time_limit=60) as running:
        assert list(running.blocks()) == []
    assert running.errors == b"y" * (8192 - 7) + b"the end"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_lines_are_the_same_in_whatever_pieces_they_come(size: int) -> None:
    said = b"one\n\ntwo\r\nthree\r" + b"x" * 70_000 + b"\nfour" + b"y" * 65_000 + b"\nlast"
    lines = Lines()
    found = [
        line
        for start in range(0, len(said), size)
        for line in lines.feed(said[start : start + size])
    ]
    found += lines.end()
    assert [line for line in found if line] == [
        b"one",
        b"two",
        b"three",
        b"four" + b"y" * 65_000,
        b"last",
    ]
