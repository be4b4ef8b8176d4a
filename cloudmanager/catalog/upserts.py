"""Writing many rows at once, in the dialect of the database."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from sqlalchemy import Column, Connection, Delete, Dialect, bindparam, delete

from cloudmanager.catalog.records import FILE_COLUMNS, UPLOAD_COLUMNS
from cloudmanager.catalog.tables import files, transfer_meter, uploads

__all__ = ["SqliteUpserts", "Upserts", "upserts_for"]

Row = Mapping[str, Any]

_AT_ONCE = 500
"""Rows in one statement of SQLite, which takes 32,766 parameters."""


def upserts_for(dialect: Dialect) -> Upserts:
    """The way to write that suits the database."""
    return (SqliteUpserts if dialect.name == "sqlite" else Upserts)(dialect)


class Upserts:
    """INSERT … ON CONFLICT. Rows are mappings of the columns' names, in the order of the keys:
    the same in every process, so that two batches never wait for each other."""

    def __init__(self, dialect: Dialect) -> None:
        # The constructs of the dialects have the same methods but no common type. Only the one
        # that is needed is loaded: a command that lasts a moment would feel the other.
        insert: Any = importlib.import_module(f"sqlalchemy.dialects.{dialect.name}").insert
        self._file = insert(files).on_conflict_do_nothing(index_elements=["hash"])
        key = ["hash", "host", "location"]
        new = insert(uploads)
        self._upload = new.on_conflict_do_update(
            index_elements=key,
            set_={
                column.name: new.excluded[column.name]
                for column in uploads.c
                if column.name not in key
            },
        )
        added = insert(transfer_meter)
        self._meter = added.on_conflict_do_update(
            index_elements=["month"],
            set_={
                "incoming": transfer_meter.c.incoming + added.excluded.incoming,
                "outgoing": transfer_meter.c.outgoing + added.excluded.outgoing,
            },
        )

    def files(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add files; those that are known stay as they were."""
        connection.execute(self._file, rows)

    def uploads(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add copies, or replace those with the same key."""
        connection.execute(self._upload, rows)

    def settle(self, connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
        """Forget what hosts still owe, by (hash, host)."""
        rows = [{"key_hash": sha256, "key_host": host} for sha256, host in pairs]
        connection.execute(_SETTLE, rows)

    def meter(self, connection: Connection, row: Row) -> None:
        """Add to the meter of a month."""
        connection.execute(self._meter, row)


class SqliteUpserts(Upserts):
    """Many rows in one statement.

    ``executemany`` steps row by row, and Python gives up its global lock around every step.
    Where other threads wait for it, getting it back takes longer than the row itself.
    """

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self._many_files = _Many(self._file, FILE_COLUMNS, dialect)
        self._many_uploads = _Many(self._upload, UPLOAD_COLUMNS, dialect)

    def files(self, connection: Connection, rows: Sequence[Row]) -> None:
        """See `Upserts.files`."""
        self._many_files(connection, rows)

    def uploads(self, connection: Connection, rows: Sequence[Row]) -> None:
        """See `Upserts.uploads`."""
        self._many_uploads(connection, rows)

    def settle(self, connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
        """See `Upserts.settle`."""
        by_host = sorted(pairs, key=lambda pair: pair[1])
        for host, group in groupby(by_host, key=lambda pair: pair[1]):
            hashes = [sha256 for sha256, _ in group]
            for start in range(0, len(hashes), _AT_ONCE):
                some = hashes[start : start + _AT_ONCE]
                connection.execute(_SETTLE_MANY, {"key_host": host, "hashes": some})


class _Many:
    """One INSERT statement with the values of several rows."""

    def __init__(self, statement: Any, columns: Iterable[Column[Any]], dialect: Dialect) -> None:
        compiled = statement.compile(
            dialect=dialect, column_keys=[column.name for column in columns]
        )
        self._names: Sequence[str] = compiled.positiontup
        marks = f"({', '.join('?' * len(self._names))})"
        self._before, found, self._after = str(compiled).partition(f" VALUES {marks}")
        assert found, "SQLAlchemy writes an INSERT in another way"
        self._marks = marks

    def __call__(self, connection: Connection, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), _AT_ONCE):
            some = rows[start : start + _AT_ONCE]
            marks = ", ".join([self._marks] * len(some))
            values = tuple(row[name] for row in some for name in self._names)
            connection.exec_driver_sql(
                f"{self._before} VALUES {marks}{self._after}",
                values,
            )


_OWED = (uploads.c.location == "", uploads.c.status == "queued")
_SETTLE: Delete = delete(uploads).where(
    uploads.c.hash == bindparam("key_hash"), uploads.c.host == bindparam("key_host"), *_OWED
)
_SETTLE_MANY: Delete = delete(uploads).where(
    uploads.c.hash.in_(bindparam("hashes", expanding=True)),
    uploads.c.host == bindparam("key_host"),
    *_OWED,
)
