"""A large file into the cache: copied, and hashed from the copy.

The hash is that of the bytes that will be sent and kept, whatever happens to the source
meanwhile. Where the kernel can copy by itself the bytes of the source never enter this
process; reading them here and writing them back took half as much CPU again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator

from cloudmanager.errors import SourceChanged

__all__ = ["copy_and_hash"]

_PIECE = 8 * 1024 * 1024
_BLOCK = 256 * 1024
_AHEAD = 8
"""Pieces that the copy may be ahead of the hash, so that they are still in memory then."""

_CANNOT = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}
)
"""What the kernel says where it cannot copy between these two files; copy(2) by hand then."""


def copy_and_hash(source: int, target: int, size: int, check: Callable[[], None]) -> str:
    """Copy the first `size` bytes between two descriptors; the SHA-256 of what arrived.

    `target` is empty and open for reading and writing. `check()` is called before each piece
    and raises when the work is to end.

    Raises
    ------
    SourceChanged
        When the source has fewer bytes.
    OSError
        From reading or writing.
    """
    digest = hashlib.sha256()
    view = memoryview(bytearray(_BLOCK))

    def hash_piece(offset: int, count: int) -> None:
        while count:
            read = os.preadv(target, [view[: min(_BLOCK, count)]], offset)
            if not read:
                raise OSError(errno.EIO, "the copy in the cache is shorter than what was written")
            digest.update(view[:read])
            offset += read
            count -= read

    if size <= _PIECE:
        for offset, count in _copied(source, target, size, check):
            hash_piece(offset, count)
        return digest.hexdigest()

    pieces: queue.Queue[tuple[int, int] | None] = queue.Queue(_AHEAD)
    failures: list[OSError] = []

    def follow() -> None:
        while (piece := pieces.get()) is not None:
            if not failures:  # else only let the copying thread come to its end
                try:
                    hash_piece(*piece)
                except OSError as exc:
                    failures.append(exc)

    follower = threading.Thread(target=follow, name="hash", daemon=True)
    follower.start()
    try:
        for piece in _copied(source, target, size, check):
            if failures:
                break
            pieces.put(piece)
    finally:
        pieces.put(None)
        follower.join()
    if failures:
        raise failures[0]
    return digest.hexdigest()


def _copied(
    source: int, target: int, size: int, check: Callable[[], None]
) -> Iterator[tuple[int, int]]:
    """Copy; the (offset, count) of each piece once it has arrived."""
    offset = 0
    in_kernel = sys.platform == "linux"
    while offset < size:
        check()
        count = 0
        wanted = min(_PIECE, size - offset)
        if sys.platform == "linux" and in_kernel:
            try:
                count = os.copy_file_range(source, target, wanted, offset, offset)
            except OSError as exc:
                if exc.errno not in _CANNOT:
                    raise
            # Nothing copied is the end of the file, or a file system that cannot do it and does
            # not say so: reading it tells.
            in_kernel = count > 0
        if not count:
            count = _copy_by_hand(source, target, min(_BLOCK, wanted), offset)
        yield offset, count
        offset += count


def _copy_by_hand(source: int, target: int, wanted: int, offset: int) -> int:
    data = os.pread(source, wanted, offset)
    if not data:
        raise SourceChanged("the file became shorter while it was read")
    written = 0
    while written < len(data):
        written += os.pwrite(target, memoryview(data)[written:], offset + written)
    return written
