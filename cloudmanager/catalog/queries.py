"""The catalog as the rest of the house sees it: records in, records out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    and_,
    bindparam,
    case,
    delete,
    distinct,
    exists,
    func,
    not_,
    or_,
    select,
    text,
    tuple_,
    update,
)

from cloudmanager.catalog.database import Database, open_database
from cloudmanager.catalog.holds import WAIT, holds_for
from cloudmanager.catalog.lookup import Lookup
from cloudmanager.catalog.records import (
    FILE_COLUMNS,
    UPLOAD_COLUMNS,
    file_from_row,
    file_to_row,
    key_to_row,
    upload_from_row,
    upload_to_row,
)
from cloudmanager.catalog.schema import prepare
from cloudmanager.catalog.tables import WAITING, files, transfer_meter, uploads
from cloudmanager.catalog.upserts import upserts_for
from cloudmanager.model import FileRecord, UploadRecord

__all__ = ["Catalog", "HostCount"]

_PAGE = 1000
_BATCH = 500  # hashes in one IN list
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class HostCount:
    """How many copies a host has in one status.

    `files` counts rows (a file that a mover put in two places of one host counts twice);
    `bytes` is the sum of their sizes.
    """

    host: str
    status: str
    external: bool
    files: int
    bytes: int


class Catalog:
    """Files, their copies, and the transfer meter. Thread-safe; made by `Catalog.open`.

    Hashes are 64 lower-case hex digits; times are Unix seconds; sizes are bytes.

    Errors. Every call may raise `CatalogUnavailable` (locked for too long, no answer),
    `NotACatalog` (the file is damaged) or another `CatalogError`; the database libraries'
    own exceptions are their ``__cause__``. A call either happened whole or not at all.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.safe_url = database.where
        """The path, or the URL without password."""
        self._holds = holds_for(database)
        self._lookup = None if database.path is None else Lookup(database)
        self._upserts = upserts_for(database.engine.dialect)
        if self._lookup is not None:
            # The hot read loses a microsecond in every call that only passes it on.
            self.exists = self._lookup.exists  # type: ignore[method-assign]

    @classmethod
    def open(cls, database: str | os.PathLike[str]) -> Catalog:
        """Open the catalog at a path (SQLite, created when missing) or an SQLAlchemy URL.

        Raises
        ------
        ConfigurationError
            A URL that cannot be read, or no driver for it.
        NotACatalog
            A directory, a file that is no database, a missing folder.
        CatalogNotSetUp
            A server database without schema, or an older schema; the message says what to run.
        CatalogTooNew
            A schema made by a newer cloudmanager.
        CatalogUnavailable
            Locked, unreachable, not allowed.
        """
        opened = open_database(database)
        try:
            prepare(opened)
            return cls(opened)
        except BaseException:
            opened.close()
            raise

    # --- files ----------------------------------------------------------------------------

    def exists(self, sha256: str) -> bool:
        """Whether the catalog knows the hash."""
        query = select(1).where(files.c.hash == sha256)
        return self._database.read(lambda connection: connection.scalar(query)) is not None

    def get(self, sha256: str) -> FileRecord | None:
        """The file with this hash, or None."""
        return self.get_many([sha256]).get(sha256)

    def get_many(self, hashes: Sequence[str]) -> dict[str, FileRecord]:
        """The files with these hashes; unknown ones are missing from the answer."""

        def work(connection: Connection) -> dict[str, FileRecord]:
            found = {}
            for batch in _batches(hashes):
                for row in connection.execute(_FILES_OF, {"hashes": batch}):
                    found[row[0]] = file_from_row(row)
            return found

        return self._database.read(work)

    def find(self, prefix: str, *, limit: int = 2) -> list[str]:
        """The first `limit` hashes that begin with `prefix`, ascending.

        Raises
        ------
        ValueError
            When `prefix` is not the beginning of a hash.
        """
        query = (
            select(files.c.hash).where(*_prefix_range(prefix)).order_by(files.c.hash).limit(limit)
        )
        return self._database.read(lambda connection: list(connection.scalars(query)))

    def files(self, *, prefix: str = "", after: str = "") -> Iterator[FileRecord]:
        """All files whose hash begins with `prefix` and is greater than `after`, ascending.

        Read in pages, without a transaction in between: a file that is added or removed
        meanwhile may or may not be seen, every other one is seen exactly once.
        """
        query = (
            select(*FILE_COLUMNS)
            .where(files.c.hash > bindparam("after"), *_prefix_range(prefix))
            .order_by(files.c.hash)
            .limit(_PAGE)
        )
        return self._pages(query, after)

    def _pages(self, query: Any, after: str) -> Iterator[FileRecord]:
        while True:
            parameters = {"after": after}
            page = self._database.read(
                lambda connection, parameters=parameters: [  # type: ignore[misc]
                    file_from_row(row) for row in connection.execute(query, parameters)
                ]
            )
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].hash

    def totals(self) -> tuple[int, int]:
        """The number of files and the sum of their sizes in bytes. Reads the whole table."""
        query = select(func.count(), func.coalesce(func.sum(files.c.size), 0)).select_from(files)
        count, size = self._database.read(lambda connection: connection.execute(query).one())
        return int(count), int(size)

    # --- copies ---------------------------------------------------------------------------

    def uploads(self, sha256: str) -> list[UploadRecord]:
        """The copies of a file, ascending by host and location."""
        return self.uploads_many([sha256]).get(sha256, [])

    def uploads_many(self, hashes: Iterable[str]) -> dict[str, list[UploadRecord]]:
        """The copies of these files; a file without any is missing from the answer."""
        wanted = list(hashes)

        def work(connection: Connection) -> dict[str, list[UploadRecord]]:
            found: dict[str, list[UploadRecord]] = {}
            for batch in _batches(wanted):
                for row in connection.execute(_UPLOADS_OF, {"hashes": batch}):
                    found.setdefault(row[0], []).append(upload_from_row(row))
            return found

        return self._database.read(work)

    def waiting(
        self,
        *,
        host: str | None = None,
        after: tuple[str, str, str] | None = None,
        limit: int = 1000,
    ) -> list[UploadRecord]:
        """Copies that are ``queued`` or ``removing``, ascending by (hash, host, location).

        `after` is the key of the last one of the page before.
        """
        query = select(*UPLOAD_COLUMNS).where(text(WAITING)).limit(limit)
        columns = uploads.c
        if host is None:
            query = query.order_by(columns.hash, columns.host, columns.location)
            if after is not None:
                query = query.where(tuple_(columns.hash, columns.host, columns.location) > after)
        else:
            query = query.where(columns.host == host).order_by(columns.hash, columns.location)
            if after is not None:
                # Within one host, rows after the given key of perhaps another host.
                sha256, after_host, location = after
                key = tuple_(columns.hash, columns.location)
                if host == after_host:
                    query = query.where(key > (sha256, location))
                elif host > after_host:
                    query = query.where(columns.hash >= sha256)
                else:
                    query = query.where(columns.hash > sha256)
        return self._database.read(
            lambda connection: [upload_from_row(row) for row in connection.execute(query)]
        )

    def copies_by_check(
        self, before: float, *, after: UploadRecord | None = None, limit: int = 4096
    ) -> list[UploadRecord]:
        """Copies that lie, or should lie, on a host and were last verified before that time (or
        never), ascending by that time, hash, host and location.

        `after` is the last one of the page before. Each page reads the whole table: an index
        would cost every upload more than a verification, which asks a host for every row, gains.
        """
        columns = uploads.c
        checked = func.coalesce(columns.verified_at, 0.0)
        key = tuple_(checked, columns.hash, columns.host, columns.location)
        query = (
            select(*UPLOAD_COLUMNS)
            .where(_on_a_host(before))
            .order_by(checked, columns.hash, columns.host, columns.location)
            .limit(limit)
        )
        if after is not None:
            query = query.where(
                key > (after.verified_at or 0.0, after.hash, after.host, after.location)
            )
        return self._database.read(
            lambda connection: [upload_from_row(row) for row in connection.execute(query)]
        )

    def count_copies(self, before: float) -> int:
        """How many copies `copies_by_check` has."""
        query = select(func.count()).select_from(uploads).where(_on_a_host(before))
        return int(self._database.read(lambda connection: connection.execute(query).scalar_one()))

    def shortages(
        self, redundancy: int, *, after: str = "", limit: int = 1000
    ) -> list[tuple[FileRecord, int, int]]:
        """Files with fewer stored copies than `redundancy`, or with failed ones, by hash; each
        with the number of hosts that have it and of the failed copies.

        External copies do not count, and a file that has no others is none of the pool's.
        """
        mine = not_(uploads.c.external)
        stored = func.count(
            distinct(case((and_(mine, uploads.c.status == "stored"), uploads.c.host)))
        )
        failed = func.count(case((and_(mine, uploads.c.status == "failed"), 1)))
        leaving = func.count(case((uploads.c.status == "removing", 1)))
        own, others = func.count(case((mine, 1))), func.count(case((uploads.c.external, 1)))
        query = (
            select(*FILE_COLUMNS, stored, failed)
            .join_from(files, uploads, isouter=True)
            .where(files.c.hash > after)
            .group_by(*FILE_COLUMNS)
            .having(or_(stored < redundancy, failed > 0), or_(own > 0, others == 0), leaving == 0)
            .order_by(files.c.hash)
            .limit(limit)
        )
        return self._database.read(
            lambda connection: [
                (file_from_row(row[:-2]), int(row[-2]), int(row[-1]))
                for row in connection.execute(query)
            ]
        )

    def status_counts(self) -> list[HostCount]:
        """Copies and bytes by host, status and kind, ascending. Reads the whole table."""
        group = (uploads.c.host, uploads.c.status, uploads.c.external)
        query = (
            select(*group, func.count(), func.sum(files.c.size))
            .join_from(uploads, files)
            .group_by(*group)
            .order_by(*group)
        )
        return self._database.read(
            lambda connection: [
                HostCount(host, status, bool(external), int(count), int(size))
                for host, status, external, count, size in connection.execute(query)
            ]
        )

    # --- writing --------------------------------------------------------------------------

    def record(
        self,
        files: Iterable[FileRecord],
        uploads: Iterable[UploadRecord],
        *,
        incoming: int = 0,
        outgoing: int = 0,
    ) -> None:
        """Keep files and copies, and add to this month's meter, in one transaction.

        A file that is known stays as it was. A copy replaces the one with the same (hash,
        host, location); a copy of the pool that is ``stored`` or ``failed`` also settles
        what that host still owed.

        Raises
        ------
        ValueError
            For a record that cannot be stored as it is.
        CatalogError
            For a copy of a file that is neither known nor among `files`, and for what the
            tables' checks refuse; then nothing is kept.
        """
        file_rows = sorted((file_to_row(file) for file in files), key=lambda row: row["hash"])
        # The same order in every process, so that two batches never wait for each other.
        copies = sorted(uploads, key=_key)
        upload_rows = [upload_to_row(copy) for copy in copies]
        settled = sorted(
            {
                (copy.hash, copy.host)
                for copy in copies
                if not copy.external and copy.status in ("stored", "failed")
            }
        )
        metered = bool(incoming or outgoing)
        if not (file_rows or upload_rows or metered):
            return

        def work(connection: Connection) -> None:
            if file_rows:
                self._upserts.files(connection, file_rows)
            if settled:
                self._upserts.settle(connection, settled)
            if upload_rows:
                self._upserts.uploads(connection, upload_rows)
            if metered:
                # Last: every batch wants this row, and holds it until it commits.
                self._upserts.meter(connection, _meter_row(incoming, outgoing, None))

        self._database.write(work, idempotent=not metered)

    def correct_size(self, sha256: str, size: int) -> None:
        """Replace the size of a file, for a record that turned out to be wrong.

        Raises
        ------
        ValueError
            For a negative size.
        """
        if size < 0:
            raise ValueError(f"a size cannot be negative: {size}")
        query = update(files).where(files.c.hash == sha256).values(size=size)
        self._database.write(lambda connection: connection.execute(query))

    def forget_uploads(self, uploads: Iterable[UploadRecord]) -> None:
        """Delete these rows. Those that are not there are no error."""
        rows = [key_to_row(copy) for copy in sorted(uploads, key=_key)]
        if rows:
            self._database.write(lambda connection: connection.execute(_FORGET, rows))

    def mark_removing(self, sha256: str) -> list[UploadRecord]:
        """Mark the pool's copies for removal, and drop what hosts still owe.

        Returns the rows whose objects are to be deleted from the hosts, also those that an
        earlier call marked. External copies are left alone.
        """
        mine = and_(uploads.c.hash == sha256, not_(uploads.c.external))
        marked = (
            select(*UPLOAD_COLUMNS)
            .where(mine, uploads.c.status == "removing")
            .order_by(uploads.c.host, uploads.c.location)
        )

        def work(connection: Connection) -> list[UploadRecord]:
            connection.execute(delete(uploads).where(mine, uploads.c.status == "queued"))
            connection.execute(
                update(uploads)
                .where(mine, uploads.c.status.in_(("stored", "failed")))
                .values(status="removing")
            )
            return [upload_from_row(row) for row in connection.execute(marked)]

        return self._database.write(work)

    def finish_removal(self, sha256: str, deleted: Iterable[UploadRecord] = ()) -> bool:
        """Forget the file when nothing keeps it; True when it is gone (or was unknown).

        `deleted` are rows whose objects are deleted from their hosts. They go in the same
        transaction: a file without any row would be known for ever, with nothing waiting.

        What keeps it: a copy still to be removed, one that is stored or owed, an external one.
        """
        of_file = uploads.c.hash == sha256
        spent = and_(uploads.c.status == "failed", not_(uploads.c.external))
        lock = select(files.c.hash).where(files.c.hash == sha256).with_for_update()
        kept = select(exists().where(of_file, not_(spent)))
        rows = [key_to_row(copy) for copy in sorted(deleted, key=_key)]

        def work(connection: Connection) -> bool:
            if connection.scalar(lock) is None:
                return True
            if rows:
                connection.execute(_FORGET, rows)
            # Looked at after the lock: a copy recorded in between would be seen, one that
            # comes later waits for us and then adds the file again.
            if connection.scalar(kept):
                return False
            connection.execute(delete(uploads).where(of_file, spent))
            connection.execute(delete(files).where(files.c.hash == sha256))
            return True

        return self._database.write(work)

    # --- meter ----------------------------------------------------------------------------

    def meter_add(self, incoming: int, outgoing: int, *, now: float | None = None) -> None:
        """Add payload bytes from (`incoming`) and to (`outgoing`) hosts to the UTC month."""
        if incoming or outgoing:
            row = _meter_row(incoming, outgoing, now)
            self._database.write(
                lambda connection: self._upserts.meter(connection, row), idempotent=False
            )

    def meter_total(self) -> tuple[int, int]:
        """Payload bytes (in, out) of all time."""
        return self._meter(None)

    def meter_month(self, now: float | None = None) -> tuple[int, int]:
        """Payload bytes (in, out) of the UTC month of `now`, by default this one."""
        return self._meter(_month(now))

    def _meter(self, month: str | None) -> tuple[int, int]:
        columns = transfer_meter.c
        query = select(
            func.coalesce(func.sum(columns.incoming), 0),
            func.coalesce(func.sum(columns.outgoing), 0),
        )
        if month is not None:
            query = query.where(columns.month == month)
        came, went = self._database.read(lambda connection: connection.execute(query).one())
        return int(came), int(went)

    # --- holds ----------------------------------------------------------------------------

    def sharing(self, hashes: Iterable[str]) -> AbstractContextManager[None]:
        """Hold these hashes for uploading; any number may do so at once.

        Waits while somebody holds one of them exclusively. The hold ends with the block, or
        with the process (PostgreSQL: the connection) when that comes first.

        Raises
        ------
        Busy
            When that lasts more than 30 s.
        CatalogUnavailable
            On leaving, when the connection was lost, and with it the hold.
        """
        return self._holds.hold(hashes, exclusive=False, wait=WAIT)

    def exclusively(self, sha256: str, *, wait: float = WAIT) -> AbstractContextManager[None]:
        """Hold one hash for removing it, against uploads and other removals.

        Not to be entered while the same thread holds the hash already.

        Raises
        ------
        Busy
            When it is not to be had within `wait` seconds.
        CatalogUnavailable
            On leaving, when the connection was lost, and with it the hold.
        """
        return self._holds.hold([sha256], exclusive=True, wait=wait)

    # --- end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Release all connections. Idempotent; other calls raise `CatalogError` afterwards."""
        self._database.close()
        if self._lookup is not None:
            self._lookup.close()
        self._holds.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog {self.safe_url}>"


