"""Where the bytes of an upload come from.

A host reads a `Source` as often as it needs to (again for every retry, from the middle for
a resumed upload), several parts at once. Whoever sends a source that is not `trusted`
must hash what it sends with `HashedReader`, so that a file that changes under the
upload is never stored under a wrong hash.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from cloudmanager.errors import NotARegularFile, SourceChanged
from cloudmanager.hashing import BLOCK

__all__ = [
    "BytesSource",
    "FileSource",
    "HashedReader",
    "Source",
    "StreamSource",
    "open_descriptor",
    "open_regular",
]


def open_regular(path: str | os.PathLike[str] | bytes) -> BinaryIO:
    """Open a file for reading, unbuffered, following symlinks; never blocks on a pipe.

    Raises
    ------
    FileNotFoundError, PermissionError
        As `open` does.
    NotARegularFile
        For a directory, device, socket or pipe.
    """
    return os.fdopen(open_descriptor(path)[0], "rb", buffering=0)


def open_descriptor(path: str | os.PathLike[str] | bytes) -> tuple[int, os.stat_result]:
    """As `open_regular`, but only the descriptor, and what it is like."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a socket
            raise NotARegularFile(f"{os.fsdecode(path)!r} is not a regular file") from exc
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise NotARegularFile(f"{os.fsdecode(path)!r} is {kind}")
    return fd, found


class Source(ABC):
    """Bytes of a known `size` that can be opened again and again, from any offset.

    `path` is the file they lie in, when there is one. `trusted` says that they cannot
    change and are known to have the hash they are sent under.
    """

    size: int
    path: Path | None = None
    trusted: bool = False

    @abstractmethod
    def open(self, offset: int = 0) -> BinaryIO:
        """A new binary file object that starts at `offset` bytes."""

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `offset` (all the rest when None).

        Raises
        ------
        SourceChanged
            When there are fewer.
        """
        wanted = self.size - offset if length is None else length
        with self.open(offset) as file:
            parts = []
            missing = wanted
            while missing > 0:
                data = file.read(missing)
                if not data:
                    raise SourceChanged(f"{self} became shorter while it was read")
                parts.append(data)
                missing -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class BytesSource(Source):
    """Bytes in memory."""

    trusted = True

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def open(self, offset: int = 0) -> BinaryIO:
        file = io.BytesIO(self.data)
        file.seek(offset)
        return file

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        if offset == 0 and (length is None or length == self.size):
            return self.data
        end = self.size if length is None else offset + length
        return self.data[offset:end]

    def __str__(self) -> str:
        return f"{self.size} bytes in memory"


class FileSource(Source):
    """A file on the disk.

    Pass ``trusted=True`` only for files that nobody can change, such as those of the cache.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, size: int | None = None, trusted: bool = False
    ) -> None:
        self.path = Path(path)
        self.trusted = trusted
        self.size = os.stat(path).st_size if size is None else size

    def open(self, offset: int = 0) -> BinaryIO:
        assert self.path is not None
        file = open_regular(self.path)
        if offset:
            file.seek(offset)
        return file

    def __str__(self) -> str:
        return repr(str(self.path))


class StreamSource(Source):
    """Bytes that a callable delivers, such as the copy of a file on another host.

    `start(offset)` returns an iterator of bytes from that offset to the end.
    """

    def __init__(self, start: Callable[[int], Iterator[bytes]], *, size: int, label: str) -> None:
        self._start = start
        self._label = label
        self.size = size

    def open(self, offset: int = 0) -> BinaryIO:
        return io.BufferedReader(_IteratorIO(self._start(offset)), BLOCK)

    def __str__(self) -> str:
        return self._label


class _IteratorIO(io.RawIOBase):
    """An iterator of bytes as a raw binary file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        closing = getattr(self._blocks, "close", None)
        if closing is not None and not self.closed:
            closing()
        super().close()


class HashedReader(io.RawIOBase):
    """A file object over a whole `source` that checks it on the way.

    It reads exactly ``source.size`` bytes. Before it hands over the last block it has
    compared size and hash, so that a consumer never sees a whole wrong file.

    Raises
    ------
    SourceChanged
        From `read`, when the bytes do not hash to `sha256`, are fewer or more, or cannot be
        read any more.
    """

    def __init__(self, source: Source, sha256: str) -> None:
        self._source = source
        self._file = source.open()
        self._digest = hashlib.sha256()
        self._sha256 = sha256
        self._left = source.size
        self._checked = False

    def readable(self) -> bool:
        return True

    def __len__(self) -> int:
        return self._source.size

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        parts = []
        while wanted:
            data = self._read(wanted)
            if not data:
                raise SourceChanged(f"{self._source} became shorter while it was read")
            parts.append(data)
            wanted -= len(data)
            self._left -= len(data)
            self._digest.update(data)
        if not self._left and not self._checked:
            if self._read(1):
                raise SourceChanged(f"{self._source} grew while it was read")
            if self._digest.hexdigest() != self._sha256:
                raise SourceChanged(f"{self._source} changed while it was read")
            self._checked = True
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as exc:
            # A host has errors of the system too: these are not its own.
            raise SourceChanged(
                f"{self._source} cannot be read any more: {exc.strerror or exc}; upload it again"
            ) from exc

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
