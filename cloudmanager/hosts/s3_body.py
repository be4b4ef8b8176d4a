"""Request bodies for boto3 that read from a source as they are sent."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from cloudmanager.errors import CloudManagerError
from cloudmanager.source import HashedReader, Source

__all__ = ["PartBody", "WholeBody"]

PIECE = 256 * 1024
"""Bytes handed to the socket at a time.

The HTTP library asks for 16 KiB at a time, which costs a tenth of the speed, and a body that
is one `bytes` would be sent by one `sendall`, to the whole of which Python applies the time
limit: 16 MiB would fail on every line slower than 7 Mbit/s. In pieces the limit means what
it says, silence.
"""


class PartBody(io.BytesIO):
    """Bytes in memory, sent in pieces until `cut` is set."""

    def __init__(self, data: bytes, cut: threading.Event) -> None:
        super().__init__(data)
        self._size = len(data)
        self._cut = cut

    def __len__(self) -> int:
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        if self._cut.is_set():
            raise InterruptedError("the transfer was ended")
        return super().read(size if size is None or size < 0 else max(size, PIECE))


class WholeBody(io.RawIOBase):
    """A whole source, opened again for each reading.

    With `sha256` every reading checks the hash before it hands over the last piece, so that a
    server never gets the whole of a wrong file.
    """

    def __init__(self, source: Source, sha256: str | None) -> None:
        self._source = source
        self._sha256 = sha256
        self._file: BinaryIO | None = None
        self._position = 0
        self._error: BaseException | None = None
        self._md5: bytes | None = None
        self._hashing = hashlib.md5(usedforsecurity=False)

    def __len__(self) -> int:
        return self._source.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Only to the start, which is all that sending again needs, or to the end."""
        if (offset, whence) == (0, io.SEEK_END):
            self._position = self._source.size
        elif (offset, whence) == (0, io.SEEK_SET):
            self._rewind()
        elif (offset, whence) != (self._position, io.SEEK_SET):
            raise io.UnsupportedOperation("a body can be sent from its start only")
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = self._source.size - self._position
        if left <= 0:
            return b""
        wanted = left if size is None or size < 0 else min(left, max(size, PIECE))
        try:
            if self._file is None:
                self._open()
            assert self._file is not None
            data = self._file.read(wanted)
            if not data:
                # Raises SourceChanged, in the words of every other short source.
                self._source.read(self._position, left)
        except BaseException as exc:
            self._error = exc
            raise
        self._position += len(data)
        if self._md5 is None:
            self._hashing.update(data)
            if self._position == self._source.size:
                self._md5 = self._hashing.digest()
        return data

    def md5(self) -> bytes:
        """The MD5 of the body; computed on the way, when it was read to its end once."""
        if self._source.size == 0:
            return self._hashing.digest()
        if self._md5 is None:
            self._rewind()
            while self._md5 is None:
                self.read(PIECE)
            self._rewind()
        return self._md5

    @contextmanager
    def its_errors(self) -> Iterator[None]:
        """Let an error of the source through that the HTTP library has wrapped."""
        try:
            yield
        except Exception as exc:
            if self._error is None or exc is self._error:
                raise
            if isinstance(self._error, CloudManagerError | OSError):
                raise self._error from exc
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _open(self) -> None:
        if self._sha256 is not None:
            self._file = cast(BinaryIO, HashedReader(self._source, self._sha256))
        else:
            self._file = self._source.open()

    def _rewind(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._position = 0
        if self._md5 is None:
            self._hashing = hashlib.md5(usedforsecurity=False)
