"""The local cache: a directory with its own index, a hard byte bound and exact LRU.

===============  ==========================================================
store.py         `Cache`: what the rest of the house calls
reservation.py   space set aside, and the file written into it
index.py         SQLite: entries, sums, write transactions
recency.py       when each entry was last used, in shared memory
eviction.py      the least recently used go first
living.py        locked files: owners, claims, pins
workspace.py     the directory as this process has it open; transactions with files
fetching.py      one fetch for each hash
bulk.py          fetching several files at a time
recovery.py      after a crash
check.py         reading and hashing everything; rebuilding the index
layout.py        paths, flushing, and the border to foreign errors
===============  ==========================================================
"""

from __future__ import annotations

from .check import Finding
from .reservation import Reservation, ReservedFile
from .store import Cache

__all__ = ["Cache", "Finding", "Reservation", "ReservedFile"]
