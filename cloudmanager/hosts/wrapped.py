"""A host around a host: what the wrappers of this house have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.model import ObjectInfo
from cloudmanager.source import Source

__all__ = ["WrappedHost"]


class WrappedHost(Host):
    """Passes every call on to `host`. Subclasses change what they are about."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.name = host.name
        self.capabilities = host.capabilities

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        return self.host.put(key, source, sha256=sha256, filename=filename, on_bytes=on_bytes)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return self.host.get(location, offset=offset, length=length)

    def read(self, location: str, *, limit: int) -> bytes:
        return self.host.read(location, limit=limit)

    def stat(self, location: str) -> ObjectInfo:
        return self.host.stat(location)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        return self.host.list(prefix, after=after)

    def delete(self, locations: Iterable[str]) -> None:
        self.host.delete(locations)

    def owns(self, location: str) -> bool:
        return self.host.owns(location)

    def location(self, key: str) -> str:
        return self.host.location(key)

    def check(self) -> None:
        self.host.check()

    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        return self.host.signed_url(location, expires=expires, filename=filename)

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        return self.host.clean(older_than=older_than)

    def close(self) -> None:
        self.host.close()
