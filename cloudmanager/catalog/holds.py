"""Who works on which file: shared holds for uploads, exclusive ones for removal.

A hold lives as long as its process (or its connection), not for a time: a killed process
lets go at once, a stopped one keeps what it has, and no clock is compared. A lease would
need both a renewing thread and a fence on everything that is done under it.

Keys are taken in ascending order, so that two batches never wait for each other.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import text

from cloudmanager.catalog import border
from cloudmanager.catalog.database import Database
from cloudmanager.errors import Busy, CatalogUnavailable

__all__ = ["WAIT", "FileHolds", "Holds", "ServerHolds", "holds_for"]

WAIT = 30.0
"""Seconds that a shared hold waits for an exclusive one."""


class Holds(ABC):
    """Holds on hashes. Thread-safe."""

    @abstractmethod
    def hold(
        self, hashes: Iterable[str], *, exclusive: bool, wait: float
    ) -> AbstractContextManager[None]:
        """A with-block during which the hashes are held.

        Raises
        ------
        Busy
            When they are not to be had within `wait` seconds.
        """

    def close(self) -> None:  # noqa: B027 - locks of the process end with it
        """Release connections."""


def holds_for(database: Database) -> Holds:
    """The holds that everybody who uses the same database sees."""
    if not database.is_sqlite:
        return ServerHolds(database)
    return FileHolds(None if database.path is None else database.path + "-holds")


# --- one machine: byte-range locks ------------------------------------------------------


class _State:
    """What this process holds at one offset."""

    __slots__ = ("exclusive", "shared")

    def __init__(self) -> None:
        self.shared = 0
        self.exclusive = False


class _LockFile:
    """One lock file of this process, and who in the process holds what in it.

    POSIX locks belong to the process: they know neither its threads nor its several
    catalogs, and closing any descriptor of the file drops them all. So there is one object
    per file in a process, it arbitrates in memory first, and keeps its descriptor.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._changed = threading.Condition()
        self._states: dict[int, _State] = {}

    def acquire(self, offset: int, *, exclusive: bool, deadline: float) -> bool:
        """Hold one offset; False when `deadline` (monotonic) passed before."""
        with self._changed:
            while True:
                if self._try(offset, exclusive=exclusive):
                    return True
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                # Another process does not notify: look again now and then.
                self._changed.wait(min(remaining, 0.01 + 0.02 * random.random()))

    def release(self, offset: int, *, exclusive: bool) -> None:
        """Let one hold on the offset go."""
        with self._changed:
            state = self._states[offset]
            if exclusive:
                state.exclusive = False
            else:
                state.shared -= 1
            if not state.exclusive and state.shared == 0:
                del self._states[offset]
                if self._descriptor is not None:
                    fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, offset)
            self._changed.notify_all()

    def _try(self, offset: int, *, exclusive: bool) -> bool:
        state = self._states.get(offset)
        if state is not None:
            if exclusive or state.exclusive:
                return False
            state.shared += 1
            return True
        if self._path is not None and not self._lock(self._path, offset, exclusive=exclusive):
            return False
        state = self._states[offset] = _State()
        state.exclusive = exclusive
        state.shared = 0 if exclusive else 1
        return True

    def _lock(self, path: str, offset: int, *, exclusive: bool) -> bool:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        descriptor = self._open(path)  # not allowed to: that is no other holder
        try:
            fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):  # EAGAIN or, on some systems, EACCES
            return False
        return True

    def _open(self, path: str) -> int:
        """The descriptor. Renewed, while nothing is held, when the file was replaced:
        somebody who removed the catalog with all its files must not leave us locking a
        file that nobody else can see."""
        if self._descriptor is not None:
            if self._states or _same_file(self._descriptor, path):
                return self._descriptor
            os.close(self._descriptor)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self._descriptor


def _same_file(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


_files: dict[str, _LockFile] = {}
_files_lock = threading.Lock()


def _forget_parent() -> None:
    """After fork: locks are not inherited, so the child holds nothing."""
    global _files, _files_lock
    _files = {}
    _files_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)


