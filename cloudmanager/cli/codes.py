"""Exit codes, and which error means which."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterable

from cloudmanager.errors import (
    AccessDenied,
    AmbiguousHash,
    CacheCorrupt,
    CacheUnusable,
    CatalogError,
    CatalogNotSetUp,
    CatalogTooNew,
    ConfigurationError,
    ContainerNotFound,
    IntegrityError,
    NoGoodCopy,
    NotACatalog,
    ObjectNotFound,
    UnknownFile,
    Unsupported,
)

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}

__all__ = ["FAILED", "INTEGRITY", "NOT_ALLOWED", "NOT_FOUND", "OK", "TEMPORARY", "USAGE", "combine"]

OK = 0
FAILED = 1
"""Some items failed, or something that has no code of its own."""
USAGE = 2
"""Wrong usage or configuration."""
NOT_FOUND = 4
TEMPORARY = 5
"""Try again later; nothing needs to be changed."""
INTEGRITY = 6
"""Wrong bytes, or too few copies."""
NOT_ALLOWED = 7


def code_for(exc: BaseException) -> int:
    """The exit code for an error that ended a command, or one item of it."""
    if isinstance(exc, NoGoodCopy):
        if exc.wrong or not exc.errors:
            return INTEGRITY
        return TEMPORARY if exc.retryable else combine(code_for(e) for e in exc.errors)
    if isinstance(
        exc,
        ConfigurationError
        | CatalogNotSetUp
        | CatalogTooNew
        | NotACatalog
        | AmbiguousHash
        | Unsupported
        | ValueError
        | IsADirectoryError,
    ):
        return USAGE
    if isinstance(exc, ObjectNotFound | ContainerNotFound | FileNotFoundError | UnknownFile):
        return NOT_FOUND
    if isinstance(exc, IntegrityError | CacheCorrupt):
        return INTEGRITY
    if isinstance(exc, AccessDenied | PermissionError):
        return NOT_ALLOWED
    if isinstance(exc, CacheUnusable):
        if exc.__cause__ is None:
            return USAGE  # a path that cannot be a cache directory
        return NOT_ALLOWED if _is_denied(exc) else FAILED
    if isinstance(exc, CatalogError) and _is_denied(exc):
        return NOT_ALLOWED
    return TEMPORARY if getattr(exc, "retryable", False) else FAILED


def _is_denied(exc: BaseException | None) -> bool:
    """Whether permissions are at the bottom of an error: of the system or of SQLite."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.errno in _DENIED:
            return True
        if isinstance(exc, sqlite3.Error) and "readonly" in str(exc):
            return True
        exc = exc.__cause__
    return False


def combine(codes: Iterable[int]) -> int:
    """The code of many items: theirs when all agree, else `FAILED` when any failed."""
    distinct = set(codes)
    if len(distinct) == 1:
        return distinct.pop()
    return FAILED if distinct else OK
