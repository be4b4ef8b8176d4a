"""The retry policy as a host around a host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from cloudmanager.errors import HostError
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.hosts.wrapped import WrappedHost
from cloudmanager.model import ObjectInfo
from cloudmanager.retry import Retrier
from cloudmanager.source import Source

__all__ = ["RetryingHost"]


class RetryingHost(WrappedHost):
    """Repeats what failed for a transient reason, as its `Retrier` allows.

    A `get` that breaks goes on from the last byte where the host reads ranges, and a
    `list` from the last key; what was handed over is never handed over again.
    """

    def __init__(self, host: Host, retrier: Retrier) -> None:
        super().__init__(host)
        self._retrier = retrier

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        moved = time.monotonic()
        sent = 0

        def count(size: int) -> None:
            nonlocal moved, sent
            sent += size
            if size and sent <= source.size:
                # More than there is has been sent before: a host that keeps nothing of a try
                # that failed would otherwise be sent the same bytes for ever. And none is no
                # progress: a host may only be asking whether to go on.
                moved = time.monotonic()
            if on_bytes is not None:
                on_bytes(size)

        return self._retrier.call(
            lambda: self.host.put(key, source, sha256=sha256, filename=filename, on_bytes=count),
            # A single request that is sent again from its start has made no progress,
            # however many bytes went out; only finished parts stay at the host.
            progress=(lambda: moved) if source.size > _ONE_REQUEST else None,
        )

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        position = offset
        end = None if length is None else offset + length
        blocks: Iterator[bytes] | None = None

        def next_block() -> bytes | None:
            nonlocal blocks
            if blocks is None:
                if position == offset and length is None:
                    blocks = self.host.get(location, offset=offset)
                else:
                    rest = None if end is None else end - position
                    blocks = self.host.get(location, offset=position, length=rest)
            try:
                # An empty block is no progress: it must not begin the patience anew.
                while (block := next(blocks, None)) == b"":
                    continue
                return block
            except HostError as exc:
                blocks = None
                if position > offset and not self.capabilities.range_read:
                    exc.retryable = False  # the bytes handed over cannot be skipped again
                raise

        while end is None or position < end:
            block = self._retrier.call(next_block)
            if block is None:
                return
            position += len(block)
            yield block

    def read(self, location: str, *, limit: int) -> bytes:
        return self._retrier.call(lambda: self.host.read(location, limit=limit))

    def stat(self, location: str) -> ObjectInfo:
        return self._retrier.call(lambda: self.host.stat(location))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        last = after
        objects: Iterator[ObjectInfo] | None = None

        def next_object() -> ObjectInfo | None:
            nonlocal objects
            if objects is None:
                objects = self.host.list(prefix, after=last)
            try:
                return next(objects, None)
            except HostError:
                objects = None
                raise

        while (info := self._retrier.call(next_object)) is not None:
            last = info.key
            yield info

    def delete(self, locations: Iterable[str]) -> None:
        wanted = list(locations)
        self._retrier.call(lambda: self.host.delete(wanted))

    def check(self) -> None:
        self._retrier.call(self.host.check)


_ONE_REQUEST = 32 * 1024 * 1024
