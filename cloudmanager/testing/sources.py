"""Sources that a host may meet: that give little at a time, break, lie, or get stuck."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable
from typing import BinaryIO, cast

from cloudmanager.source import Source

__all__ = ["BrokenSource", "LooseSource", "PausedSource"]


class LooseSource(Source):
    """Bytes that nobody vouches for. `size` is what it claims, `piece` the most a read gives."""

    def __init__(self, data: bytes, *, size: int | None = None, piece: int = 1 << 20) -> None:
        self.data = data
        self.size = len(data) if size is None else size
        self._piece = piece

    def open(self, offset: int = 0) -> BinaryIO:
        # Unbuffered, as an opened file is: a read may give less than it was asked for.
        return cast(BinaryIO, _Reader(self.data, offset, self._piece, self.passing))

    def passing(self, position: int) -> None:
        """Called before the bytes from `position` are given."""

    def __str__(self) -> str:
        return f"{self.size} bytes of a test"


class BrokenSource(LooseSource):
    """A file on a disk that fails in the middle."""

    def passing(self, position: int) -> None:
        if position >= self.size // 2:
            raise OSError(errno.EIO, "Input/output error")


class PausedSource(LooseSource):
    """A source that gets stuck in the middle, until `resume`, or for `patience` seconds.

    `reached` is set when somebody waits for its second half.
    """

    def __init__(self, data: bytes, *, patience: float) -> None:
        super().__init__(data)
        self.reached = threading.Event()
        self._resumed = threading.Event()
        self._patience = patience

    def passing(self, position: int) -> None:
        if position >= self.size // 2:
            self.reached.set()
            if not self._resumed.wait(self._patience):
                raise OSError(errno.ETIMEDOUT, "nobody resumed the source")

    def resume(self) -> None:
        self._resumed.set()


class _Reader(io.RawIOBase):
    """Bytes from `offset` on, at most `piece` of them at a time and never across the middle."""

    def __init__(
        self, data: bytes, offset: int, piece: int, passing: Callable[[int], None]
    ) -> None:
        self._data = memoryview(data)
        self._position = offset
        self._piece = piece
        self._passing = passing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._passing(self._position)
        count = min(len(buffer), self._piece, len(self._data) - self._position)
        half = len(self._data) // 2
        if self._position < half:
            count = min(count, half - self._position)
        count = max(count, 0)
        buffer[:count] = self._data[self._position : self._position + count]
        self._position += count
        return count
