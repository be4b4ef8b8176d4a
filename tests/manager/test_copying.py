"""Large files into the cache: the copy and its hash agree, whatever the kernel can do."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cloudmanager.errors import SourceChanged
from cloudmanager.manager.copying import copy_and_hash

MIB = 1024 * 1024
SIZES = [0, 1, 256 * 1024, 8 * MIB, 8 * MIB + 1, 100 * MIB + 17]


def nothing() -> None:
    """Nobody wants to stop the work."""


class Files:
    """A source of `size` bytes and an empty target, opened."""

    def __init__(self, folder: Path, size: int, mode: int = os.O_RDWR) -> None:
        self.content = Random(size).randbytes(size)
        (folder / "source").write_bytes(self.content)
        self.source = os.open(folder / "source", os.O_RDONLY)
        self.target = os.open(folder / "target", mode | os.O_CREAT | os.O_TRUNC, 0o600)

    def copied(self) -> bytes:
        return os.pread(self.target, len(self.content) + 1, 0)

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


@pytest.fixture(params=SIZES)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path, request.param)
    yield made
    made.close()


def test_the_copy_is_whole_and_has_the_hash_of_the_source(files: Files) -> None:
    sha256 = copy_and_hash(files.source, files.target, len(files.content), nothing)
    assert files.copied() == files.content
    assert sha256 == hashlib.sha256(files.content).hexdigest()


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="copy_file_range is Linux's")
@pytest.mark.parametrize("answer", ["EXDEV", "ENOSYS", "EOPNOTSUPP", "nothing", "later", "little"])
def test_a_kernel_that_cannot_copy_or_copies_little_changes_nothing(
    answer: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = os.copy_file_range

    def stubborn(src: int, dst: int, count: int, from_: int, to: int) -> int:
        calls.append(count)
        if answer == "nothing":
            return 0
        if answer == "little":
            return real(src, dst, min(count, 1_000_003), from_, to)
        if answer == "later" and len(calls) == 1:
            return real(src, dst, count, from_, to)
        raise OSError(getattr(errno, "EXDEV" if answer == "later" else answer), "no")

    monkeypatch.setattr(os, "copy_file_range", stubborn)
    sha256 = copy_and_hash(files.source, files.target, len(files.content), nothing)
    assert files.copied() == files.content
    assert sha256 == hashlib.sha256(files.content).hexdigest()
    assert bool(calls) == bool(files.content)


def test_another_failure_of_the_kernel_is_not_tried_again_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    files = Files(tmp_path, 20 * MIB)
    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        copy_and_hash(files.source, files.target, 20 * MIB, nothing)
    assert files.copied() == b""
    files.close()


@pytest.mark.parametrize("size", [1000, 30 * MIB])
def test_a_source_that_became_shorter_is_refused(size: int, tmp_path: Path) -> None:
    files = Files(tmp_path, size)
    with pytest.raises(SourceChanged, match="shorter"):
        copy_and_hash(files.source, files.target, size + 1, nothing)
    files.close()


def test_what_grew_behind_the_size_is_left_out(tmp_path: Path) -> None:
    files = Files(tmp_path, 30 * MIB)
    sha256 = copy_and_hash(files.source, files.target, 9 * MIB, nothing)
    assert sha256 == hashlib.sha256(files.content[: 9 * MIB]).hexdigest()
    assert os.fstat(files.target).st_size == 9 * MIB
    files.close()


def test_a_copy_that_cannot_be_read_back_is_an_error_and_no_hang(tmp_path: Path) -> None:
    files = Files(tmp_path, 200 * MIB, mode=os.O_WRONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        copy_and_hash(files.source, files.target, 200 * MIB, nothing)
    files.close()


def test_work_that_is_to_end_ends_between_two_pieces_and_leaves_no_thread(tmp_path: Path) -> None:
    files = Files(tmp_path, 40 * MIB)
    left = [None, None]

    def check() -> None:
        left.pop()

    with pytest.raises(IndexError):
        copy_and_hash(files.source, files.target, 40 * MIB, check)
    assert 0 < os.fstat(files.target).st_size < 40 * MIB
    assert not [thread for thread in threading.enumerate() if thread.name == "hash"]
    files.close()
