"""The cache: a directory of finished files with a hard byte bound and exact LRU."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from ..errors import Busy, CacheError
from ..model import format_bytes, validate_hash
from . import living
from .bulk import Fill, Outcome, fetch_many
from .check import Finding, check, examine, rebuild
from .eviction import evict_some
from .fetching import SharedFetches
from .index import EVICTABLE, OWED, Entry, Transaction
from .layout import MODE_DONE, MODE_OWED, Border, Layout, flush_all, stat_of
from .recency import boot_id
from .reservation import Reservation
from .workspace import Workspace

__all__ = ["Cache"]

_log = logging.getLogger(__name__)
_REMEMBERED: Final = 65536
"""Entries a process remembers for the hit path; about 700 bytes each."""
_CLEARED_AT_ONCE: Final = 512

_Known = tuple[str, Path, int, int, int, int, int]
"""path as text, path, inode, size, mtime_ns, word of its stamp, serial"""

_open: weakref.WeakSet[Cache] = weakref.WeakSet()


class Cache:
    """A bounded directory of files named by their SHA-256, shared by threads and processes.

    The bytes of all content files, finished or in flight, never exceed the capacity: space
    is reserved before it is written. When it runs out, the least recently used file that
    nobody holds goes first. A file appears under its name only whole and read-only.

    Parameters
    ----------
    directory:
        Created with mode 0700 when missing. On a local file system.
    capacity:
        Bytes. It belongs to the directory: every process that uses it sees the new value.
        A smaller one evicts first.
    clock, boot:
        The monotonic clock in nanoseconds and what identifies this run of the machine.

    A path that was returned is valid until the file is evicted; `pinned` holds it.
    A cache does not survive a fork: the child opens the directory anew, and calls on the
    parent's object raise CacheUnusable there.

    Raises
    ------
    CacheFull
        When `capacity` is less than what is pinned or in flight. Nothing was changed.
    CacheUnusable
        When the directory cannot be created or written.
    CacheCorrupt
        When the index cannot be read.
    ValueError
        When `capacity` is negative.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        capacity: int,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        if capacity < 0:
            raise ValueError(f"a capacity cannot be negative: {capacity}")
        self._layout = Layout(directory)
        self.where = self._layout.directory
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._fetches = SharedFetches()
        self._held: set[int] = set()
        self._count = itertools.count()
        with Border(self._layout.directory, "opening the cache"):
            self._layout.create()
            self._space = Workspace(
                self._layout, clock, forget=self._forget, reopened=self._known.clear
            )
            _open.add(self)
            try:
                self._space.start(capacity, boot())
            except BaseException:
                self.close()
                raise

    # Hits

    def path(self, sha256: str) -> Path | None:
        """The file with that hash, marked as just used; None when it is not cached.

        After the first hit of a hash in a process this is a dictionary look-up, a stat and a
        store into shared memory. The file is trusted by size, mtime and inode; where they
        differ, or where it was not flushed before the machine went down, it is read and hashed.

        Raises
        ------
        ValueError
            When `sha256` is no hash.
        """
        known = self._known.get(sha256)
        if known is not None:
            name, path, inode, size, mtime_ns, at, serial = known
            try:
                found = os.stat(name)
                words = self._space.index.recency.words
                shift = self._space.shift
                if (
                    found.st_mtime_ns == mtime_ns
                    and found.st_ino == inode
                    and found.st_size == size
                    and words[at + 1] == serial
                ):
                    words[at] = stamp = self._clock() + shift
                    # When the thread slept between reading the clock and storing, a later
                    # access may have been overwritten. This one is still going on: date it now.
                    if (again := self._clock() + shift) - stamp > 20_000:
                        words[at] = again
                    return path
            except (OSError, IndexError):
                self._known.pop(sha256, None)
        found_now = self._find(sha256)
        if found_now is None:
            return None
        self._space.index.recency.mark(found_now[5] // 2, found_now[6], self._space.now())
        return found_now[1]

    def place(self, sha256: str) -> Path:
        """Where a file with that hash lies when it is cached. Looks at nothing."""
        return Path(self._layout.object(validate_hash(sha256)))

    def contains(self, sha256: str) -> bool:
        """Whether that hash is cached. Does not count as a use."""
        return self._find(sha256) is not None

    def known(self, hashes: Iterable[str]) -> set[str]:
        """Those of the hashes that the index has. Looks at no file and counts as no use."""
        digests = [bytes.fromhex(validate_hash(sha256)) for sha256 in hashes]
        with Border(self._layout.directory, f"looking up {len(digests)} files"):
            return {digest.hex() for digest in self._space.index.which(digests)}

    def _find(self, sha256: str) -> _Known | None:
        """Look a hash up in the index and its file on the disk, and remember both."""
        sha256 = validate_hash(sha256)
        digest = bytes.fromhex(sha256)
        name = self._layout.object(sha256)
        with Border(self._layout.directory, f"looking up {sha256}"):
            entry = self._space.index.look_up(digest)
            if entry is None:
                self._known.pop(sha256, None)
                return None
            found = stat_of(name)
            if found is None or not self._space.trusts(entry, found):
                examined = examine(self._space, digest)
                if examined is None:
                    self._known.pop(sha256, None)
                    return None
                entry, found = examined
            self._space.index.recency.cover(entry.slot + 1)
        return self._remember(sha256, entry, found)

    def _remember(self, sha256: str, entry: Entry, found: os.stat_result) -> _Known:
        while len(self._known) >= _REMEMBERED:
            # Another thread may take the same key, or change the dictionary in between.
            with contextlib.suppress(KeyError, StopIteration, RuntimeError):
                del self._known[next(iter(self._known))]
        name = self._layout.object(sha256)
        known = self._known[sha256] = (
            name,
            Path(name),
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            2 * entry.slot,
            entry.serial,
        )
        return known

    # Space

    def reserve(self, size: int) -> Reservation:
        """Set `size` bytes aside, evicting what is needed.

        Raises
        ------
        CacheFull
            When there is too little that may be evicted. Nothing was evicted.
        """
        return self.reserve_many([size])[0]

    def reserve_many(self, sizes: Sequence[int]) -> list[Reservation]:
        """Reserve for several files in one transaction: all of them, or CacheFull."""
        if any(size < 0 for size in sizes):
            raise ValueError(f"a size cannot be negative: {min(sizes)}")
        total = sum(sizes)
        doing = f"reserving {format_bytes(total)}"
        with self._space.write(doing) as transaction:
            transaction.reserve(self._space.owner(), total)
            self._space.make_room(transaction, doing)
            stem = f"{self._layout.temporary}/{self._space.owner()}"
        return [Reservation(self, f"{stem}.{next(self._count)}", size) for size in sizes]

    def resize(self, reservation: Reservation, size: int) -> None:
        """See `Reservation.resize`."""
        if size < 0:
            raise ValueError(f"a size cannot be negative: {size}")
        self._check_active(reservation)
        doing = f"resizing a reservation to {format_bytes(size)}"
        with self._space.write(doing) as transaction:
            written = reservation.written()
            if written is not None and written.st_size > size:
                raise ValueError(f"{written.st_size} bytes are written, more than {size}")
            transaction.reserve(self._space.owner(), size - reservation.size)
            self._space.make_room(transaction, doing)
            transaction.done.append(lambda: setattr(reservation, "size", size))

    def abort(self, reservation: Reservation) -> None:
        """See `Reservation.abort`."""
        if not reservation.active or self._space.owner_fd < 0:
            return  # committed, or freed together with its owner
        reservation.active = False
        try:
            with (
                Border(self._layout.directory, "deleting a file in flight"),
                contextlib.suppress(FileNotFoundError),  # nothing was written
            ):
                os.unlink(reservation.name)
            with self._space.write("freeing a reservation") as transaction:
                transaction.reserve(self._space.owner(), -reservation.size)
        except CacheError as error:
            # Whatever made the caller give up is worth more to him than this.
            _log.warning("%s; its space is freed later", error)
            if not os.path.lexists(reservation.name):
                self._space.free_later(reservation.size)

    def commit(self, reservation: Reservation, sha256: str, *, owed: bool = False) -> Path:
        """See `Reservation.commit`."""
        ((entry, found),) = self._commit([(reservation, sha256)], owed=owed)
        return self._remember(entry.sha256, entry, found)[1]

    def commit_many(self, items: Sequence[tuple[Reservation, str]], *, owed: bool = False) -> None:
        """Commit several reservations in one transaction; see `Reservation.commit`."""
        self._commit(items, owed=owed)

    def _commit(
        self, items: Sequence[tuple[Reservation, str]], *, owed: bool
    ) -> list[tuple[Entry, os.stat_result]]:
        written: list[tuple[Reservation, str, os.stat_result]] = []
        with Border(self._layout.directory, "finishing files"):
            for reservation, sha256 in items:
                self._check_active(reservation)
                found = self._finish(reservation, owed=owed)
                written.append((reservation, validate_hash(sha256), found))
            if owed:
                flush_all([reservation.name for reservation, _ in items])
        flush: set[str] = set()
        placed: list[tuple[Entry, os.stat_result]] = []
        with self._space.write(f"adding {len(items)} files", durable=owed) as transaction:
            transaction.batch = len(items)
            digests = [bytes.fromhex(sha256) for _, sha256, _ in written]
            self._space.journal(digests)
            known = transaction.look_up_many(digests)
            for digest, (reservation, _, found) in zip(digests, written, strict=True):
                entry, there = self._place(
                    transaction, reservation, digest, known.get(digest), found, owed, flush
                )
                known[digest] = entry
                placed.append((entry, there))
            transaction.reserve(self._space.owner(), -sum(r.size for r, _ in items))
            if owed:
                flush_all(flush)
            transaction.done.append(lambda: _deactivate(r for r, _ in items))
        return placed

    def _finish(self, reservation: Reservation, *, owed: bool) -> os.stat_result:
        found = reservation.written()
        if found is None:
            raise ValueError(f"nothing was written to {reservation.name}")
        if found.st_size > reservation.size:
            raise ValueError(
                f"{found.st_size} bytes were written into a reservation of {reservation.size}"
            )
        mode = MODE_OWED if owed else MODE_DONE
        if stat.S_IMODE(found.st_mode) != mode:
            os.chmod(reservation.name, mode)
        return found

    def _place(
        self,
        transaction: Transaction,
        reservation: Reservation,
        digest: bytes,
        old: Entry | None,
        found: os.stat_result,
        owed: bool,
        flush: set[str],
    ) -> tuple[Entry, os.stat_result]:
        """Move one finished file to its name, unless a good one is there."""
        name = self._layout.object(digest.hex())
        there = None if old is None else stat_of(name)
        stamp = self._space.now()
        if old is not None and there is not None and self._space.trusts(old, there):
            os.unlink(reservation.name)
            if owed:
                self._owe(transaction, old, name)
                flush.update((os.path.dirname(name), self._layout.objects))
            self._space.index.recency.mark(old.slot, old.serial, stamp)
            return old, there
        if old is not None:
            transaction.drop(old)
            if old.keep == OWED and not owed:
                owed = True
                os.chmod(reservation.name, MODE_OWED)
                flush_all([reservation.name])
        directory = os.path.dirname(name)
        try:
            os.rename(reservation.name, name)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # then it is the file in flight that is gone
                os.mkdir(directory, 0o700)
            os.rename(reservation.name, name)
        flush.update((directory, self._layout.objects))
        keep = OWED if owed else EVICTABLE
        return transaction.add(digest, found, stamp, keep=keep, flushed=owed), found

    def fetch(self, sha256: str, size: int, fill: Callable[[Reservation], None]) -> Path:
        """The file with that hash; when it is missing, `fill` brings it, once.

        Callers that miss the same hash at the same time share one `fill`, in all threads and
        processes. It writes ``reservation.path`` and returns only when the bytes have that
        hash. What it raises goes to every thread of this process that waits; another process
        then tries itself, as it does when the fetching one dies.

        Raises
        ------
        CacheFull
            When the cache cannot hold `size` bytes.
        """
        while True:
            path = self.path(sha256)
            if path is not None:
                return path
            key = validate_hash(sha256)
            path = self._fetches.run(key, lambda: self._fetch(key, size, fill))  # noqa: B023
            if path is not None:
                return path

    def _fetch(self, sha256: str, size: int, fill: Callable[[Reservation], None]) -> Path:
        with self._claimed(sha256, wait=True):
            path = self.path(sha256)  # another process may have brought it meanwhile
            if path is not None:
                return path
            with self.reserve(size) as reservation:
                fill(reservation)
                return reservation.commit(sha256)

    def fetch_many(self, wanted: Sequence[tuple[str, int]], fill: Fill) -> dict[str, Outcome]:
        """`fetch` for several (hash, size) pairs, with two transactions for all of them.

        `fill` is given (hash, reservation) pairs, writes those it can, and returns what went
        wrong with the others. The answer has a path or that error for every hash.
        """
        return fetch_many(self, self._fetches, self._claimed, wanted, fill)

    @contextlib.contextmanager
    def _claimed(self, sha256: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a hash among the processes; False when another has it and `wait` is not set."""
        claim = self._layout.claim(sha256)
        with Border(self._layout.directory, f"fetching {sha256}"):
            fd = living.claim(self._layout.claims, claim, sha256, wait=wait)
        if fd is None:
            yield False
            return
        self._held.add(fd)
        try:
            yield True
        finally:
            if fd in self._held:  # not in a forked child: it is the parent's claim
                self._held.discard(fd)
                with Border(self._layout.directory, f"fetching {sha256}"):
                    living.let_go(claim, fd)

    # Pins

    @contextlib.contextmanager
    def pinned(self, sha256: str) -> Iterator[Path | None]:
        """Hold a file against eviction while the block runs; None when it is not cached.

        Costs no transaction: the pin is a shared lock on the file, and ends with the process.
        """
        fd: int | None = None
        while (path := self.path(sha256)) is not None:
            with Border(self._layout.directory, f"pinning {sha256}"):
                fd = living.pin(str(path))
            if fd is not None:
                break
        if fd is None:
            yield None
            return
        self._held.add(fd)
        try:
            yield path
        finally:
            with contextlib.suppress(CacheError):  # closed meanwhile
                self.path(sha256)  # a pin is one long access: it ends now
            if fd in self._held:  # not in a forked child, where it is closed
                self._held.discard(fd)
                living.unlock(fd)

    def owe(self, sha256: str) -> bool:
        """Pin a file until `settle`: it is not yet on the hosts that shall have it.

        File, directory and index have reached the disk when this returns True; False when the
        hash is not cached.
        """
        with self.pinned(sha256) as path:
            if path is None:
                return False
            digest = bytes.fromhex(validate_hash(sha256))
            with self._space.write(f"pinning {sha256}", durable=True) as transaction:
                entry = transaction.look_up(digest)
                if entry is None:
                    return False
                self._owe(transaction, entry, str(path))
                flush_all([str(path.parent), self._layout.objects])
            return True

    def _owe(self, transaction: Transaction, entry: Entry, name: str) -> None:
        if entry.keep != OWED or entry.boot != 0:
            os.chmod(name, MODE_OWED)
            flush_all([name])
            transaction.keep(entry, OWED, flushed=True)

    def settle(self, *hashes: str) -> None:
        """Lift the pins of `owe`, all in one transaction. What is not owed is left alone."""
        digests = [bytes.fromhex(validate_hash(sha256)) for sha256 in hashes]
        with self._space.write(f"unpinning {len(digests)} files") as transaction:
            for digest in digests:
                entry = transaction.look_up(digest)
                if entry is not None and entry.keep == OWED:
                    transaction.keep(entry, EVICTABLE, flushed=entry.boot == 0)
                    # Before the commit: after a crash in between the index still knows the debt.
                    with contextlib.suppress(FileNotFoundError):  # the next hit notices
                        os.chmod(self._layout.object(digest.hex()), MODE_DONE)

    def owed(self) -> Iterator[str]:
        """The hashes pinned by `owe`, ascending. No lock is held between them."""
        after = b""
        while True:
            with Border(self._layout.directory, "listing what is owed"):
                rows = self._space.index.read(
                    "SELECT hash FROM entries INDEXED BY owed "
                    "WHERE keep = 1 AND hash > ? ORDER BY hash LIMIT 1000",
                    (after,),
                )
            if not rows:
                return
            for (after,) in rows:  # type: ignore[assignment]
                yield after.hex()

    # Removing

    def remove(self, sha256: str) -> None:
        """Delete a file, owed or not. One that is not cached is no error.

        Raises
        ------
        Busy
            When somebody holds a live pin on it.
        """
        digest = bytes.fromhex(validate_hash(sha256))
        with self._space.write(f"removing {sha256}") as transaction:
            entry = transaction.look_up(digest)
            if entry is None:
                return
            self._space.journal([digest])
            if not living.unlink_unless_pinned(self._layout.object(entry.sha256)):
                raise Busy(f"removing {sha256} from the cache: it is being read; try again later")
            transaction.drop(entry)
        self._known.pop(entry.sha256, None)

    def clear(self) -> int:
        """Evict all that is not pinned or owed; the bytes that this freed."""
        freed = 0
        while True:
            with self._space.write("clearing the cache") as transaction:
                before = transaction.stored
                gone = evict_some(
                    transaction,
                    self._layout,
                    self._space.index.recency,
                    now=self._space.now,
                    journal=self._space.journal,
                    limit=_CLEARED_AT_ONCE,
                )
                freed += before - transaction.stored
            self._forget(gone)
            if not gone:
                return freed

    # Care

    def check(self, *, fix: bool = False) -> Iterator[Finding]:
        """Read and hash every file, and compare with the index; yield what is wrong.

        With `fix`, wrong files go, right ones that the index does not know are adopted,
        rows without files are dropped. Others may use the cache meanwhile. Costs reading all
        of it; the write lock is held only for moments.

        Raises
        ------
        CacheCorrupt
            When the index cannot be read: `rebuild` makes a new one.
        """
        return check(self._space, fix=fix)

    @staticmethod
    def rebuild(directory: str | os.PathLike[str], capacity: int) -> list[Finding]:
        """Make a new index when the old one cannot be read; see `check.rebuild`."""
        return rebuild(directory, capacity)

    # Figures

    @property
    def directory(self) -> Path:
        return Path(self._layout.directory)

    @property
    def capacity(self) -> int:
        """Bytes that the content files may have together."""
        return self._state("capacity")

    def used_space(self) -> int:
        """Bytes taken: by finished files, and by reservations for those in flight."""
        return self._state("stored + reserved")

    def usage_ratio(self) -> float:
        """`used_space` as a fraction of the capacity, 0.0 to 1.0."""
        capacity = self.capacity
        return self.used_space() / capacity if capacity else 1.0

    def __len__(self) -> int:
        """The number of finished files."""
        return self._state("entries")

    def _state(self, expression: str) -> int:
        with Border(self._layout.directory, "reading the index"):
            figure = self._space.index.read(f"SELECT {expression} FROM state")[0][0]
        return int(figure)

    def _forget(self, hashes: Iterable[str]) -> None:
        for sha256 in hashes:
            self._known.pop(sha256, None)

    def _check_active(self, reservation: Reservation) -> None:
        if not reservation.active:
            raise ValueError(f"the reservation was committed or aborted: {reservation.name}")

    # The end

    def close(self) -> None:
        """Free what is reserved and close the index. The files stay. Twice is once."""
        self._known.clear()
        with Border(self._layout.directory, "closing the cache"):
            self._space.close()

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _forked(self) -> None:
        self._known.clear()
        self._fetches = SharedFetches()
        held, self._held = self._held, set()
        for fd in held:
            os.close(fd)
        self._space.forked()


def _all_forked() -> None:
    for cache in list(_open):
        cache._forked()


os.register_at_fork(after_in_child=_all_forked)


def _deactivate(reservations: Iterable[Reservation]) -> None:
    for reservation in reservations:
        reservation.active = False
