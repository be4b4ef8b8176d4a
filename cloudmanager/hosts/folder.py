"""A local or mounted folder as a host. The embedded default of the pool."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
    NotARegularFile,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hashing import BLOCK
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.source import HashedReader, Source, open_regular

__all__ = ["FolderHost", "open_folder"]

_TEMPORARY = ".cloudmanager-tmp"
_NAME_ATTRIBUTE = "user.cloudmanager.name"
_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {errno.ETIMEDOUT, errno.ESTALE, errno.EHOSTDOWN, errno.ENETDOWN, errno.EAGAIN}


def open_folder(name: str, url: str, options: Mapping[str, Any]) -> FolderHost:
    """``/path``, ``~/path`` or ``file:///path``; the option ``create`` makes the folder."""
    options = dict(options)
    create = bool(options.pop("create", False))
    if options:
        raise ConfigurationError(
            f"host {name}: unknown option {', '.join(sorted(options))}; a folder takes only: create"
        )
    if re.match(r"file:", url, re.IGNORECASE):
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigurationError(f"host {name}: {url!r} is not a local folder (file:///path)")
        path = os.fsdecode(unquote_to_bytes(parts.path))
    else:
        path = os.path.expanduser(url)
    return FolderHost(name, path, create=create)


class FolderHost(Host):
    """Objects as read-only files below one folder.

    An object is written beside its place, flushed, renamed and its folder flushed: it is
    there whole or not at all, also after a loss of power. The folder must exist unless
    `create` is set: a disk that is not mounted must not look like an empty host.
    """

    capabilities = Capabilities(checksums=frozenset())

    def __init__(self, name: str, root: str | os.PathLike[str], *, create: bool = False) -> None:
        self.name = name
        self.root = Path(os.path.abspath(root))
        self._create = create
        self._known_folders: set[str] = set()
        self._counter = itertools.count()
        self._token = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()

    # -- the contract ------------------------------------------------------------------

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
        target = self._path(key, "put", location)
        temporary = ""
        try:
            temporary = self._temporary()
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._copy(fd, source, sha256, on_bytes)
                if filename is not None:
                    _remember_name(fd, filename)
                os.fchmod(fd, 0o444)
                _flush(fd)
                found = os.fstat(fd)
            finally:
                os.close(fd)
            self._make_folder(target.parent)
            try:
                os.replace(temporary, target)
            except FileNotFoundError:  # somebody removed the folder we remembered
                self._known_folders.clear()
                self._make_folder(target.parent)
                os.replace(temporary, target)
            temporary = ""
            _flush_folder(target.parent)
        except OSError as exc:
            self._fail(exc, "put", location)
        finally:
            if temporary:
                with contextlib.suppress(OSError):  # the reason to fail is the one to report
                    os.unlink(temporary)
        return self._info(key, found, filename)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        path = self._path_of(location, "get")
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                left = max(0, size - offset) if length is None else length
                left = min(left, max(0, size - offset))
                file.seek(offset)
                while left:
                    data = file.read(min(BLOCK, left))
                    if not data:
                        raise HostUnavailable(
                            f"the file ended {left} bytes early",
                            host=self.name,
                            operation="get",
                            location=location,
                        )
                    left -= len(data)
                    yield data
        except NotARegularFile as exc:
            raise ObjectNotFound(
                "what is there is no file", host=self.name, operation="get", location=location
            ) from exc
        except OSError as exc:
            self._fail(exc, "get", location)

    def stat(self, location: str) -> ObjectInfo:
        path = self._path_of(location, "stat")
        try:
            found = os.stat(path)
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            name = _recall_name(path)
        except OSError as exc:
            self._fail(exc, "stat", location)
        return self._info(self._key(path), found, name)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        try:
            self._require_root()
            for key, found in self._walk("", os.fsencode(prefix), os.fsencode(after)):
                yield self._info(os.fsdecode(key), found, None)
        except OSError as exc:
            self._fail(exc, "list", prefix)

    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            path = self._path_of(location, "delete")
            try:
                self._require_root()
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    os.unlink(path)
            except OSError as exc:
                self._fail(exc, "delete", location)

    def owns(self, location: str) -> bool:
        try:
            self._path_of(location, "owns")
        except HostError:
            return False
        return True

    def location(self, key: str) -> str:
        return "file://" + quote_from_bytes(os.fsencode(self.root / key), safe="/")

    def check(self) -> None:
        try:
            self._require_root()
            if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
        except OSError as exc:
            self._fail(exc, "check", str(self.root))

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Remove what killed processes left in the folder for unfinished files."""
        limit = time.time() - older_than.total_seconds()
        try:
            with os.scandir(self.root / _TEMPORARY) as entries:
                stale = [e.path for e in entries if e.stat(follow_symlinks=False).st_mtime <= limit]
            for path in stale:
                os.unlink(path)
                yield f"removed the unfinished file {path}"
        except FileNotFoundError:
            return
        except OSError as exc:
            self._fail(exc, "clean", str(self.root))

    # -- how -----------------------------------------------------------------------------

    def _copy(self, fd: int, source: Source, sha256: str, on_bytes: OnBytes | None) -> None:
        with _its_errors(source):
            reader = source.open() if source.trusted else HashedReader(source, sha256)
        left = source.size
        with reader:
            while True:
                with _its_errors(source):
                    data = reader.read(min(BLOCK, left) if left else 1)
                if not data:
                    break
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                if on_bytes is not None:
                    on_bytes(len(data))
        if left:
            raise OSError(errno.EIO, f"{source} does not have the size it should have")

    def _temporary(self) -> str:
        self._require_root()
        folder = self.root / _TEMPORARY
        if str(folder) not in self._known_folders:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._known_folders.add(str(folder))
        return str(folder / f"{self._token}-{os.getpid()}-{next(self._counter)}")

    def _make_folder(self, folder: Path) -> None:
        name = str(folder)
        if name in self._known_folders:
            return
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            _flush_folder(each.parent)
        # Also when it is there: whoever made it may not have flushed it yet.
        _flush_folder(Path(name).parent)
        self._known_folders.add(name)

    def _require_root(self) -> None:
        if self.root.is_dir():
            return
        if self._create:
            missing = [folder for folder in self.root.parents if not folder.exists()]
            # Somebody else may make it at the same moment; what is no folder is told below.
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                for folder in (self.root.parent, *(each.parent for each in missing)):
                    _flush_folder(folder)
                return
        raise ContainerNotFound(
            f"there is no folder {str(self.root)!r}; mount it, or make it with mkdir",
            host=self.name,
            operation="open",
        )

    def _path(self, key: str, operation: str, location: str) -> Path:
        segments = key.split("/")
        if "\0" in key or any(s in ("", ".", "..") for s in segments) or segments[0] == _TEMPORARY:
            raise HostError(
                f"{key!r} cannot be a file name",
                host=self.name,
                operation=operation,
                location=location,
            )
        return self.root / key

    def _path_of(self, location: str, operation: str) -> Path:
        parts = urlsplit(location)
        if parts.scheme == "file" and parts.netloc in ("", "localhost") and not parts.query:
            path = os.fsdecode(unquote_to_bytes(parts.path))
            root = str(self.root).rstrip("/") + "/"
            if path.startswith(root):
                return self._path(path[len(root) :], operation, location)
        raise HostError(
            "the location is not on this host",
            host=self.name,
            operation=operation,
            location=location,
        )

    def _key(self, path: Path) -> str:
        return str(path)[len(str(self.root).rstrip("/")) + 1 :]

    def _walk(
        self, folder: str, prefix: bytes, after: bytes
    ) -> Iterator[tuple[bytes, os.stat_result]]:
        """Files below `folder` in the order of their keys' bytes.

        A folder sorts as its name and a slash (``a.txt`` before ``a/b``), so that a
        recursive walk comes out in the order of the whole keys.
        """
        base = os.fsencode(folder)
        with os.scandir(os.fsencode(self.root) + b"/" + base) as entries:
            found = []
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    continue
                found.append((base + entry.name + (b"/" if is_folder else b""), entry))
        found.sort(key=lambda pair: pair[0])
        for key, entry in found:
            if key.endswith(b"/"):
                below = key.startswith(prefix) or prefix.startswith(key)
                # All keys below `key` start with it: they can only be past `after` when
                # the folder sorts after it, or `after` lies inside the folder.
                if below and (key > after or after.startswith(key)):
                    if key == os.fsencode(_TEMPORARY) + b"/":
                        continue
                    yield from self._walk(os.fsdecode(key), prefix, after)
            elif key.startswith(prefix) and key > after:
                with contextlib.suppress(FileNotFoundError):  # deleted since the scan
                    yield key, entry.stat(follow_symlinks=False)

    def _info(self, key: str, found: os.stat_result, filename: str | None) -> ObjectInfo:
        return ObjectInfo(
            location=self.location(key),
            key=key,
            size=found.st_size,
            modified=datetime.fromtimestamp(found.st_mtime, UTC),
            filename=filename,
        )

    def _fail(self, exc: OSError, operation: str, location: str) -> NoReturn:
        """Map an `OSError` at this one border."""
        kind: type[HostError] = HostError
        message = exc.strerror or str(exc)
        if isinstance(exc, FileNotFoundError | NotADirectoryError):
            if not self.root.is_dir():
                kind, message = ContainerNotFound, f"there is no folder {str(self.root)!r}"
            else:
                kind, message = ObjectNotFound, "no such object"
        elif exc.errno in _FULL:
            kind, message = HostFull, f"{message}; free some space or choose another host"
        elif exc.errno in _DENIED:
            kind, message = AccessDenied, f"{message}; check the folder's owner and mode"
        elif exc.errno in _TRANSIENT:
            kind = HostUnavailable
        raise kind(message, host=self.name, operation=operation, location=location) from exc


@contextlib.contextmanager
def _its_errors(source: Source) -> Iterator[None]:
    """Keep the errors of reading a source apart from the host's own: both are of the system."""
    try:
        yield
    except OSError as exc:
        raise SourceChanged(
            f"{source} cannot be read any more: {exc.strerror or exc}; upload it again"
        ) from exc


def _flush(fd: int) -> None:
    """Bring a file to the disk itself: on macOS fsync(2) stops at the drive's own memory."""
    if _FULL_FSYNC is not None:
        try:
            fcntl.fcntl(fd, _FULL_FSYNC)
            return
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                raise
    os.fsync(fd)


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flush(fd)
    finally:
        os.close(fd)


def _remember_name(fd: int, filename: str) -> None:
    """Keep the original name in an extended attribute, for `rebuild`, where there are any."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not every file system has them
            os.setxattr(fd, _NAME_ATTRIBUTE, os.fsencode(filename))


def _recall_name(path: Path) -> str | None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return os.fsdecode(os.getxattr(path, _NAME_ATTRIBUTE))
    return None
