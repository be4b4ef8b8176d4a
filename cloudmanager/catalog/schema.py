"""Set-up and upgrades.

The revision is a number in the table ``cloudmanager_schema``. Reading it needs no Alembic,
nor does a new SQLite file, which is made from ``schema.sql``; the rest does, so only then is it
imported.
"""

from __future__ import annotations

import functools
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from cloudmanager.catalog import border
from cloudmanager.catalog.database import Database, connect_sqlite, open_database
from cloudmanager.catalog.tables import REVISION, VERSION_TABLE
from cloudmanager.errors import (
    CatalogError,
    CatalogNotSetUp,
    CatalogTooNew,
    NotACatalog,
)

__all__ = ["MIGRATIONS", "prepare", "set_up", "upgrade"]

MIGRATIONS = Path(__file__).with_name("migrations")

_RENDERING = Path(__file__).with_name("schema.sql")
_SETUP_KEY = 0x636D_7365_7475_7000  # PostgreSQL advisory lock: one set-up at a time
_alembic = threading.Lock()  # Alembic's `op` is a global of the process


def set_up(database: str | os.PathLike[str]) -> str:
    """Create the schema in `database`, or upgrade an older one. Idempotent.

    Missing folders of a SQLite file are created. Returns one line that says what was done.

    Raises
    ------
    CatalogTooNew
        When a newer cloudmanager made it.
    NotACatalog, CatalogUnavailable, ConfigurationError
        As `Catalog.open`.
    """
    opened = open_database(database, create=True)
    try:
        return _set_up(opened)
    finally:
        opened.close()


def prepare(database: Database) -> None:
    """Make sure that `database` has the schema of this code; a new SQLite file gets it.

    An older schema is not upgraded silently: other nodes or processes may still run the
    older code.
    """
    found = database.read(lambda connection: _revision(database, connection))
    if found is None and database.is_sqlite:
        _set_up(database)
        return
    if found is None:
        raise CatalogNotSetUp(
            f"the database {database.where} has no cloudmanager schema; "
            f"run `cm_setup_db {database.where}`"
        )
    _refuse_newer(database, found)
    if found != REVISION:
        raise CatalogNotSetUp(
            f"the catalog {database.where} has schema {_number(found)} and this cloudmanager "
            f"needs {_number(REVISION)}; stop what uses it and run `cm_setup_db {database.where}`"
        )
    _use_wal(database)


def upgrade(connection: Connection, target: str) -> None:
    """Run the migrations up to `target`, in the transaction of `connection`."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _alembic:
        command.upgrade(config, target)


def _set_up(database: Database) -> str:
    _use_wal(database)

    def work(connection: Connection) -> str | None:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SETUP_KEY})
        found = _revision(database, connection)
        if found is not None:
            _refuse_newer(database, found)
        if found is None and database.is_sqlite and _rendered():
            # A test keeps it the same as what the migrations make. They would cost a new
            # catalog 0.1 s of imports, as much as storing hundreds of small files.
            for statement in _statements(_text_of(_RENDERING)):
                connection.exec_driver_sql(statement)
        elif found != REVISION:
            upgrade(connection, REVISION)
        return found

    found = database.write(work)
    if found is None:
        return f"created schema {_number(REVISION)} in {database.where}"
    if found != REVISION:
        return f"upgraded {database.where} from {_number(found)} to {_number(REVISION)}"
    return f"{database.where} is up to date ({_number(REVISION)})"


@functools.cache
def _text_of(script: Path) -> str:
    """Read once: a program that gives up its rights later may not be able to any more."""
    return script.read_text(encoding="utf-8")


def _rendered() -> bool:
    """Whether ``schema.sql`` shows the revision of this code."""
    return f"VALUES ('{REVISION}');" in _text_of(_RENDERING)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script. Not `executescript`: that commits what was begun before."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _use_wal(database: Database) -> None:
    """Write-ahead log: readers never wait for the writer. Kept in the file itself.

    Outside of any transaction, as SQLite demands. Also for a file that was made from
    ``schema.sql``.
    """
    if database.path is None:  # in memory, or a server
        return
    try:
        connection = connect_sqlite(database.path)
    except border.FOREIGN as exc:
        raise database.translate(exc) from exc
    try:
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            connection.execute("PRAGMA journal_mode = WAL")
    except border.FOREIGN as exc:
        # Somebody is at work in the old mode, or switches right now; SQLite does not wait
        # here. The old mode is slower and as safe, and the next one who opens tries again.
        if not border.is_locked(exc):
            raise database.translate(exc) from exc
    finally:
        connection.close()


def _revision(database: Database, connection: Connection) -> str | None:
    """The revision in the database; None when it holds nothing of ours.

    Raises
    ------
    NotACatalog
        For a SQLite file with the tables of something else: a catalog has a file of its own.
    """
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE not in tables:
        if database.is_sqlite and tables:
            raise NotACatalog(
                f"{database.where} is the database of something else (it has a table "
                f"{sorted(tables)[0]!r} and none of cloudmanager's); give another path"
            )
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()
    if len(found) > 1:
        raise CatalogError(f"catalog {database.where} claims several schemas: {sorted(found)}")
    return str(found[0]) if found else None


def _refuse_newer(database: Database, found: str) -> None:
    """Revisions are counted: 0001, 0002, … Anything else is not from our past either."""
    if not found.isdecimal() or int(found) > int(REVISION):
        raise CatalogTooNew(
            f"the catalog {database.where} has schema {found}, made by a newer cloudmanager; "
            f"this one knows schemas up to {_number(REVISION)}: upgrade cloudmanager"
        )


def _number(revision: str) -> int:
    return int(revision)
