"""Making room: the least recently used go first, and what is in use stays.

Hits do not touch the index, so the stamp in it may be older than the one in the recency
file. The oldest by the index is therefore looked at again: when it was used since, it is
filed under its newer stamp and the next oldest is tried. An entry is refiled at most once
for each time it was used, so the order is exact and the cost is O(evicted · log n),
amortised over the hits.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import CacheFull
from ..model import format_bytes
from .index import Entry, Transaction
from .layout import Layout
from .living import is_pinned, unlink_unless_pinned
from .recency import Recency

__all__ = ["evict_some", "make_room"]


def make_room(
    transaction: Transaction,
    layout: Layout,
    recency: Recency,
    *,
    now: Callable[[], int],
    journal: Callable[[list[bytes]], None],
    recover: Callable[[], None],
    purpose: str,
) -> list[str]:
    """Evict until the directory is within its capacity; the hashes that went.

    The caller has already counted the bytes it wants (or lowered the capacity). `now` is the
    stamp of this moment, `journal` writes down what is about to be unlinked, `recover` frees what
    dead processes still hold, and `purpose` begins the message of a refusal.

    Raises
    ------
    CacheFull
        When there is too little that may be evicted. The transaction must then be rolled
        back. No file has been touched, unless somebody pinned one in the very moment between
        choosing and unlinking.
    """
    if transaction.excess <= 0:
        return []
    if transaction.excess > transaction.stored - transaction.owed:
        recover()
        if transaction.excess > transaction.stored - transaction.owed:
            raise _full(transaction, purpose)
    gone: list[str] = []
    pinned: list[Entry] = []
    recovered = False
    while transaction.excess > 0:
        chosen: list[Entry] = []
        while transaction.excess > 0 and _choose(transaction, layout, recency, chosen, pinned):
            continue
        if transaction.excess > 0:
            if recovered:
                raise _full(transaction, purpose)
            # Start again without what the dead hold: perhaps nothing has to go then.
            recovered = True
            for entry in chosen:
                transaction.keep_slot(entry)
                transaction.reinstate(entry)
            recover()
            continue
        journal([entry.hash for entry in chosen])
        gone += _unlink(transaction, layout, chosen, pinned)
    _put_back(transaction, pinned, now)
    return gone


def evict_some(
    transaction: Transaction,
    layout: Layout,
    recency: Recency,
    *,
    now: Callable[[], int],
    journal: Callable[[list[bytes]], None],
    limit: int,
) -> list[str]:
    """Evict up to `limit` entries, the oldest first, needed or not; the hashes that went."""
    chosen: list[Entry] = []
    pinned: list[Entry] = []
    while len(chosen) < limit and _choose(transaction, layout, recency, chosen, pinned):
        continue
    journal([entry.hash for entry in chosen])
    gone = _unlink(transaction, layout, chosen, pinned)
    _put_back(transaction, pinned, now)
    return gone


def _choose(
    transaction: Transaction,
    layout: Layout,
    recency: Recency,
    chosen: list[Entry],
    pinned: list[Entry],
) -> bool:
    """Look at the oldest entry: refile it, set it aside, or drop it from the index.

    False when there is none.
    """
    entry = transaction.oldest()
    if entry is None:
        return False
    used = recency.stamp(entry.slot, entry.serial)
    if used > entry.stamp:
        transaction.refile(entry, used)
    elif is_pinned(layout.object(entry.sha256)):
        transaction.set_aside(entry)
        pinned.append(entry)
    else:
        transaction.drop(entry)
        chosen.append(entry)
    return True


def _unlink(
    transaction: Transaction, layout: Layout, chosen: list[Entry], pinned: list[Entry]
) -> list[str]:
    gone: list[str] = []
    for entry in chosen:
        if unlink_unless_pinned(layout.object(entry.sha256)):
            gone.append(entry.sha256)
        else:
            transaction.keep_slot(entry)
            transaction.reinstate(entry)
            transaction.set_aside(entry)
            pinned.append(entry)
    return gone


def _put_back(transaction: Transaction, pinned: list[Entry], now: Callable[[], int]) -> None:
    for entry in pinned:
        # A pin is an access that is still going on: it may be filed anywhere in its
        # duration, and now spares the next eviction from meeting it again.
        transaction.put_back(entry, now())


def _full(transaction: Transaction, purpose: str) -> CacheFull:
    capacity = format_bytes(transaction.capacity)
    owed, flying = format_bytes(transaction.owed), format_bytes(transaction.reserved)
    return CacheFull(
        f"{purpose}: the cache of {capacity} cannot make room ({owed} waits for hosts, "
        f"{flying} is in flight with this, what is being read stays); deliver what waits with "
        "`cloudmanager sync`, or use a larger capacity"
    )
