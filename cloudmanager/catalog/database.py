"""One database: how it is reached, and how work is done in it as transactions.

Work is a function of a connection, so that it can be run again: when SQLite says "locked",
when PostgreSQL rolled back for another transaction, and, once, when the connection to
PostgreSQL turns out to be lost.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import QueuePool

from cloudmanager.catalog import border
from cloudmanager.errors import (
    CatalogError,
    CatalogUnavailable,
    CloudManagerError,
    ConfigurationError,
    NotACatalog,
)

__all__ = ["LOCK_WAIT", "Database", "connect_sqlite", "open_database"]

T = TypeVar("T")

LOCK_WAIT = 20.0
"""Seconds to wait for somebody else's lock before `CatalogUnavailable`."""

_CONFLICT_RETRIES = 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+_]*://")
_WRITE = "cloudmanager_write"


def connect_sqlite(path: str) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions begin where we say BEGIN.

    The driver's own mode begins them late, at the first write, with a lock that cannot
    wait: four writers that read, add and write lost more than half of their updates.
    """
    connection = sqlite3.connect(
        path, timeout=LOCK_WAIT, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL, not NORMAL: a hash that `upload` has returned must be known after power loss too.
    # In WAL mode that is one flush per transaction.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: to the disk, not to its own memory
    return connection


class Database:
    """An engine and the border around it. Thread-safe.

    `where` names it in messages: a path, or a URL without password. `path` is the file of a
    SQLite database, None in memory and on a server.
    """

    def __init__(
        self,
        engine: Engine,
        where: str,
        *,
        path: str | None = None,
        url: URL | None = None,
    ) -> None:
        self.engine = engine
        self.where = where
        self.path = path
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.closed = False
        self._url = url
        self._secret = None if url is None or url.password is None else str(url.password)
        self._writer = engine.execution_options(**{_WRITE: True})
        # Threads queue here instead of polling SQLite's lock with growing pauses.
        self._turn = threading.Lock()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that takes no write lock."""
        return self._run(self.engine, work, idempotent=True)

    def write(self, work: Callable[[Connection], T], *, idempotent: bool = True) -> T:
        """Run `work` in one writing transaction.

        `idempotent`: running it twice does the same as once, so it may be repeated also when
        the connection was lost during COMMIT and nobody knows whether that arrived.
        """
        if not self.is_sqlite:
            return self._run(self._writer, work, idempotent=idempotent)
        if not self._turn.acquire(timeout=LOCK_WAIT):
            raise CatalogUnavailable(
                f"catalog {self.where} is busy with other threads of this process; try again"
            )
        try:
            return self._run(self._writer, work, idempotent=idempotent)
        finally:
            self._turn.release()

    def _run(self, engine: Engine, work: Callable[[Connection], T], *, idempotent: bool) -> T:
        deadline = time.monotonic() + LOCK_WAIT
        conflicts = 0
        reconnected = False
        while True:
            if self.closed:
                raise CatalogError(f"the catalog {self.where} is closed")
            committing = False
            try:
                with engine.connect() as connection:
                    with connection.begin() as transaction:
                        result = work(connection)
                        committing = True
                        transaction.commit()
                    return result
            except border.FOREIGN as exc:
                if border.is_locked(exc) and time.monotonic() < deadline:
                    # SQLite waits by itself, except where it fears a deadlock.
                    time.sleep(0.02)
                    continue
                if border.is_conflict(exc) and conflicts < _CONFLICT_RETRIES:
                    conflicts += 1
                    time.sleep(0.002 * conflicts)
                    continue
                if border.is_orphan(exc) and conflicts == 0:
                    # The file row was there when this transaction began and a removal took
                    # it: the second run sees that, and adds the row if the work does so.
                    conflicts = _CONFLICT_RETRIES
                    continue
                if border.is_lost(exc) and not reconnected and (idempotent or not committing):
                    reconnected = True
                    continue
                raise self.translate(exc) from exc

    def translate(self, exc: BaseException) -> CloudManagerError:
        """The error to raise instead of a foreign one."""
        return border.translate(exc, self.where, secret=self._secret)

    def sessions(self) -> Engine:
        """A pool of its own for a server's sessions in autocommit mode, as many as asked for."""
        assert self._url is not None
        return create_engine(
            self._url,
            pool_pre_ping=True,
            pool_size=4,
            max_overflow=-1,
            isolation_level="AUTOCOMMIT",
            connect_args=_connect_args(self._url),
        )

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.closed = True
        self.engine.dispose()


