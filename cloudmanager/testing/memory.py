"""A right host in memory: to put faults around, and to stand in where bytes need not last."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NoReturn
from urllib.parse import quote, unquote

from cloudmanager.errors import HostError, HostUnavailable, ObjectNotFound, SourceChanged
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import HashedReader, Source

__all__ = ["MemoryHost", "Stored"]

_SCHEME = "memory://"


class Stored:
    """One object: its bytes, when it came, and its original name. Never changed."""

    __slots__ = ("data", "filename", "modified")

    def __init__(self, data: bytes, filename: str | None = None) -> None:
        self.data = data
        self.filename = filename
        self.modified = datetime.now(UTC)


class MemoryHost(Host):
    """Objects in a dictionary, under ``memory://NAME/key``.

    `objects` may be looked at and changed behind the host's back. While `offline` is set,
    every call that would be I/O raises `HostUnavailable`. `block` is the number of bytes that
    `get` yields at a time.
    """

    capabilities = Capabilities(checksums=frozenset({"sha256"}))

    def __init__(self, name: str = "memory", *, block: int = 64 * 1024) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(f"a name of letters, digits, '_', '.' and '-' is needed: {name!r}")
        self.name = name
        self.block = block
        self.offline = False
        self.objects: dict[str, Stored] = {}
        self.lock = threading.Lock()

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        location = self.location(key)
        self._online("put", location)
        stored = Stored(self._taken(source, sha256, on_bytes), filename)
        with self.lock:
            self.objects[key] = stored
        return self._info(key, stored)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        data = self._stored(location, "get").data
        end = len(data) if length is None else min(len(data), offset + length)
        for start in range(offset, end, self.block):
            yield data[start : min(end, start + self.block)]

    def stat(self, location: str) -> ObjectInfo:
        return self._info(self._key_of(location, "stat"), self._stored(location, "stat"))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        self._online("list", prefix)
        with self.lock:
            found = list(self.objects.items())
        for key, stored in sorted(found, key=lambda item: item[0].encode()):
            if key.startswith(prefix) and key.encode() > after.encode():
                yield self._info(key, stored)

    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            key = self._key_of(location, "delete")
            self._online("delete", location)
            with self.lock:
                self.objects.pop(key, None)

    def owns(self, location: str) -> bool:
        base = f"{_SCHEME}{self.name}/"
        return location.startswith(base) and len(location) > len(base)

    def location(self, key: str) -> str:
        return f"{_SCHEME}{self.name}/{quote(key, safe='/~')}"

    def check(self) -> None:
        self._online("check")

    # -- how -----------------------------------------------------------------------------

    def _taken(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> bytes:
        blocks = []
        try:
            with source.open() if source.trusted else HashedReader(source, sha256) as reader:
                while block := reader.read(self.block):
                    blocks.append(block)
                    if on_bytes is not None:
                        on_bytes(len(block))
        except OSError as exc:
            raise SourceChanged(f"{source} cannot be read any more: {exc}") from exc
        return b"".join(blocks)

    def _stored(self, location: str, operation: str) -> Stored:
        key = self._key_of(location, operation)
        self._online(operation, location)
        with self.lock:
            stored = self.objects.get(key)
        if stored is None:
            self._fail(ObjectNotFound, "no such object", operation, location)
        return stored

    def _key_of(self, location: str, operation: str) -> str:
        if not self.owns(location):
            self._fail(HostError, "the location is not on this host", operation, location)
        return unquote(location.removeprefix(f"{_SCHEME}{self.name}/"))

    def _online(self, operation: str, location: str = "") -> None:
        if self.offline:
            self._fail(HostUnavailable, "the host is offline", operation, location)

    def _fail(self, kind: type[HostError], message: str, operation: str, location: str) -> NoReturn:
        raise kind(message, host=self.name, operation=operation, location=location)

    def _info(self, key: str, stored: Stored) -> ObjectInfo:
        return ObjectInfo(
            location=self.location(key),
            key=key,
            size=len(stored.data),
            checksum=Checksum("sha256", hashlib.sha256(stored.data).hexdigest()),
            modified=stored.modified,
            filename=stored.filename,
        )
