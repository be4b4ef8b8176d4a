"""An SQLite file as a host of cloudmanager: ``sqlite:///path/to/archive.db``."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, unquote

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
    ObjectNotFound,
)
from cloudmanager.hosts import Host
from cloudmanager.hosts.base import OnBytes
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.source import HashedReader, Source

BLOCK = 256 * 1024
PAGE = 500
SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    key      BLOB PRIMARY KEY,  -- UTF-8: SQLite compares blobs byte by byte
    upload   TEXT NOT NULL,
    size     INTEGER NOT NULL,
    filename BLOB,
    modified REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (
    upload TEXT NOT NULL,
    number INTEGER NOT NULL,
    data   BLOB NOT NULL,
    begun  REAL NOT NULL,
    PRIMARY KEY (upload, number)
);
"""


def open_sqlite(name: str, url: str, options: Mapping[str, Any]) -> SqliteHost:
    """``sqlite:///path``; the option ``create`` makes the file. No I/O."""
    options = dict(options)
    create = bool(options.pop("create", False))
    if options:
        raise ConfigurationError(
            f"host {name}: unknown option {', '.join(sorted(options))}; "
            "an sqlite host takes only: create"
        )
    match = re.fullmatch(r"sqlite://(/[^?#]*[^?#/])", url)
    if match is None:
        raise ConfigurationError(f"host {name}: {url!r} is not like sqlite:///path/to/file.db")
    return SqliteHost(name, unquote(match.group(1)), create=create)


