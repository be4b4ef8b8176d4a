"""Foreign exceptions become ours, in this one place.

SQLite's are told apart by result code and PostgreSQL's by SQLSTATE, never by the words of a
message, which change with versions and languages.
"""

from __future__ import annotations

import sqlite3

from sqlalchemy import exc as sa_exc

from cloudmanager.errors import (
    CatalogError,
    CatalogNotSetUp,
    CatalogUnavailable,
    CloudManagerError,
    NotACatalog,
)

__all__ = [
    "FOREIGN",
    "is_conflict",
    "is_locked",
    "is_lost",
    "is_orphan",
    "is_timeout",
    "translate",
]

FOREIGN = (sa_exc.SQLAlchemyError, sqlite3.Error)
"""What the database libraries raise."""

_LOST_STATES = ("08", "57P")  # connection exceptions; the server is stopping or starting


def _original(exc: BaseException) -> BaseException:
    if isinstance(exc, sa_exc.DBAPIError) and exc.orig is not None:
        return exc.orig
    return exc


def _code(exc: BaseException) -> int | None:
    """SQLite's primary result code."""
    code = getattr(_original(exc), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _state(exc: BaseException) -> str:
    """PostgreSQL's SQLSTATE, ``""`` when there is none."""
    return getattr(_original(exc), "sqlstate", None) or ""


def is_locked(exc: BaseException) -> bool:
    """SQLite: somebody else holds the lock, nothing was done."""
    return _code(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_lost(exc: BaseException) -> bool:
    """PostgreSQL: the connection broke, or the server ended it."""
    if isinstance(exc, sa_exc.DBAPIError) and exc.connection_invalidated:
        return True
    return _state(exc).startswith(_LOST_STATES)


def is_conflict(exc: BaseException) -> bool:
    """PostgreSQL rolled the transaction back in favour of another; it can be run again."""
    return _state(exc) in ("40001", "40P01")


def is_orphan(exc: BaseException) -> bool:
    """PostgreSQL: a foreign key found no row. Another transaction may just have deleted it."""
    return _state(exc) == "23503"


def is_timeout(exc: BaseException) -> bool:
    """PostgreSQL: a lock was not to be had within lock_timeout or statement_timeout."""
    return _state(exc) in ("55P03", "57014")


def translate(exc: BaseException, where: str, *, secret: str | None = None) -> CloudManagerError:
    """The error to raise instead of `exc`, which was about the database `where`.

    `where` is safe to show; `secret` is struck out should a driver ever repeat it.
    """
    result = _translate(exc, where)
    if secret and secret in str(result):
        cleaned = type(result)(str(result).replace(secret, "***"))
        cleaned.retryable = result.retryable
        return cleaned
    return result


def _translate(exc: BaseException, where: str) -> CloudManagerError:
    said = _one_line(exc)
    if isinstance(exc, sa_exc.TimeoutError):
        return CatalogUnavailable(f"catalog {where}: all connections are busy; try again later")
    code = _code(exc)
    if code is not None:
        return _translate_sqlite(code, said, where)
    state = _state(exc)
    if state == "42P01":
        return CatalogNotSetUp(f"catalog {where} lacks a table ({said}); run `cm_setup_db {where}`")
    if state.startswith("23"):
        return CatalogError(f"catalog {where} refused a record that contradicts it: {said}")
    if state == "42501":
        return CatalogError(f"catalog {where}: this user may not do that: {said}")
    unavailable = ("53", "55P03", "40", "57", "58", "08")
    if (
        state.startswith(unavailable)
        or is_lost(exc)
        or isinstance(exc, sa_exc.OperationalError | sa_exc.InterfaceError)
    ):
        return CatalogUnavailable(f"catalog {where} is not available: {said}")
    return CatalogError(f"catalog {where}: {said}")


def _translate_sqlite(code: int, said: str, where: str) -> CloudManagerError:
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return CatalogUnavailable(
            f"catalog {where} is locked by another process; try again when it is done"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return NotACatalog(
            f"{where} is not a database; give the path of a catalog or of a new file"
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return NotACatalog(
            f"catalog {where} is damaged ({said}); move it away and run `cloudmanager rebuild`, "
            "which restores it from the hosts"
        )
    if code == sqlite3.SQLITE_FULL:
        return CatalogUnavailable(f"catalog {where}: the disk is full; free some space")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return CatalogError(f"catalog {where} refused a record that contradicts it: {said}")
    if code in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
    ):
        error = CatalogUnavailable(
            f"catalog {where} cannot be opened for writing ({said}); "
            "check the permissions of the file and of its folder"
        )
        error.retryable = False
        return error
    if code == sqlite3.SQLITE_IOERR:
        return CatalogUnavailable(f"catalog {where}: reading or writing failed: {said}")
    return CatalogError(f"catalog {where}: {said}")


def _one_line(exc: BaseException) -> str:
    """The database's own words, without SQL, parameters or line breaks."""
    return " ".join(str(_original(exc)).split()) or type(exc).__name__
