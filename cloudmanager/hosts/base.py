"""The contract every host keeps, and the options every host takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

from cloudmanager.errors import IntegrityError, Unsupported
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.source import Source

__all__ = ["TIME_LIMIT", "Host", "OnBytes"]

TIME_LIMIT = 20.0
"""Seconds a host may be silent (connect, or between two bytes) before a call fails."""

OnBytes = Callable[[int], None]
"""Told of every so many payload bytes that went out; may raise to end the transfer.

A host that cannot tell for a while calls it with 0, so that the transfer can be ended."""


class Host(ABC):
    """One place that stores immutable objects. Thread-safe.

    `put` answers with a location: the URL that the catalog stores, and that every other
    call takes. Sizes and offsets are bytes. Times are UTC.

    Errors. Every failure is a `HostError` with host, operation, location and `retryable`,
    also while an iterator is being read; foreign exceptions are its ``__cause__``. Only
    what is known to be transient is retryable. A call makes one try (a multipart transfer
    one per part and pass): repeating is the business of the retry policy.
    """

    name: str
    """Unique in a pool, safe to log."""

    capabilities: Capabilities

    @abstractmethod
    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        """Store `source` under `key` below the host's prefix; the object as it now is.

        Where ``capabilities.atomic_put`` is set, a partly written object is never visible.
        An object that is already there is replaced (the key is the hash, so it can only be
        the same or damaged). A lost acknowledgement is settled by looking: `stat`, compare
        size and checksum. `filename` becomes the name under which a signed link downloads,
        and decides the content type.

        Raises
        ------
        SourceChanged
            When the source is not trusted and its bytes do not have the hash `sha256`;
            then nothing is stored under the key.
        """

    @abstractmethod
    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of an object from `offset`, `length` of them or all.

        The answer is judged by its length and, where there is one, its Content-Range, not by
        the status alone; a short read raises `HostUnavailable`, never ends early. A range
        that goes past the end yields what there is.

        Raises
        ------
        ObjectNotFound, ObjectArchived, AccessDenied, HostUnavailable
            At the first `next` at the latest.
        Unsupported
            For a range, where ``capabilities.range_read`` is not set.
        """

    def read(self, location: str, *, limit: int) -> bytes:
        """The whole of a small object, which should have at most `limit` bytes.

        The same as `get`, all at once. A host for which a small object is one request answers
        with less ado than block by block.

        Raises
        ------
        IntegrityError
            When it has more.
        """
        blocks = []
        total = 0
        for block in self.get(location):
            total += len(block)
            if total > limit:
                raise self._too_long(location, limit)
            blocks.append(block)
        return b"".join(blocks)

    def _too_long(self, location: str, limit: int) -> IntegrityError:
        return IntegrityError(
            f"it has more than the {limit} bytes it should have",
            host=self.name,
            operation="get",
            location=location,
        )

    @abstractmethod
    def stat(self, location: str) -> ObjectInfo:
        """Size, checksum and times. Raises `ObjectNotFound` when it is not there."""

    @abstractmethod
    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """The objects whose key starts with `prefix` and is greater than `after`.

        Ascending by the UTF-8 bytes of the key, each once. A failure raises: it is never an
        empty or a short list.
        """

    @abstractmethod
    def delete(self, locations: Iterable[str]) -> None:
        """Delete objects. Those that are missing are no error."""

    @abstractmethod
    def owns(self, location: str) -> bool:
        """Whether `location` is a URL of this host (below its prefix). No I/O."""

    @abstractmethod
    def location(self, key: str) -> str:
        """The URL that `put` would answer with for `key`. No I/O beyond resolving credentials."""

    @abstractmethod
    def check(self) -> None:
        """Raise unless the host is reachable, exists and lets us in."""

    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        """A URL that anybody can fetch the object with until `expires` is over."""
        raise self._unsupported("signed_url", location)

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Abort uploads that were begun before `older_than` ago and never finished.

        Yields a description of each. Hosts that leave nothing behind yield nothing.
        """
        return iter(())

    def close(self) -> None:  # noqa: B027 - most hosts hold nothing that needs closing
        """Release connections. The host is not used afterwards."""

    def _unsupported(self, operation: str, location: str = "") -> Unsupported:
        return Unsupported(
            "this kind of host cannot do that",
            host=self.name,
            operation=operation,
            location=location,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