def open_database(database: str | os.PathLike[str], *, create: bool = False) -> Database:
    """The database of a path or URL; nothing is read from it yet.

    `create`: the folder of a SQLite file may be missing and is created.

    Raises
    ------
    ConfigurationError
        For a URL that cannot be read, or a kind of database we do not know.
    NotACatalog
        For a directory, or a path whose folder is missing.
    """
    if isinstance(database, str) and (database == ":memory:" or _URL.match(database)):
        url = _parse(database)
        if url.get_backend_name() == "postgresql":
            return _open_postgresql(url)
        path = url.database
    else:
        path = os.fsdecode(database)
        if not path:
            raise ConfigurationError("no database given; give a path or an SQLAlchemy URL")
    if path in (None, "", ":memory:"):
        return _open_sqlite(None)
    return _open_sqlite(_checked_path(path, create=create))


def _parse(text: str) -> URL:
    if text == ":memory:":
        return URL.create("sqlite")
    try:
        url = make_url(text)
    except (sa_exc.ArgumentError, ValueError):
        # Neither text nor cause: both may repeat the password.
        raise ConfigurationError(
            "the database URL cannot be read; it has the form "
            "postgresql://USER:PASSWORD@SERVER:PORT/NAME or sqlite:///PATH, "
            "with special characters in the password percent-encoded"
        ) from None
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigurationError(
            f"a catalog cannot be kept in {backend!r}; give a path, sqlite:///PATH or "
            "postgresql://USER@SERVER/NAME"
        )
    if backend == "sqlite" and url.query:
        raise ConfigurationError("the URL of a SQLite catalog takes no options after '?'")
    return url


def _checked_path(path: str, *, create: bool) -> str:
    path = os.path.abspath(path)
    shown = _shown(path)
    if os.path.isdir(path):
        raise NotACatalog(f"{shown} is a directory; give the path of the database file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise NotACatalog(f"{shown} is not a regular file; give the path of a database file")
    parent = os.path.dirname(path)
    folder = _shown(parent)
    if os.path.isdir(parent):
        return path
    if not create:
        raise NotACatalog(
            f"catalog {shown}: the folder {folder} does not exist; "
            "create it, or run `cm_setup_db`, which does"
        )
    try:
        os.makedirs(parent, exist_ok=True)
    except OSError as exc:
        raise NotACatalog(
            f"catalog {shown}: the folder {folder} cannot be created: {exc.strerror}"
        ) from exc
    return path


def _shown(path: str) -> str:
    """A path in a message of one line: a name may hold newlines, or bytes that are no text."""
    return path if path.isprintable() else repr(path)


def _open_sqlite(path: str | None) -> Database:
    if path is None:
        # One connection, lent to one thread at a time: a second one would see another,
        # empty database.
        engine = create_engine(
            "sqlite://",
            creator=lambda: connect_sqlite(":memory:"),
            poolclass=QueuePool,
            pool_size=1,
            max_overflow=0,
            pool_timeout=LOCK_WAIT,
            pool_reset_on_return="rollback",
        )
    else:
        engine = create_engine(
            "sqlite://",
            creator=lambda: connect_sqlite(path),
            poolclass=QueuePool,
            pool_size=8,
            max_overflow=-1,
        )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writing = connection.get_execution_options().get(_WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    return Database(engine, _shown(path) if path else ":memory:", path=path)


def _open_postgresql(url: URL) -> Database:
    # SQLAlchemy 2.0 would take psycopg2 for a bare postgresql://, 2.1 psycopg 3.
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.get_driver_name() != "psycopg":
        raise ConfigurationError(
            f"the catalog uses the driver psycopg 3; write postgresql:// instead of "
            f"{url.drivername}://"
        )
    where = _without_secrets(url)
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=10,
            pool_timeout=LOCK_WAIT,
            connect_args=_connect_args(url),
        )
    except ImportError as exc:
        raise ConfigurationError(
            "a catalog on PostgreSQL needs the driver psycopg; "
            "run: pip install 'cloudmanager[postgres]'"
        ) from exc

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        # A row lock that is never given back would otherwise hold us for ever.
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(LOCK_WAIT * 1000)}")
        connection.commit()

    return Database(engine, where, url=url)


def _connect_args(url: URL) -> dict[str, Any]:
    """A dead server is noticed within a minute; the URL's own settings win."""
    defaults = {
        "connect_timeout": 10,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 4,
        "tcp_user_timeout": 30_000,
    }
    return {name: value for name, value in defaults.items() if name not in url.query}


def _without_secrets(url: URL) -> str:
    """The URL as a user would write it, without password, also not one among the options."""
    query = {
        name: value
        for name, value in url.query.items()
        if "pass" not in name.lower() and "secret" not in name.lower()
    }
    # Not url.set(password=None): that keeps it.
    return URL.create(
        "postgresql", url.username, None, url.host, url.port, url.database, query
    ).render_as_string()
