"""Reading the files to upload: hashed and, where it fits, copied into the cache in one pass."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cloudmanager.cache import Cache, Reservation
from cloudmanager.errors import CacheError, SourceChanged
from cloudmanager.hashing import BLOCK, sha256_of_bytes
from cloudmanager.manager.copying import copy_and_hash
from cloudmanager.source import BytesSource, FileSource, Source, open_descriptor, open_regular

__all__ = ["SMALL", "Staged", "Stager"]

log = logging.getLogger(__name__)

SMALL = 1024 * 1024
"""Files up to so many bytes are read whole and handled in batches."""

one_at_a_time = threading.Lock()
"""Held while small files are read, hashed, written and renamed.

These are system calls of microseconds each, before and after which Python's global lock
changes hands. With sixteen threads at it, waiting for that lock costs several times the
work itself; the threads are for waiting for hosts. Take it by the module's name: a forked
child gets another one, as a thread that it does not have may hold the parent's.
"""


def _forked() -> None:
    global one_at_a_time
    one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_forked)

Check = Callable[[], None]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class Staged:
    """A file that was read: its hash, and from where its bytes can be sent.

    `reservation` holds its copy in the cache, not yet under its name; None when the file is
    not cached. `spool` is a temporary file of our own, to be deleted.
    """

    path: str
    name: str
    sha256: str
    source: Source
    reservation: Reservation | None = None
    spool: Path | None = None

    @property
    def size(self) -> int:
        return self.source.size

    def discard(self) -> None:
        """Give back the room in the cache and the spooled file."""
        if self.reservation is not None:
            self.reservation.abort()
            self.reservation = None
        if self.spool is not None:
            self.spool.unlink(missing_ok=True)
            self.spool = None


class Stager:
    """Reads sources. `check()` is called often and raises when the work is to end."""

    def __init__(self, cache: Cache, check: Check) -> None:
        self._cache = cache
        self._check = check

    def small(self, paths: Sequence[tuple[str, int]]) -> list[Staged | Exception]:
        """Stage files of at most `SMALL` bytes: `paths` are (path, size) pairs.

        One entry per path, an exception where a file could not be read. All the room in
        the cache is reserved at once.
        """
        with one_at_a_time:
            return self._small(paths)

    def _small(self, paths: Sequence[tuple[str, int]]) -> list[Staged | Exception]:
        read: list[tuple[str, bytes] | Exception] = []
        for path, _ in paths:
            try:
                read.append((path, _read_whole(path)))
            except (OSError, SourceChanged, ValueError) as exc:
                read.append(exc)
            except Exception as exc:  # noqa: BLE001 - one bad file does not stop the rest
                read.append(exc)
        self._check()
        good = [entry for entry in read if not isinstance(entry, Exception)]
        reservations = iter(self._reserve_all([len(data) for _, data in good]))
        staged: list[Staged | Exception] = []
        for entry in read:
            if isinstance(entry, Exception):
                staged.append(entry)
                continue
            path, data = entry
            item = Staged(path, _name_of(path), sha256_of_bytes(data), BytesSource(data))
            reservation = next(reservations)
            if reservation is not None:
                item.reservation = self._write_small(reservation, data)
            staged.append(item)
        return staged

    def large(self, path: str) -> Staged:
        """Stage one file of any size.

        Raises
        ------
        FileNotFoundError, PermissionError, NotARegularFile, SourceChanged
        """
        with open_regular(path) as file:
            before = os.fstat(file.fileno())
            reservation = self._reserve(before.st_size)
            try:
                if reservation is None:
                    sha256 = self._hash(file, before.st_size)
                else:
                    try:
                        with _open_new(reservation.path) as copy:
                            sha256 = copy_and_hash(
                                file.fileno(), copy.fileno(), before.st_size, self._check
                            )
                    except OSError as exc:
                        if exc.errno not in _FULL:
                            raise
                        # No disk for a cached copy is no reason not to store the file.
                        log.warning("no room on the cache's disk for %r: %s", path, exc.strerror)
                        reservation.abort()
                        reservation = None
                        sha256 = self._hash(file, before.st_size)
                _require_unchanged(path, before, os.fstat(file.fileno()))
            except BaseException:
                if reservation is not None:
                    reservation.abort()
                raise
        source = (
            FileSource(path, size=before.st_size)
            if reservation is None
            else FileSource(reservation.path, size=before.st_size, trusted=True)
        )
        return Staged(path, _name_of(path), sha256, source, reservation)

    def stream(self, file: BinaryIO, name: str) -> Staged:
        """Stage what a pipe delivers, whose size nobody knows beforehand."""
        digest = hashlib.sha256()
        size = 0
        reservation = self._reserve(SMALL)
        target: BinaryIO | None = None
        spool: Path | None = None
        try:
            if reservation is not None:
                # Without a buffer: what a full disk refused must not be written again by close.
                target = _open_new(reservation.path, buffering=0)
            while data := file.read(BLOCK):
                self._check()
                if reservation is not None and not (
                    _has_room(reservation, size + len(data)) and _written(target, data)
                ):
                    assert target is not None
                    target.close()
                    target, spool = _spool(reservation.path, size)
                    reservation.abort()
                    reservation = None
                    target.write(data)
                elif reservation is None:
                    if target is None:
                        target, spool = _spool()
                    target.write(data)
                digest.update(data)
                size += len(data)
            if target is None:
                target, spool = _spool()
            target.close()
            if reservation is not None:
                reservation.resize(size)
        except BaseException:
            if target is not None:
                target.close()
            if reservation is not None:
                reservation.abort()
            if spool is not None:
                spool.unlink(missing_ok=True)
            raise
        where = spool if reservation is None else reservation.path
        assert where is not None
        source = FileSource(where, size=size, trusted=True)
        return Staged("-", name, digest.hexdigest(), source, reservation, spool)

    # -- how -----------------------------------------------------------------------------

    def _reserve(self, size: int) -> Reservation | None:
        """Room in the cache, or None: then the file goes straight to the hosts."""
        try:
            return self._cache.reserve(size)
        except CacheError as exc:
            log.info("not cached: %s", exc)
            return None

    def _reserve_all(self, sizes: Sequence[int]) -> list[Reservation | None]:
        if not sizes:
            return []
        try:
            return list(self._cache.reserve_many(sizes))
        except CacheError:
            return [self._reserve(size) for size in sizes]

    def _write_small(self, reservation: Reservation, data: bytes) -> Reservation | None:
        try:
            fd = os.open(
                reservation.name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o444
            )
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            finally:
                os.close(fd)
        except OSError as exc:
            reservation.abort()
            log.warning("not cached: writing %s: %s", reservation.name, exc.strerror)
            return None
        return reservation

    def _hash(self, file: BinaryIO, size: int) -> str:
        """Read exactly `size` bytes and hash them."""
        digest = hashlib.sha256()
        view = memoryview(bytearray(BLOCK))
        left = size
        while left:
            self._check()
            count = file.readinto(view[: min(BLOCK, left)])  # type: ignore[attr-defined]
            if not count:
                raise SourceChanged("the file became shorter while it was read")
            digest.update(view[:count])
            left -= count
        return digest.hexdigest()


def _open_new(path: Path, buffering: int = BLOCK) -> BinaryIO:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "wb", buffering=buffering)


def _has_room(reservation: Reservation, size: int) -> bool:
    """Make a reservation hold `size` bytes, and some in advance; False when there is no room."""
    if size <= reservation.size:
        return True
    for wanted in (max(size, 2 * reservation.size), size):
        try:
            reservation.resize(wanted)
        except CacheError as exc:
            log.debug("%s", exc)
        else:
            return True
    return False


def _written(target: BinaryIO | None, data: bytes) -> bool:
    """Write all of `data` at once; False when the disk is full."""
    assert target is not None
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[target.write(rest) :]
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        log.warning("no room on the cache's disk: %s", exc.strerror)
        return False
    return True


def _spool(begun: Path | None = None, size: int = 0) -> tuple[BinaryIO, Path]:
    """A temporary file outside the cache, starting with the first `size` bytes of `begun`."""
    fd, name = tempfile.mkstemp(prefix="cloudmanager-")
    file = os.fdopen(fd, "wb", buffering=BLOCK)
    try:
        if begun is not None:
            with open_regular(begun) as old:
                while size and (data := old.read(min(BLOCK, size))):
                    file.write(data)
                    size -= len(data)
    except BaseException:
        file.close()
        os.unlink(name)
        raise
    return file, Path(name)


def _read_whole(path: str) -> bytes:
    fd, before = open_descriptor(path)
    try:
        if before.st_size > SMALL:  # it was not when it was put into a batch of small ones
            raise SourceChanged(f"{path!r} grew before it was read; upload it again")
        data = os.read(fd, before.st_size + 1)
        while 0 < len(data) < before.st_size and (more := os.read(fd, before.st_size - len(data))):
            data += more  # a network file system may give less than it has
        if len(data) != before.st_size:
            raise SourceChanged(f"{path!r} changed while it was read; upload it again")
        _require_unchanged(path, before, os.fstat(fd))
    finally:
        os.close(fd)
    return data


def _require_unchanged(path: str, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise SourceChanged(f"{path!r} changed while it was read; upload it again")


def _name_of(path: str) -> str:
    return os.path.basename(path.rstrip("/")) or "file"
