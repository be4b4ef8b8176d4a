"""After a crash: free what dead processes held, and make index and files agree again.

What a transaction renames and unlinks cannot be rolled back with it. Each owner writes the
hashes into its journal first, and whoever finds it dead looks at those files: a
file without a row was never acknowledged and goes, a row without its file is dropped. Nothing
else needs to be looked at, so recovery does not scan the directory, except once after a boot,
when a loss of power may have taken back the last transactions.

All functions run inside a write transaction: nobody else renames or unlinks meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterable

from .index import Transaction
from .layout import Layout
from .living import hold, read_journal, release

__all__ = ["free_the_dead", "reconcile", "reconcile_everything"]

_log = logging.getLogger(__name__)
_HASH_DIGITS = 64


def reconcile(transaction: Transaction, layout: Layout, hashes: Iterable[bytes]) -> None:
    """Make index and files agree about these hashes."""
    for digest in hashes:
        path = layout.object(digest.hex())
        entry = transaction.look_up(digest)
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            if entry is not None:
                transaction.drop(entry)
            continue
        if entry is None:
            os.unlink(path)
        elif found.st_size != entry.size:
            os.unlink(path)
            transaction.drop(entry)


def free_the_dead(transaction: Transaction, layout: Layout) -> None:
    """Free reservations, files in flight and claims of processes that are gone."""
    alive: set[str] = set()
    for name in os.listdir(layout.live):
        path = f"{layout.live}/{name}"
        fd = hold(path, wait=False)
        if fd is None:
            alive.add(name)
        elif len(name) == _HASH_DIGITS:
            release(path, fd)
        else:
            # Its name goes only after the commit: until then the journal is still needed.
            reconcile(transaction, layout, read_journal(fd))
            transaction.done.append(functools.partial(_unlink, path))
            transaction.ended.append(functools.partial(os.close, fd))
    # Files first, bytes second: freed bytes may be written at once.
    for name in os.listdir(layout.temporary):
        if name.partition(".")[0] not in alive:
            _log.info("removing %s/%s, left by a process that died", layout.temporary, name)
            with contextlib.suppress(FileNotFoundError):  # its writer is in the middle of abort
                os.unlink(f"{layout.temporary}/{name}")
    for owner in transaction.owners():
        if owner not in alive:
            transaction.drop_owner(owner)


def reconcile_everything(transaction: Transaction, layout: Layout) -> None:
    """Make index and files agree about all there is. Lists the directory and reads all rows."""
    named: set[bytes] = set()
    for fan in os.scandir(layout.objects):
        for file in os.scandir(fan.path) if fan.is_dir(follow_symlinks=False) else ():
            if len(file.name) == _HASH_DIGITS:
                with contextlib.suppress(ValueError):  # not ours: `check` reports it
                    named.add(bytes.fromhex(file.name))
    indexed = {entry.hash for entry in transaction.all_entries()}
    reconcile(transaction, layout, named ^ indexed)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody emptied the directory by hand
        os.unlink(path)
