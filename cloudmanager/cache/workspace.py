"""A cache directory as one process has it open: its index, its owner file, its transactions.

Everything that changes the directory goes through `Workspace.write`, which makes file
operations part of the transaction: they are journaled first and undone with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator

from ..errors import CacheError
from . import living
from .eviction import make_room
from .index import Entry, Index, Transaction
from .layout import Border, Layout
from .recovery import free_the_dead, reconcile, reconcile_everything

__all__ = ["Workspace"]

_log = logging.getLogger(__name__)
_before_fork: list[object] = []
"""What a forked child must neither use nor close."""


class Workspace:
    """The open directory. Thread-safe.

    `forget` is told the hashes that were evicted, `reopened` that the index was replaced.
    `shift` turns the clock into stamps, `boots` numbers the runs of the machine.
    """

    def __init__(
        self,
        layout: Layout,
        clock: Callable[[], int],
        *,
        forget: Callable[[Iterable[str]], None],
        reopened: Callable[[], None],
    ) -> None:
        self.layout = layout
        self.shift = 0
        self.boots = 0
        self.owner_fd = -1
        self._owner = ""
        self._clock = clock
        self._forget = forget
        self._reopened = reopened
        self._journaled: list[bytes] = []
        self._unsettled: list[bytes] = []
        self._overdue = 0
        self.index = Index(layout, on_reopen=self._read_constants)

    def start(self, capacity: int, boot: str) -> None:
        """Free what the dead left, agree on the time after a boot, and take the capacity over.

        Nothing of this writes when there is nothing to do: a command line opens the
        directory for every command.
        """
        state = self.index.read("SELECT capacity, boot FROM state")[0]
        used = any(os.scandir(self.layout.live))
        if used or boot == "" or state[0] != capacity or str(state[1]) != boot:
            with self.write("opening the cache") as transaction:
                if transaction.boot != boot or boot == "":
                    # Stamps must not go back, though the clock started again.
                    latest = transaction.latest_stamp()
                    transaction.shift = max(transaction.shift, latest + 1 - self._clock())
                    transaction.boot = boot
                    transaction.boots += 1
                    reconcile_everything(transaction, self.layout)
                free_the_dead(transaction, self.layout)
                transaction.capacity = capacity
                self.make_room(transaction, f"opening the cache with {capacity} bytes")
        self._read_constants()

    def _read_constants(self) -> None:
        self.shift, self.boots = self.index.read("SELECT shift, boots FROM state")[0]
        self._reopened()

    def now(self) -> int:
        """The stamp of this moment."""
        return self._clock() + self.shift

    def trusts(self, entry: Entry, found: os.stat_result) -> bool:
        """Whether a file needs no reading: as it was indexed, and flushed or of this boot."""
        return entry.describes(found) and entry.boot in (0, self.boots)

    @contextlib.contextmanager
    def write(self, doing: str, *, durable: bool = False) -> Iterator[Transaction]:
        """A write transaction whose file operations are undone, too, when it fails.

        `doing` begins the message of a foreign error. With `durable` the index has reached
        the disk when the block ends.
        """
        with Border(self.layout.directory, doing):
            undo: list[bytes] = []
            try:
                with self.index.write(durable=durable) as transaction:
                    self._journaled = undo
                    self._catch_up(transaction)
                    yield transaction
            except BaseException:
                if undo:
                    self._undo(undo)
                raise

    def journal(self, hashes: Iterable[bytes]) -> None:
        """Write down which files this transaction is about to rename or unlink."""
        self.owner()
        self._journaled += hashes
        living.write_journal(self.owner_fd, [*self._unsettled, *self._journaled])

    def owner(self) -> str:
        """The name under which this process reserves, made on first use: readers need none.

        Only inside a transaction.
        """
        if self.owner_fd < 0:
            owner = secrets.token_hex(8)
            fd = living.hold(f"{self.layout.live}/{owner}", wait=True)
            assert fd is not None
            self._owner, self.owner_fd = owner, fd
        return self._owner

    def make_room(self, transaction: Transaction, purpose: str) -> None:
        """Evict until the directory is within its capacity; see `eviction.make_room`."""
        gone = make_room(
            transaction,
            self.layout,
            self.index.recency,
            now=lambda: self._clock() + transaction.shift,
            journal=self.journal,
            recover=lambda: free_the_dead(transaction, self.layout),
            purpose=purpose,
        )
        self._forget(gone)

    def free_later(self, size: int) -> None:
        """Free `size` reserved bytes with the next transaction: this one could not be written."""
        self._overdue += size

    def _catch_up(self, transaction: Transaction) -> None:
        """Do what failed to be done before, for lack of disk space as a rule."""
        if self._unsettled:
            reconcile(transaction, self.layout, self._unsettled)
            transaction.done.append(self._unsettled.clear)
        if self._overdue:
            overdue = self._overdue
            transaction.reserve(self.owner(), -overdue)
            transaction.done.append(lambda: self.free_later(-overdue))

    def _undo(self, hashes: list[bytes]) -> None:
        try:
            with self.index.write() as transaction:
                reconcile(transaction, self.layout, hashes)
        except Exception as error:  # noqa: BLE001 - the first failure is the one to report
            _log.warning("the index and the files will be reconciled later: %s", error)
            self._unsettled += hashes

    def close(self) -> None:
        """Free what is reserved here, and close the index."""
        try:
            if self.owner_fd >= 0:
                self._resign()
        finally:
            self.index.close()

    def _resign(self) -> None:
        path = f"{self.layout.live}/{self._owner}"
        try:
            with self.write("closing the cache") as transaction:
                for name in os.listdir(self.layout.temporary):
                    if name.startswith(f"{self._owner}."):
                        os.unlink(f"{self.layout.temporary}/{name}")
                transaction.drop_owner(self._owner)
                transaction.done.append(lambda: os.unlink(path))
        except CacheError as error:
            # The owner file stays, unlocked: who opens the directory next finds it dead.
            _log.warning("%s; the next start cleans up", error)
        finally:
            fd, self.owner_fd = self.owner_fd, -1
            living.unlock(fd)

    def forked(self) -> None:
        """In a forked child: let go of everything that is the parent's."""
        _before_fork.extend(self.index.abandon())
        if self.owner_fd >= 0:
            os.close(self.owner_fd)
            self.owner_fd = -1