class FileHolds(Holds):
    """Byte-range locks in a file beside the database; in memory only when `path` is None.

    The byte at offset N stands for the hashes whose first 15 digits are N. The file stays
    empty: a lock may lie past its end.
    """

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else os.path.realpath(path)
        self._private = _LockFile(None)

    @contextmanager
    def hold(self, hashes: Iterable[str], *, exclusive: bool, wait: float) -> Iterator[None]:
        """See `Holds.hold`."""
        deadline = time.monotonic() + wait
        wanted = {int(sha256[:15], 16): sha256 for sha256 in hashes}
        file = self._file()
        held: list[int] = []
        try:
            for offset in sorted(wanted):
                try:
                    got = file.acquire(offset, exclusive=exclusive, deadline=deadline)
                except OSError as exc:
                    raise CatalogUnavailable(
                        f"cannot lock {wanted[offset]} in {self._path}: {exc.strerror}"
                    ) from exc
                if not got:
                    raise _busy(wanted[offset], wait)
                held.append(offset)
            yield
        finally:
            for offset in reversed(held):
                file.release(offset, exclusive=exclusive)

    def _file(self) -> _LockFile:
        if self._path is None:
            return self._private
        with _files_lock:
            return _files.setdefault(self._path, _LockFile(self._path))


# --- several machines: PostgreSQL's advisory locks ----------------------------------------


class ServerHolds(Holds):
    """Session advisory locks, each batch on a connection of its own.

    The 64-bit key is the first 16 digits of the hash. Needs a direct connection or one
    pooled by session: a pooler by transaction would hand the session to somebody else.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Apart from the connections for queries: with one pool, as many holders as it has
        # connections would wait for ever for one to work with.
        self._engine = database.sessions()

    @contextmanager
    def hold(self, hashes: Iterable[str], *, exclusive: bool, wait: float) -> Iterator[None]:
        """See `Holds.hold`. Raises `CatalogUnavailable` on leaving when the connection, and
        with it the hold, was lost in between."""
        wanted = sorted({sha256[:16] for sha256 in hashes})
        if not wanted:
            yield
            return
        keys = sorted(_signed(digits) for digits in wanted)
        function = "pg_advisory_lock" if exclusive else "pg_advisory_lock_shared"
        try:
            connection = self._engine.connect()
        except border.FOREIGN as exc:
            raise self._database.translate(exc) from exc
        released = False
        try:
            try:
                # In a transaction, for the time limit's sake: it covers the statement with all
                # its locks (lock_timeout would begin anew with each) and ends with COMMIT.
                # The locks belong to the session and stay.
                connection.exec_driver_sql("BEGIN")
                connection.execute(
                    text("SELECT set_config('statement_timeout', :wait, true)"),
                    {"wait": str(max(1, int(wait * 1000)))},
                )
                # The inner select sorts before the outer one locks.
                connection.execute(
                    text(
                        f"SELECT {function}(key) FROM "
                        "(SELECT key FROM unnest(CAST(:keys AS bigint[])) AS key ORDER BY key) AS s"
                    ),
                    {"keys": keys},
                )
                connection.exec_driver_sql("COMMIT")
            except border.FOREIGN as exc:
                if border.is_timeout(exc):
                    raise _busy(f"{wanted[0]}…", wait) from exc
                raise self._database.translate(exc) from exc
            yield
            try:
                connection.execute(text("SELECT pg_advisory_unlock_all()"))
            except border.FOREIGN as exc:
                raise CatalogUnavailable(
                    f"the connection to {self._database.where} was lost, and with it the hold on "
                    f"{len(keys)} files; try again"
                ) from exc
            released = True
        finally:
            # Ending the session is what surely releases: a time-out keeps the locks that were
            # taken before it, and the body may have failed because the server is gone.
            if not released:
                connection.invalidate()
            connection.close()

    def close(self) -> None:
        """Release connections; holds that are still in use end with theirs."""
        self._engine.dispose()


def _signed(digits: str) -> int:
    """The first 16 hex digits as PostgreSQL's bigint."""
    value = int(digits, 16)
    return value - 2**64 if value >= 2**63 else value


def _busy(what: str, wait: float) -> Busy:
    return Busy(
        f"{what} is in use by another process (upload or removal) for more than {wait:g} s; "
        "try again when it is done"
    )
