"""Space that was set aside in the cache, and the file that is being written into it."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from .layout import Border

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["Ledger", "Reservation", "ReservedFile"]


class Ledger(Protocol):
    """What a reservation needs of its cache."""

    where: str
    """The cache directory, for messages."""

    def commit(self, reservation: Reservation, sha256: str, *, owed: bool) -> Path: ...

    def resize(self, reservation: Reservation, size: int) -> None: ...

    def abort(self, reservation: Reservation) -> None: ...


class Reservation:
    """`size` bytes of the cache, and `name`, the path where a file of at most that size may be
    written; `path` is the same as a `Path`.

    The file is in the cache directory, on its file system. Who writes it without `open` has
    to keep to `size` himself. Leaving the with-block without `commit` aborts.
    """

    __slots__ = ("_ledger", "active", "name", "size")

    def __init__(self, ledger: Ledger, name: str, size: int) -> None:
        self._ledger = ledger
        self.name = name
        self.size = size
        self.active = True

    @property
    def path(self) -> Path:
        return Path(self.name)

    def open(self) -> ReservedFile:
        """Create the file, or open it again, for writing at most `size` bytes."""
        return ReservedFile(self.name, lambda: self.size, self._ledger.where)

    def commit(self, sha256: str, *, owed: bool = False) -> Path:
        """Make the file available under its hash, which the caller has verified; its path.

        When the same content is there already, that is kept and this space freed. With
        `owed` it is pinned durably, see `Cache.owe`, before this returns.

        Raises
        ------
        ValueError
            When nothing was written, or more than `size` bytes.
        CacheUnusable
            When the directory cannot be written.
        """
        return self._ledger.commit(self, sha256, owed=owed)

    def resize(self, size: int) -> None:
        """Grow, which may evict, or shrink to no less than what is written; `size` in bytes.

        Raises
        ------
        CacheFull
            When there is no room to grow; the reservation stays as it was.
        ValueError
            When the file is larger than `size` already.
        """
        self._ledger.resize(self, size)

    def abort(self) -> None:
        """Delete the file and free the space. After a commit or an abort it does nothing."""
        self._ledger.abort(self)

    def written(self) -> os.stat_result | None:
        """The file as it is now; None when it was not created.

        Raises
        ------
        ValueError
            When it is no regular file.
        """
        try:
            found = os.stat(self.name, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"not a regular file: {self.name}")
        return found

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class ReservedFile(io.RawIOBase):
    """A file that refuses to grow beyond what was reserved for it. Unbuffered.

    `write` appends at the position, `write_at` takes an offset and is safe in threads.
    """

    def __init__(self, path: str, limit: Callable[[], int], directory: str) -> None:
        super().__init__()
        self._limit = limit
        self._border = Border(directory, "writing a file")
        self._gate = threading.Lock()
        self._position = 0
        with self._border:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of `data`, unlike other raw files; the number of bytes.

        Raises
        ------
        ValueError
            When the file would become larger than its reservation; nothing was written.
        CacheUnusable
            When the disk is full or fails.
        """
        with self._gate:
            size = self.write_at(data, self._position)
            self._position += size
            return size

    def write_at(self, data: ReadableBuffer, offset: int) -> int:
        """Write all of `data` at `offset`; like `write`, without using the position."""
        self._check_open()
        view = memoryview(data).cast("B")
        limit = self._limit()
        if offset < 0 or offset + len(view) > limit:
            raise ValueError(
                f"writing {len(view)} bytes at {offset} into a reservation of {limit} bytes"
            )
        written = 0
        with self._border:
            while written < len(view):
                written += os.pwrite(self._fd, view[written:], offset + written)
        return written

    def readinto(self, buffer: object, /) -> int:
        self._check_open()
        with self._gate, memoryview(buffer).cast("B") as view:  # type: ignore[arg-type]
            size = os.preadv(self._fd, [view], self._position)
            self._position += size
            return size

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        if base is None:
            base = os.fstat(self._fd).st_size
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        self._check_open()
        size = self._position if size is None else size
        if size > self._limit():
            raise ValueError(f"truncating to {size} in a reservation of {self._limit()} bytes")
        with self._border:
            os.ftruncate(self._fd, size)
        return size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        self._check_open()
        return self._fd

    def close(self) -> None:
        if not self.closed:
            super().close()
            with contextlib.suppress(AttributeError):  # opening it had failed
                os.close(self._fd)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
