"""A file of the pool as a binary file object, read in ranges without fetching the whole."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import BinaryIO

from cloudmanager.errors import IntegrityError, NoGoodCopy

__all__ = ["PinnedFile", "RemoteFile"]

_WINDOW = 1024 * 1024


class PinnedFile(io.FileIO):
    """A file of the cache, open for reading; it is not evicted until it is closed."""

    def __init__(self, path: str | os.PathLike[str], pin: ExitStack) -> None:
        self._pin = pin
        super().__init__(path, "rb")

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._pin.close()


class RemoteFile(io.RawIOBase):
    """Reads ranges of at least 1 MiB from the hosts, as they are asked for.

    Whoever reads it from the start to the end gets verified bytes: the last block is handed
    over only when the hash of all is right. Single ranges cannot be verified against the
    hash of the whole; only their length is.

    Parameters
    ----------
    read_range:
        ``read_range(offset, length)`` gives exactly so many bytes, or raises.
    """

    def __init__(self, sha256: str, size: int, read_range: Callable[[int, int], bytes]) -> None:
        self._sha256 = sha256
        self._size = size
        self._read_range = read_range
        self._position = 0
        self._window = b""
        self._window_start = 0
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._wrong = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position: {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self.closed:
            raise ValueError("I/O operation on closed file")
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        start = self._position - self._window_start
        if not 0 <= start < len(self._window):
            if self._wrong:
                # Asked again it must not get the block that was just refused.
                raise self._refusal()
            length = min(max(wanted, _WINDOW), self._size - self._position)
            self._window = self._read_range(self._position, length)
            self._window_start = self._position
            start = 0
            self._verify()
        data = self._window[start : start + wanted]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _verify(self) -> None:
        """Hash what is read in order; at the end it must be the file."""
        end = self._window_start + len(self._window)
        if self._window_start == 0:  # read once more from the start, maybe from another host
            self._digest, self._hashed = hashlib.sha256(), 0
        if self._window_start <= self._hashed < end:
            self._digest.update(memoryview(self._window)[self._hashed - self._window_start :])
            self._hashed = end
            if end == self._size and self._digest.hexdigest() != self._sha256:
                self._window, self._wrong = b"", True
                raise self._refusal()

    def _refusal(self) -> NoGoodCopy:
        wrong = IntegrityError(
            "what was read from start to end does not have that hash; "
            "download the file to get it from another host",
            host="(the one it was read from)",
            operation="open",
            location=self._sha256,
        )
        return NoGoodCopy(self._sha256, [wrong])


def buffered(raw: io.RawIOBase) -> BinaryIO:
    """A raw file with a buffer, so that small reads stay cheap."""
    return io.BufferedReader(raw)
