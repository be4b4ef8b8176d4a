"""Sources: what a host reads from."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.errors import NotARegularFile, SourceChanged
from cloudmanager.source import BytesSource, FileSource, HashedReader, StreamSource, open_regular
from cloudmanager.testing.sources import BrokenSource

DATA = os.urandom(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def blocks_from(offset: int) -> Iterator[bytes]:
    for start in range(offset, len(DATA), 70_001):
        yield DATA[start : start + 70_001]


def test_every_kind_of_source_gives_the_same_ranges(file: Path) -> None:
    sources = [
        BytesSource(DATA),
        FileSource(file),
        StreamSource(blocks_from, size=len(DATA), label="stream"),
    ]
    for source in sources:
        assert source.size == len(DATA)
        assert source.read() == DATA
        assert source.read(5, 7) == DATA[5:12]
        assert source.read(len(DATA) - 3) == DATA[-3:]
        with source.open(2_999_990) as opened:
            assert opened.read() == DATA[-10:]


def test_a_source_that_became_shorter_is_noticed(file: Path) -> None:
    source = FileSource(file)
    os.truncate(file, 100)
    with pytest.raises(SourceChanged, match="shorter"):
        source.read(0, 200)


def test_a_hashed_reader_hands_over_the_bytes_when_the_hash_is_right(file: Path) -> None:
    with HashedReader(FileSource(file), SHA256) as reader:
        assert len(reader) == len(DATA)
        assert reader.read(10) + reader.read() == DATA
        assert reader.read(1) == b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "changed"),
        (lambda data: data + b"x", "grew"),
        (lambda data: data[:-1], "shorter"),
    ],
)
def test_a_hashed_reader_never_hands_over_the_last_byte_of_a_wrong_file(
    file: Path, change: object, message: str
) -> None:
    source = FileSource(file)
    file.write_bytes(change(DATA))  # type: ignore[operator]
    handed = 0
    with HashedReader(source, SHA256) as reader, pytest.raises(SourceChanged, match=message):
        while block := reader.read(1_000_000):
            handed += len(block)
    assert handed < len(DATA)


def test_an_empty_source_is_checked_too() -> None:
    with HashedReader(BytesSource(b""), SHA256) as reader, pytest.raises(SourceChanged):
        reader.read()


def test_closing_a_stream_ends_its_iterator() -> None:
    ended = []

    def blocks(_offset: int) -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            ended.append(True)

    with StreamSource(blocks, size=10**9, label="endless").open() as opened:
        opened.read(10)
    assert ended == [True]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("fifo", "socket", "."):
            with pytest.raises(NotARegularFile):
                open_regular(tmp_path / name)
    with pytest.raises(NotARegularFile):
        open_regular("/dev/null")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")


def test_a_link_to_a_file_is_followed(tmp_path: Path, file: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    with open_regular(tmp_path / "link") as opened:
        assert opened.read(4) == DATA[:4]


def test_a_source_that_fails_while_it_is_hashed_is_no_error_of_the_host() -> None:
    data = bytes(1000)
    reader = HashedReader(BrokenSource(data), hashlib.sha256(data).hexdigest())
    with pytest.raises(SourceChanged, match="Input/output error; upload it again") as caught:
        reader.read()
    assert isinstance(caught.value.__cause__, OSError)
