"""A bandwidth limit as a host around a host."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.hosts.wrapped import WrappedHost
from cloudmanager.model import ObjectInfo
from cloudmanager.source import Source

__all__ = ["Limiter", "ThrottledHost"]

_PIECE = 64 * 1024


class Limiter:
    """Lets so many bytes pass in a second, whoever asks. Thread-safe.

    Whoever takes bytes waits until they are due; the next one's turn comes after that. A pause
    is not made up for by a burst.

    Parameters
    ----------
    rate:
        Bytes a second.
    clock, sleep:
        Seconds that never go back; `sleep` may return early to end the waiting, as
        ``threading.Event.wait`` does when a pool is cancelled.
    """

    def __init__(
        self,
        rate: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"a bandwidth limit is more than nothing: {rate}")
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, size: int) -> None:
        """Wait for the turn of `size` bytes."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self.rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)


class ThrottledHost(WrappedHost):
    """The same host, but its payload passes a `Limiter` in both directions."""

    def __init__(self, host: Host, limiter: Limiter) -> None:
        super().__init__(host)
        self._limiter = limiter

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        slow = _ThrottledSource(source, self._limiter)
        return self.host.put(key, slow, sha256=sha256, filename=filename, on_bytes=on_bytes)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        for block in self.host.get(location, offset=offset, length=length):
            self._limiter.take(len(block))
            yield block

    def read(self, location: str, *, limit: int) -> bytes:
        data = self.host.read(location, limit=limit)
        self._limiter.take(len(data))
        return data


class _ThrottledSource(Source):
    """A source whose bytes wait for their turn. Without a path, so that nobody goes around it."""

    def __init__(self, source: Source, limiter: Limiter) -> None:
        self._source = source
        self._limiter = limiter
        self.size = source.size
        self.trusted = source.trusted

    def open(self, offset: int = 0) -> BinaryIO:
        return io.BufferedReader(_Throttled(self._source.open(offset), self._limiter), _PIECE)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        data = self._source.read(offset, length)
        self._limiter.take(len(data))
        return data

    def __str__(self) -> str:
        return str(self._source)


class _Throttled(io.RawIOBase):
    """A file object that reads piece by piece."""

    def __init__(self, file: BinaryIO, limiter: Limiter) -> None:
        super().__init__()
        self._file = file
        self._limiter = limiter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(min(len(buffer), _PIECE))
        buffer[: len(data)] = data
        self._limiter.take(len(data))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
