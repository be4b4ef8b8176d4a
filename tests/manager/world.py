"""What the tests of the pool share: pools of folders, and hosts that fail on purpose."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from cloudmanager import CloudManager
from cloudmanager.errors import HostUnavailable, Unsupported
from cloudmanager.hosts import Host
from cloudmanager.hosts.base import OnBytes
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.model import Capabilities, ObjectInfo, pool_key
from cloudmanager.retry import Backoff, Policy
from cloudmanager.source import Source

FAST = Policy(
    Backoff(initial=0.01, factor=2.0, maximum=0.05), max_retries=2, give_up_after=10, attempt=1
)


class Watched(Host):
    """A host around another one that counts its calls and fails when told to.

    `down` makes every call fail as a host does that does not answer. `before` is called
    with operation and location or key before each call, and may raise or wait.
    """

    def __init__(self, host: Host, *, capabilities: Capabilities | None = None) -> None:
        self.host = host
        self.name = host.name
        self.capabilities = capabilities or host.capabilities
        self.calls: list[tuple[str, str]] = []
        self.down = False
        self.before: Callable[[str, str], None] = lambda _operation, _what: None

    def count(self, operation: str) -> int:
        return sum(1 for name, _ in self.calls if name == operation)

    def _enter(self, operation: str, what: str) -> None:
        self.calls.append((operation, what))
        self.before(operation, what)
        if self.down:
            raise HostUnavailable(
                "it does not answer", host=self.name, operation=operation, location=what
            )

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        self._enter("put", key)
        return self.host.put(key, source, sha256=sha256, filename=filename, on_bytes=on_bytes)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if (offset or length is not None) and not self.capabilities.range_read:
            raise Unsupported("no ranges", host=self.name, operation="get", location=location)
        self._enter("get", location)
        yield from self.host.get(location, offset=offset, length=length)

    def stat(self, location: str) -> ObjectInfo:
        self._enter("stat", location)
        return self.host.stat(location)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        self._enter("list", prefix)
        yield from self.host.list(prefix, after=after)

    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            self._enter("delete", location)
            self.host.delete([location])

    def owns(self, location: str) -> bool:
        return self.host.owns(location)

    def location(self, key: str) -> str:
        return self.host.location(key)

    def check(self) -> None:
        self._enter("check", "")
        self.host.check()

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        return self.host.clean(older_than=older_than)


class Folder(Watched):
    """A watched folder host, with what a test does to it behind the pool's back."""

    def __init__(self, root: Path, name: str, *, capabilities: Capabilities | None = None) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        super().__init__(FolderHost(name, root), capabilities=capabilities)

    def path(self, sha256: str) -> Path:
        return self.root / pool_key(sha256)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    def objects(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("[0-9a-f][0-9a-f]/*") if path.is_file())

    def replace(self, sha256: str, data: bytes) -> None:
        path = self.path(sha256)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def lose(self, sha256: str) -> None:
        self.path(sha256).unlink()


class World:
    """One test's disk: folder hosts, source files and the pools that use them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "catalog.sqlite3"
        self.storage = root / "storage"
        self._stack = contextlib.ExitStack()
        self._counter = 0

    def folder(self, name: str, **options: Any) -> Folder:
        return Folder(self.root / name, name, **options)

    def file(self, data: bytes, name: str | None = None) -> Path:
        self._counter += 1
        folder = self.root / "sources" / str(self._counter)
        folder.mkdir(parents=True)
        path = folder / (name or "file.bin")
        path.write_bytes(data)
        return path

    def pool(
        self, hosts: Iterable[Any], capacity: int | str = "64MiB", **options: Any
    ) -> CloudManager:
        options.setdefault("retry", FAST)
        options.setdefault("jobs", 4)
        database = options.pop("database", self.database)
        storage = options.pop("storage", self.storage)
        cm = CloudManager(database, storage, capacity, list(hosts), **options)
        self._stack.callback(cm.close)
        return cm

    def cached_bytes(self) -> int:
        return sum(
            path.stat().st_size
            for folder in ("objects", "tmp")
            for path in (self.storage / folder).rglob("*")
            if path.is_file()
        )

    def close(self) -> None:
        self._stack.close()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def content(seed: int, size: int) -> bytes:
    """`size` bytes that do not compress and differ for every seed."""
    return random.Random(seed).randbytes(size)
