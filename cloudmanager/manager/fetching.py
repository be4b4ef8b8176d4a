"""The way out: the right bytes from whichever host still has them."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cloudmanager.errors import HostError, IntegrityError, NoGoodCopy, ObjectNotFound
from cloudmanager.hashing import sha256_of_bytes
from cloudmanager.hosts import Host
from cloudmanager.hosts.base import OnBytes
from cloudmanager.manager import staging
from cloudmanager.manager.ring import Ring
from cloudmanager.manager.staging import SMALL
from cloudmanager.model import UploadRecord

__all__ = ["Fetcher", "Spoiled", "write_new"]

log = logging.getLogger(__name__)
T = TypeVar("T")

SEGMENT = 8 * 1024 * 1024
"""Bytes of one ranged read of a large file."""

_AHEAD = 8
"""Segments in flight or waiting to be hashed: bounds the memory to 64 MiB a file."""

_IN_SEGMENTS = 4 * SEGMENT


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A copy that turned out missing or wrong, and what the catalog should now say of it."""

    host: Host
    record: UploadRecord


class Fetcher:
    """Reads copies, verifies every byte, and falls through to the next host."""

    def __init__(self, ring: Ring, *, streams: int) -> None:
        self._ring = ring
        self._segments = ThreadPoolExecutor(streams, thread_name_prefix="get")

    def copies(self, uploads: Sequence[UploadRecord]) -> list[tuple[Host, UploadRecord]]:
        """The copies that can be read here, best first.

        Hosts in order of preference; those in their cool-down, and copies that once
        failed, last: better a slow try than none.
        """
        found = []
        for upload in uploads:
            if not upload.location or upload.status == "removing":
                continue
            host = self._ring.owner(upload)
            if host is not None:
                found.append((host, upload))
        if len(found) > 1:
            found.sort(key=self._order)
        return found

    def _order(self, copy: tuple[Host, UploadRecord]) -> tuple[bool, bool, bool, int]:
        host, upload = copy
        spoiled = upload.status == "failed"
        return spoiled, self._ring.resting(host), upload.external, self._ring.rank(host)

    def _in_turn(self, uploads: Sequence[UploadRecord]) -> Iterator[tuple[Host, UploadRecord]]:
        """The copies, best first; of a host whose cool-down is just over only one call tries
        it, and the others come back to it when nothing else is left."""
        later = []
        for host, upload in self.copies(uploads):
            if self._ring.available(host):
                yield host, upload
            else:
                later.append((host, upload))
        yield from later

    def into(
        self,
        path: Path,
        sha256: str,
        size: int,
        uploads: Sequence[UploadRecord],
        on_bytes: OnBytes,
    ) -> list[Spoiled]:
        """Write the file to `path`, verified; the copies that were met and found spoiled.

        Raises
        ------
        NoGoodCopy
            When no host could give the right bytes; its `spoiled` are `Spoiled`.
        """
        if size <= SMALL:
            data, spoiled = self.read(sha256, size, uploads, on_bytes)
            with staging.one_at_a_time:
                fd = _open_new(path)
                try:
                    _write_all(fd, data)
                finally:
                    os.close(fd)
            return spoiled

        def pull(host: Host, location: str) -> None:
            self._pull(host, location, path, sha256, size, on_bytes)

        return self._from_any(sha256, uploads, pull)[1]

    def read(
        self, sha256: str, size: int, uploads: Sequence[UploadRecord], on_bytes: OnBytes
    ) -> tuple[bytes, list[Spoiled]]:
        """The verified bytes of a small file, and the copies that were found spoiled.

        Raises
        ------
        NoGoodCopy
            As `into` does.
        """

        def read(host: Host, location: str) -> bytes:
            data = host.read(location, limit=size)
            on_bytes(len(data))
            if len(data) != size:
                raise _too_short(host, location, len(data), size)
            if sha256_of_bytes(data) != sha256:
                raise _wrong(host, location)
            return data

        return self._from_any(sha256, uploads, read)

    def _from_any(
        self, sha256: str, uploads: Sequence[UploadRecord], get: Callable[[Host, str], T]
    ) -> tuple[T, list[Spoiled]]:
        """What `get(host, location)` returns for the first copy with which it works."""
        errors: list[HostError] = []
        spoiled: list[Spoiled] = []
        for host, upload in self._in_turn(uploads):
            try:
                got = get(host, upload.location)
            except HostError as exc:
                log.warning("%s", exc)
                errors.append(exc)
                self._ring.failed(host, exc)
                if (record := _spoiled(upload, exc)) is not None:
                    spoiled.append(Spoiled(host, record))
                continue
            self._ring.worked(host)
            return got, spoiled
        raise NoGoodCopy(sha256, errors, spoiled)

    def stream(
        self, sha256: str, size: int, uploads: Sequence[UploadRecord], offset: int = 0
    ) -> Iterator[bytes]:
        """The bytes from `offset`, falling through to other hosts where they break off.

        Only lengths are checked: whoever needs the hash checked hashes them.
        """
        position = offset
        errors: list[HostError] = []
        for host, upload in self.copies(uploads):
            if position > 0 and not host.capabilities.range_read:
                blocks = _skip(host.get(upload.location), position)
            elif position > 0:
                blocks = host.get(upload.location, offset=position)
            else:
                blocks = host.get(upload.location)
            try:
                for block in blocks:
                    position += len(block)
                    if position > size:
                        raise IntegrityError(
                            f"it has more than the {size} bytes it should have",
                            host=host.name,
                            operation="get",
                            location=upload.location,
                        )
                    yield block
                if position == size:
                    return
                raise _too_short(host, upload.location, position, size)
            except HostError as exc:
                log.warning("%s", exc)
                errors.append(exc)
                self._ring.failed(host, exc)
        raise NoGoodCopy(sha256, errors)

    def range(
        self, sha256: str, uploads: Sequence[UploadRecord], offset: int, length: int
    ) -> bytes:
        """`length` bytes from `offset`, from the first host that gives so many."""
        errors: list[HostError] = []
        for host, upload in self.copies(uploads):
            if not host.capabilities.range_read:
                continue
            try:
                data = b"".join(host.get(upload.location, offset=offset, length=length))
                if len(data) != length:
                    raise _too_short(host, upload.location, offset + len(data), offset + length)
            except HostError as exc:
                log.warning("%s", exc)
                errors.append(exc)
                self._ring.failed(host, exc)
                continue
            self._ring.worked(host)
            return data
        raise NoGoodCopy(sha256, errors)

    def ranged(self, uploads: Sequence[UploadRecord]) -> bool:
        """Whether any copy lies on a host that reads ranges."""
        return any(host.capabilities.range_read for host, _ in self.copies(uploads))

    def close(self) -> None:
        self._segments.shutdown(wait=False, cancel_futures=True)

    # -- how -----------------------------------------------------------------------------

    def _pull(
        self, host: Host, location: str, path: Path, sha256: str, size: int, on_bytes: OnBytes
    ) -> None:
        fd = _open_new(path)
        try:
            if size >= _IN_SEGMENTS and host.capabilities.range_read:
                digest = self._in_segments(host, location, fd, size, on_bytes)
            else:
                digest = self._in_one(host, location, fd, size, on_bytes)
        finally:
            os.close(fd)
        if digest != sha256:
            raise _wrong(host, location)

    def _blocks(self, host: Host, location: str, size: int, on_bytes: OnBytes) -> Iterator[bytes]:
        """The bytes of an object that has to have `size` of them."""
        total = 0
        for block in host.get(location):
            total += len(block)
            if total > size:
                raise IntegrityError(
                    f"it has more than the {size} bytes it should have",
                    host=host.name,
                    operation="get",
                    location=location,
                )
            yield block
            on_bytes(len(block))
        if total != size:
            raise _too_short(host, location, total, size)

    def _in_one(self, host: Host, location: str, fd: int, size: int, on_bytes: OnBytes) -> str:
        digest = hashlib.sha256()
        for block in self._blocks(host, location, size, on_bytes):
            digest.update(block)
            _write_all(fd, block)
        return digest.hexdigest()

    def _in_segments(self, host: Host, location: str, fd: int, size: int, on_bytes: OnBytes) -> str:
        """Several ranges at once, written and hashed in their order by this thread.

        Written by the threads that receive them they would wait for each other at the lock of
        the file, and lie on the disk in pieces.
        """

        def read(offset: int) -> list[bytes]:
            length = min(SEGMENT, size - offset)
            blocks = []
            position = offset
            for block in host.get(location, offset=offset, length=length):
                if position + len(block) > offset + length:
                    raise IntegrityError(
                        "it answered with more than the range",
                        host=host.name,
                        operation="get",
                        location=location,
                    )
                position += len(block)
                blocks.append(block)
                on_bytes(len(block))
            if position != offset + length:
                raise _too_short(host, location, position, size)
            return blocks

        digest = hashlib.sha256()
        ahead: deque[Future[list[bytes]]] = deque()
        offsets = iter(range(0, size, SEGMENT))
        try:
            while True:
                for offset in islice(offsets, _AHEAD - len(ahead)):
                    ahead.append(self._segments.submit(read, offset))
                if not ahead:
                    return digest.hexdigest()
                for block in ahead.popleft().result():
                    _write_all(fd, block)
                    digest.update(block)
        finally:
            for future in ahead:
                future.cancel()