_FILES_OF = select(*FILE_COLUMNS).where(files.c.hash.in_(bindparam("hashes", expanding=True)))
_UPLOADS_OF = (
    select(*UPLOAD_COLUMNS)
    .where(uploads.c.hash.in_(bindparam("hashes", expanding=True)))
    .order_by(uploads.c.hash, uploads.c.host, uploads.c.location)
)
_FORGET: Delete = delete(uploads).where(
    uploads.c.hash == bindparam("key_hash"),
    uploads.c.host == bindparam("key_host"),
    uploads.c.location == bindparam("key_location"),
)


def _on_a_host(before: float) -> ColumnElement[bool]:
    return and_(
        uploads.c.status.in_(("stored", "failed")),
        uploads.c.location != "",
        func.coalesce(uploads.c.verified_at, 0.0) < before,
    )


def _key(copy: UploadRecord) -> tuple[str, str, str]:
    return copy.hash, copy.host, copy.location


def _batches(hashes: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(dict.fromkeys(hashes))
    while batch := list(islice(iterator, _BATCH)):
        yield batch


def _prefix_range(prefix: str) -> list[ColumnElement[bool]]:
    """`prefix` as a range of the key. Not LIKE: SQLite's ignores case and so the index."""
    if len(prefix) > 64 or not _HEX.issuperset(prefix):
        raise ValueError(f"not the beginning of a SHA-256 hash: {prefix!r:.80}")
    if not prefix:
        return []
    return [files.c.hash >= prefix.ljust(64, "0"), files.c.hash <= prefix.ljust(64, "f")]


def _month(now: float | None) -> str:
    return time.strftime("%Y-%m", time.gmtime(now))


def _meter_row(incoming: int, outgoing: int, now: float | None) -> dict[str, Any]:
    if incoming < 0 or outgoing < 0:
        raise ValueError(f"a meter only counts up: {incoming}, {outgoing}")
    return {"month": _month(now), "incoming": incoming, "outgoing": outgoing}
