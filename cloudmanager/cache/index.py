"""The index of a cache directory: SQLite, shared by all processes that use the directory.

It lies in the directory because a catalog can be shared by many nodes and a cache cannot.
Every change of what lies in ``objects/`` or of what is reserved is one write transaction.
Writers queue for a thread lock, then for a file lock, and only then begin: SQLite's own
waiting polls with growing sleeps, and 32 writers starve each other.

The single row of ``state`` keeps the sums, so that no call has to add up entries.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from ..errors import CacheCorrupt, CacheUnusable
from .layout import Layout, flush_path
from .recency import Recency

__all__ = ["EVICTABLE", "OWED", "Entry", "Index", "Transaction", "signed"]

VERSION: Final = 1
EVICTABLE: Final = 0
OWED: Final = 1
_ASIDE: Final = 2

_SCHEMA: Final = (
    """
    CREATE TABLE state (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        capacity INTEGER NOT NULL,   -- bytes
        stored INTEGER NOT NULL,     -- bytes of all entries
        owed INTEGER NOT NULL,       -- bytes of the entries that may not be evicted
        reserved INTEGER NOT NULL,   -- bytes in flight, of all owners
        entries INTEGER NOT NULL,
        serial INTEGER NOT NULL,     -- the last one given to an entry
        slots INTEGER NOT NULL,      -- slots of the recency file ever given out
        boot TEXT NOT NULL,          -- the run of the machine that `shift` belongs to
        boots INTEGER NOT NULL,      -- how many runs have used the directory
        shift INTEGER NOT NULL       -- monotonic clock + shift = stamp, nanoseconds
    )
    """,
    # WITHOUT ROWID: one tree less to write for each entry. The evictable index holds what
    # may go, oldest first, and nothing else: eviction never walks over what is owed.
    """
    CREATE TABLE entries (
        hash BLOB PRIMARY KEY,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        slot INTEGER NOT NULL,
        serial INTEGER NOT NULL,
        stamp INTEGER NOT NULL,      -- no later than the one in the recency file
        keep INTEGER NOT NULL,       -- 0 evictable, 1 owed to hosts, 2 set aside while evicting
        boot INTEGER NOT NULL        -- the run that wrote it, 0 once it was flushed
    ) WITHOUT ROWID
    """,
    "CREATE INDEX evictable ON entries (stamp) WHERE keep = 0",
    "CREATE INDEX owed ON entries (hash) WHERE keep = 1",
    "CREATE TABLE free_slots (slot INTEGER PRIMARY KEY)",
    "CREATE TABLE owners (name TEXT PRIMARY KEY, reserved INTEGER NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {VERSION}",
)
_COLUMNS: Final = "hash, size, mtime_ns, inode, slot, serial, stamp, keep, boot"
_LOOK_UP: Final = f"SELECT {_COLUMNS} FROM entries WHERE hash = ?"
_OLDEST: Final = (
    f"SELECT {_COLUMNS} FROM entries INDEXED BY evictable WHERE keep = 0 ORDER BY stamp LIMIT 1"
)
_INSERT: Final = f"INSERT INTO entries ({_COLUMNS})"
_MARKS: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_STATE: Final = "capacity, stored, owed, reserved, entries, serial, slots, boot, boots, shift"
_AT_ONCE: Final = 500
"""Hashes in one statement."""

_WAIT: Final = 60.0
"""Seconds SQLite waits for a lock. Ours is taken first: only a foreign program can hold it."""


def signed(inode: int) -> int:
    """An inode number as SQLite can hold it: they have 64 bits, its integers 63 and a sign."""
    return inode & 0x7FFF_FFFF_FFFF_FFFF


class Entry(NamedTuple):
    """A row of ``entries``."""

    hash: bytes
    size: int
    mtime_ns: int
    inode: int
    slot: int
    serial: int
    stamp: int
    keep: int
    boot: int

    @property
    def sha256(self) -> str:
        return self.hash.hex()

    def describes(self, found: os.stat_result) -> bool:
        """Whether a file is the one that was indexed: same size, mtime and inode."""
        return (
            found.st_size == self.size
            and found.st_mtime_ns == self.mtime_ns
            and signed(found.st_ino) == self.inode
        )


class Transaction:
    """One write transaction: the row of ``state`` as attributes, and the changes of rows.

    Byte sums follow from the row changes made through it. `done` collects what to do once the
    transaction is committed, `ended` what to do either way.
    """

    def __init__(self, connection: sqlite3.Connection, recency: Recency) -> None:
        self._execute = connection.execute
        self._many = connection.executemany
        self._added: list[Entry] = []
        self._recency = recency
        self._before: tuple[Any, ...] | None = self._run(f"SELECT {_STATE} FROM state").fetchone()
        if self._before is None:
            raise sqlite3.DatabaseError("the state is missing")
        sums: tuple[int, int, int, int, int] = self._before[:5]
        (self.capacity, self.stored, self.owed, self.reserved, self.entries) = sums
        times: tuple[int, int, str, int, int] = self._before[5:]
        (self.serial, self.slots, self.boot, self.boots, self.shift) = times
        self._freed: list[int] = []
        self._free = True  # whether there may be free slots in the table
        self.batch = 1  # how many slots to take from the free ones at a time
        self.done: list[Callable[[], None]] = []
        self.ended: list[Callable[[], None]] = []

    @property
    def excess(self) -> int:
        """Bytes by which the directory is over its capacity; negative when there is room."""
        return self.stored + self.reserved - self.capacity

    # Entries

    def look_up(self, digest: bytes) -> Entry | None:
        row = self._run(_LOOK_UP, (digest,)).fetchone()
        return None if row is None else Entry(*row)

    def look_up_many(self, digests: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries of those of the digests that have one."""
        found: dict[bytes, Entry] = {}
        for start in range(0, len(digests), _AT_ONCE):
            some = digests[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            for row in self._run(f"SELECT {_COLUMNS} FROM entries WHERE hash IN ({marks})", some):
                found[row[0]] = Entry(*row)
        return found

    def oldest(self) -> Entry | None:
        """The evictable entry with the lowest stamp."""
        row = self._run(_OLDEST).fetchone()
        return None if row is None else Entry(*row)

    def add(
        self, digest: bytes, found: os.stat_result, stamp: int, *, keep: int, flushed: bool
    ) -> Entry:
        """Index a file that lies, or is about to lie, under its name."""
        self.serial += 1
        entry = Entry(
            digest,
            found.st_size,
            found.st_mtime_ns,
            signed(found.st_ino),
            self._take_slot(),
            self.serial,
            stamp,
            keep,
            0 if flushed else self.boots,
        )
        self._recency.mark(entry.slot, entry.serial, stamp)
        self.reinstate(entry)
        return entry

    def reinstate(self, entry: Entry) -> None:
        """Put an entry into the index as it is."""
        self._added.append(entry)
        self._count(entry, 1)

    def drop(self, entry: Entry) -> None:
        """Take an entry out of the index; its slot is free for another."""
        self._run("DELETE FROM entries WHERE hash = ?", (entry.hash,))
        self._freed.append(entry.slot)
        self._count(entry, -1)

    def keep_slot(self, entry: Entry) -> None:
        """Undo what `drop` said about the slot: the entry is reinstated."""
        self._freed.remove(entry.slot)

    def refile(self, entry: Entry, stamp: int) -> None:
        """Have the index agree that the entry was used at `stamp`."""
        self._run("UPDATE entries SET stamp = ? WHERE hash = ?", (stamp, entry.hash))

    def set_aside(self, entry: Entry) -> None:
        """Hide an entry from `oldest` until `put_back`."""
        self._run("UPDATE entries SET keep = ? WHERE hash = ?", (_ASIDE, entry.hash))

    def put_back(self, entry: Entry, stamp: int) -> None:
        self._run(
            "UPDATE entries SET keep = ?, stamp = ? WHERE hash = ?", (EVICTABLE, stamp, entry.hash)
        )

    def keep(self, entry: Entry, keep: int, *, flushed: bool = False) -> None:
        """Make an entry owed or evictable."""
        boot = 0 if flushed else entry.boot
        self._run("UPDATE entries SET keep = ?, boot = ? WHERE hash = ?", (keep, boot, entry.hash))
        self.owed += entry.size * ((keep == OWED) - (entry.keep == OWED))

    def vouch(self, entry: Entry, found: os.stat_result) -> None:
        """Accept a file that was read and hashed as the one of this entry."""
        # Bytes that outlived a boot have been on the disk; others may still be in memory.
        boot = entry.boot if entry.boot == self.boots else 0
        self._run(
            "UPDATE entries SET size = ?, mtime_ns = ?, inode = ?, boot = ? WHERE hash = ?",
            (found.st_size, found.st_mtime_ns, signed(found.st_ino), boot, entry.hash),
        )
        self._count(entry, -1)
        self._count(entry._replace(size=found.st_size), 1)

    def all_entries(self) -> Iterator[Entry]:
        """Every entry, by hash. Memory is bounded: rows are fetched as they are needed."""
        for row in self._run(f"SELECT {_COLUMNS} FROM entries ORDER BY hash"):
            yield Entry(*row)

    def recount(self, *, fix: bool) -> str:
        """Add everything up again; what the sums had wrong, ``""`` when nothing."""
        total = "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(size * (keep = 1)), 0)"
        entries, stored, owed = self._run(f"{total} FROM entries").fetchone()
        reserved = self._run("SELECT coalesce(sum(reserved), 0) FROM owners").fetchone()[0]
        before = (self.entries, self.stored, self.owed, self.reserved)
        after = (entries, stored, owed, reserved)
        if before == after:
            return ""
        if fix:
            self.entries, self.stored, self.owed, self.reserved = after
        return f"files, bytes, owed and reserved bytes are {after}, the index says {before}"

    def latest_stamp(self) -> int:
        """The latest stamp of any entry. Reads them all."""
        filed = self._run("SELECT max(stamp) FROM entries").fetchone()[0]
        return max(filed or 0, self._recency.latest(self.slots))

    def _run(self, statement: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Execute a statement, which sees what was added before it."""
        if self._added:
            self._insert()
        return self._execute(statement, parameters)

    def _insert(self) -> None:
        """Insert what was added, many rows with one statement.

        Python gives up its global lock around every one, and where other threads wait for it,
        getting it back takes longer than the row itself.
        """
        added, self._added = self._added, []
        for start in range(0, len(added), _AT_ONCE):
            some = added[start : start + _AT_ONCE]
            marks = ",".join([_MARKS] * len(some))
            self._execute(f"{_INSERT} VALUES {marks}", [value for row in some for value in row])

    def _count(self, entry: Entry, sign: int) -> None:
        self.entries += sign
        self.stored += sign * entry.size
        if entry.keep == OWED:
            self.owed += sign * entry.size

    def _take_slot(self) -> int:
        if not self._freed and self._free:
            query = "SELECT slot FROM free_slots LIMIT ?"
            rows = self._execute(query, (self.batch,)).fetchall()
            self._free = len(rows) == self.batch
            if rows:
                self._many("DELETE FROM free_slots WHERE slot = ?", rows)
                self._freed = [slot for (slot,) in rows]
        if self._freed:
            return self._freed.pop()
        self.slots += 1
        return self.slots - 1

    # Owners

    def reserve(self, owner: str, size: int) -> None:
        """Count `size` bytes more (or fewer) as in flight for that owner."""
        self._run(
            "INSERT INTO owners VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET reserved = reserved + excluded.reserved",
            (owner, size),
        )
        self.reserved += size

    def owners(self) -> list[str]:
        return [name for (name,) in self._run("SELECT name FROM owners")]

    def drop_owner(self, owner: str) -> None:
        """Forget an owner and free what it had reserved."""
        row = self._run("SELECT reserved FROM owners WHERE name = ?", (owner,)).fetchone()
        if row is not None:
            self._run("DELETE FROM owners WHERE name = ?", (owner,))
            self.reserved -= row[0]

    def save(self) -> None:
        """Write slots and sums. Called once, just before the commit."""
        if self._added:
            self._insert()
        if self._freed:
            self._many("INSERT INTO free_slots VALUES (?)", [(slot,) for slot in self._freed])
        after = (
            *(self.capacity, self.stored, self.owed, self.reserved, self.entries),
            *(self.serial, self.slots, self.boot, self.boots, self.shift),
        )
        if after != self._before:
            self._run(
                f"UPDATE state SET ({_STATE}) = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                after,
            )


class Index:
    """The open index of one directory: connections, locks and the recency file.

    Thread-safe. Readers never wait for writers.
    """

    def __init__(self, layout: Layout, *, on_reopen: Callable[[], None]) -> None:
        self._layout = layout
        self._on_reopen = on_reopen
        self._gate = threading.Lock()
        self._read_gate = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self.recency: Recency
        self._lock_fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._reader = self._connect()
            version = self._reader.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError:
            if os.path.lexists(self._layout.index):
                raise
            version = 0
        if version == 0:
            version = self._create()
        if version != VERSION:
            raise CacheUnusable(
                f"the cache in {self._layout.directory} was made by a newer cloudmanager "
                f"(index version {version}): upgrade, or choose another storage directory"
            )
        self._inode = os.stat(self._layout.index).st_ino
        self.recency = Recency(self._layout.recency)

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: never creates the file, so that a lost index is noticed.
        quoted = urllib.parse.quote(os.fsencode(self._layout.index))
        connection = sqlite3.connect(
            f"file:{quoted}?mode=rw",
            uri=True,
            timeout=_WAIT,
            isolation_level=None,
            check_same_thread=False,
        )
        # NORMAL flushes at checkpoints only: after a loss of power the index may be a little
        # old, never torn. Transactions about what hosts are owed use FULL, see `write`.
        for pragma in (
            "synchronous = NORMAL",
            "fullfsync = 1",
            "cache_size = -16384",
            "wal_autocheckpoint = 4096",
        ):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _create(self) -> int:
        """Make the index of a new directory; the version that is there afterwards."""
        with self._file_lock():
            if not os.path.lexists(self._layout.index):
                # Those of an index that was deleted would be replayed into the new one.
                for suffix in ("-wal", "-shm"):
                    with contextlib.suppress(FileNotFoundError):  # the usual case
                        os.unlink(self._layout.index + suffix)
                os.close(os.open(self._layout.index, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            if self._reader is None:
                self._reader = self._connect()
            run = self._reader.execute
            version: int = run("PRAGMA user_version").fetchone()[0]
            if version != 0:
                return version  # another process was faster
            if not self._layout.draft and any(os.scandir(self._layout.objects)):
                os.unlink(self._layout.index)
                raise CacheCorrupt(
                    f"the cache in {self._layout.directory} has files but no index; "
                    "rebuild it with: cloudmanager cache check --fix"
                )
            run("PRAGMA journal_mode = WAL")
            run("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                run(statement)
            run(f"INSERT INTO state (only, {_STATE}) VALUES (1, 0, 0, 0, 0, 0, 0, 0, '', 0, 0)")
            run("COMMIT")
            flush_path(self._layout.directory)
            return VERSION

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[int, ...]]:
        """Rows as the last commit left them."""
        with self._read_gate:
            if self._reader is None:
                raise _closed(self._layout)
            return self._reader.execute(statement, parameters).fetchall()

    def entries_after(self, digest: bytes) -> list[Entry]:
        """Up to 1,000 entries by hash, those after `digest`."""
        rows = self.read(
            f"SELECT {_COLUMNS} FROM entries WHERE hash > ? ORDER BY hash LIMIT 1000", (digest,)
        )
        return [Entry(*row) for row in rows]  # type: ignore[arg-type]

    def look_up(self, digest: bytes) -> Entry | None:
        rows = self.read(_LOOK_UP, (digest,))
        return Entry(*rows[0]) if rows else None  # type: ignore[arg-type]

    def which(self, digests: Sequence[bytes]) -> Iterator[bytes]:
        """Those of the digests that have an entry."""
        for start in range(0, len(digests), _AT_ONCE):
            some = digests[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            for row in self.read(f"SELECT hash FROM entries WHERE hash IN ({marks})", some):
                yield cast(bytes, row[0])

    @contextlib.contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Transaction]:
        """One write transaction; rolled back when the body raises.

        With `durable` it has reached the disk when the block ends.
        """
        with self._gate, self._file_lock():
            self._follow()
            if self._writer is None:
                self._writer = self._connect()
            run = self._writer.execute
            if self._writer.in_transaction:
                run("ROLLBACK")  # an interrupt struck between BEGIN and the block below
            transaction: Transaction | None = None
            try:
                if durable:
                    run("PRAGMA synchronous = FULL")  # has no effect inside a transaction
                run("BEGIN IMMEDIATE")
                transaction = Transaction(self._writer, self.recency)
                yield transaction
                transaction.save()
                run("COMMIT")
            finally:
                committed = transaction is not None and not self._writer.in_transaction
                if self._writer.in_transaction:
                    run("ROLLBACK")
                if durable:
                    run("PRAGMA synchronous = NORMAL")
                if transaction is not None:
                    if committed:
                        for action in transaction.done:
                            action()
                    for action in transaction.ended:
                        action()

    def _follow(self) -> None:
        """Use the index that lies under the name now: `cache check --fix` may have rebuilt it."""
        if self._reader is None:
            raise _closed(self._layout)
        if os.stat(self._layout.index).st_ino == self._inode:
            return
        with self._read_gate:
            self._disconnect()
            self._open()
        self._on_reopen()

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        if self._lock_fd < 0:
            raise _closed(self._layout)
        try:
            # Inside the block: an interrupt just after it must not leave it locked.
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _disconnect(self) -> None:
        for connection in (self._writer, self._reader):
            if connection is not None:
                connection.close()
        self._writer = self._reader = None
        with contextlib.suppress(AttributeError):  # opening failed before it was mapped
            self.recency.close()

    def close(self) -> None:
        """Close everything. Twice is once."""
        with self._gate, self._read_gate:
            if self._lock_fd >= 0:
                self._disconnect()
                os.close(self._lock_fd)
                self._lock_fd = -1

    def abandon(self) -> list[sqlite3.Connection]:
        """In a forked child: let go of the shared locks, and hand over what must stay open.

        SQLite forbids to use or close a connection that was opened before a fork.
        """
        kept = [c for c in (self._writer, self._reader) if c is not None]
        self._gate = threading.Lock()  # a thread of the parent may have held them
        self._read_gate = threading.Lock()
        self._writer = self._reader = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        return kept


def _closed(layout: Layout) -> CacheUnusable:
    return CacheUnusable(
        f"the cache in {layout.directory} was closed, or opened before a fork; open it again"
    )