class SqliteHost(Host):
    """Objects in one SQLite file, in blocks of 256 KiB.

    The file must exist unless `create` is set: a disk that is not mounted must not look like
    an empty host.
    """

    capabilities = Capabilities()

    def __init__(self, name: str, path: str, *, create: bool = False) -> None:
        self.name = name
        self.path = path
        self._create = create
        self._base = f"sqlite://{quote(path)}/"

    # -- names ---------------------------------------------------------------------------

    def location(self, key: str) -> str:
        return self._base + quote(key, safe="/~", errors="surrogateescape")

    def owns(self, location: str) -> bool:
        return location.startswith(self._base) and len(location) > len(self._base)

    def _key(self, location: str, operation: str) -> str:
        if not self.owns(location):
            raise HostError(
                "the location is not on this host",
                host=self.name,
                operation=operation,
                location=location,
            )
        return unquote(location.removeprefix(self._base), errors="surrogateescape")

    # -- errors --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _database(self, operation: str, location: str = "") -> Iterator[sqlite3.Connection]:
        """A connection for one call, and the one place where SQLite's errors become ours."""
        try:
            if not self._create and not os.path.isfile(self.path):
                raise ContainerNotFound(
                    f"there is no file {self.path!r}; mount its disk, or set the option create",
                    host=self.name,
                    operation=operation,
                    location=location,
                )
            with contextlib.closing(
                # Connections are cheap, and SQLite's are of one thread. No transaction but
                # those that are begun below.
                sqlite3.connect(self.path, timeout=20, isolation_level=None)
            ) as connection:
                connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for writers
                connection.execute("PRAGMA synchronous = FULL")  # what is stored is on the disk
                if self._create:
                    connection.executescript(SCHEMA)
                yield connection
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            kind = {
                sqlite3.SQLITE_BUSY: HostUnavailable,  # the only one that passes by itself
                sqlite3.SQLITE_FULL: HostFull,
                sqlite3.SQLITE_PERM: AccessDenied,
                sqlite3.SQLITE_READONLY: AccessDenied,
            }.get(code, HostError)
            raise kind(
                f"SQLite says: {exc}", host=self.name, operation=operation, location=location
            ) from exc

    # -- writing -------------------------------------------------------------------------

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
        upload, now, number = uuid.uuid4().hex, time.time(), 0
        name = None if filename is None else os.fsencode(filename)
        row = (os.fsencode(key), upload, source.size, name, now)
        with self._database("put", location) as database:
            try:
                # What is not trusted is hashed on the way: the reader raises before the end.
                with source.open() if source.trusted else HashedReader(source, sha256) as reader:
                    while data := reader.read(BLOCK):
                        database.execute(
                            "INSERT INTO blocks VALUES (?, ?, ?, ?)", (upload, number, data, now)
                        )
                        number += 1
                        if on_bytes is not None:
                            on_bytes(len(data))
                # Only now is it seen, and what it replaces is gone in the same moment.
                with _transaction(database):
                    (found,) = database.execute(
                        "SELECT coalesce(sum(length(data)), 0) FROM blocks WHERE upload = ?",
                        (upload,),
                    ).fetchone()
                    if found != source.size:  # somebody cleaned up meanwhile
                        raise HostUnavailable(
                            f"{found} bytes instead of {source.size} are there; try again",
                            host=self.name,
                            operation="put",
                            location=location,
                        )
                    database.execute(
                        "DELETE FROM blocks WHERE upload ="
                        " (SELECT upload FROM objects WHERE key = ?)",
                        row[:1],
                    )
                    database.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", row)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # `clean` removes what is left
                    database.execute("DELETE FROM blocks WHERE upload = ?", (upload,))
                raise
        return self._info(row)

    def delete(self, locations: Iterable[str]) -> None:
        for location in locations:
            key = os.fsencode(self._key(location, "delete"))
            with self._database("delete", location) as database, _transaction(database):
                database.execute(
                    "DELETE FROM blocks WHERE upload = (SELECT upload FROM objects WHERE key = ?)",
                    (key,),
                )
                database.execute("DELETE FROM objects WHERE key = ?", (key,))

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        limit = time.time() - older_than.total_seconds()
        with self._database("clean") as database:
            found = database.execute(
                "SELECT DISTINCT upload FROM blocks WHERE begun <= ?"
                " AND upload NOT IN (SELECT upload FROM objects)",
                (limit,),
            ).fetchall()
            for (upload,) in found:
                database.execute("DELETE FROM blocks WHERE upload = ?", (upload,))
                yield f"removed the unfinished upload {upload}"

    # -- reading -------------------------------------------------------------------------

    def stat(self, location: str) -> ObjectInfo:
        with self._database("stat", location) as database:
            return self._info(self._row(database, location, "stat"))

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self._database("get", location) as database:
            database.execute("BEGIN")  # what is deleted or replaced meanwhile is still seen
            _, upload, size, *_ = self._row(database, location, "get")
            end = size if length is None else min(size, offset + length)
            blocks = database.execute(
                "SELECT data FROM blocks WHERE upload = ? AND number >= ? ORDER BY number",
                (upload, offset // BLOCK),
            )
            skip = offset % BLOCK
            while offset < end:
                (data,) = blocks.fetchone() or (b"",)
                data = data[skip : skip + end - offset]
                if not data:
                    raise HostUnavailable(
                        f"the object ends {end - offset} bytes early",
                        host=self.name,
                        operation="get",
                        location=location,
                    )
                yield data
                offset += len(data)
                skip = 0

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        start, last = os.fsencode(prefix), os.fsencode(after)
        rows: list[Any] | None = None
        while rows is None or len(rows) == PAGE:
            with self._database("list", prefix) as database:
                rows = database.execute(
                    "SELECT * FROM objects WHERE key > ? AND key >= ? AND substr(key, 1, ?) = ?"
                    " ORDER BY key LIMIT ?",
                    (last, start, len(start), start, PAGE),
                ).fetchall()
            for row in rows:
                last = row[0]
                yield self._info(row)

    def check(self) -> None:
        with self._database("check") as database:
            database.execute("SELECT 1 FROM objects LIMIT 1")

    def _row(self, database: sqlite3.Connection, location: str, operation: str) -> Any:
        key = os.fsencode(self._key(location, operation))
        row = database.execute("SELECT * FROM objects WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise ObjectNotFound(
                "no such object", host=self.name, operation=operation, location=location
            )
        return row

    def _info(self, row: tuple[bytes, str, int, bytes | None, float]) -> ObjectInfo:
        raw, _, size, filename, modified = row
        key = os.fsdecode(raw)
        return ObjectInfo(
            location=self.location(key),
            key=key,
            size=size,
            modified=datetime.fromtimestamp(modified, UTC),
            filename=None if filename is None else os.fsdecode(filename),
        )


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the reason to fail is the one to report
            database.execute("ROLLBACK")
        raise