def write_new(path: str | os.PathLike[str], data: bytes, mode: int) -> None:
    """Create a file that is not there yet, and write `data` into it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def _open_new(path: Path) -> int:
    """Open the file that is to be filled, which another host may have begun to fill.

    Not truncated: what is there is never longer than what is written over it. And ext4 flushes
    a file that was truncated, even an empty one, when it is closed ("auto_da_alloc"), which
    takes half as long as fetching it.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _skip(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        if count >= len(block):
            count -= len(block)
            continue
        yield block[count:]
        count = 0


def _wrong(host: Host, location: str) -> IntegrityError:
    return IntegrityError(
        "its bytes do not have that hash there",
        host=host.name,
        operation="get",
        location=location,
    )


def _too_short(host: Host, location: str, found: int, size: int) -> IntegrityError:
    return IntegrityError(
        f"it ended after {found} of {size} bytes",
        host=host.name,
        operation="get",
        location=location,
    )


def _spoiled(upload: UploadRecord, exc: HostError) -> UploadRecord | None:
    """What to record of a copy that failed; None when the failure says nothing about it."""
    if isinstance(exc, ObjectNotFound):
        verdict = "missing"
    elif isinstance(exc, IntegrityError):
        verdict = "wrong"
    else:
        return None
    return replace(
        upload,
        status="stored" if upload.external else "failed",
        verdict=verdict,
        error=str(exc),
        verified_at=time.time(),
    )
