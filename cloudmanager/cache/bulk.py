"""Fetching several files with as few transactions as one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CacheError
from ..model import validate_hash
from .fetching import SharedFetches
from .reservation import Reservation

if TYPE_CHECKING:
    from .store import Cache

__all__ = ["Fill", "Outcome", "fetch_many"]

Outcome = Path | Exception
Fill = Callable[[Sequence[tuple[str, Reservation]]], Mapping[str, Exception]]
Claimed = Callable[[str], AbstractContextManager[bool]]

_one_batch_at_a_time = threading.Lock()
"""Held while a batch claims, reserves or commits, never while it waits or is filled.

These are hundreds of system calls of microseconds, around each of which Python's global lock
changes hands: with sixteen threads at it, that costs several times the work itself. A forked
child gets another one, as a thread that it does not have may hold the parent's.
"""


def _forked() -> None:
    global _one_batch_at_a_time
    _one_batch_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def fetch_many(
    cache: Cache,
    fetches: SharedFetches,
    claimed: Claimed,
    wanted: Sequence[tuple[str, int]],
    fill: Fill,
) -> dict[str, Outcome]:
    """See `Cache.fetch_many`.

    What somebody else is fetching, or finds no room together with the rest, is fetched one by
    one afterwards: nothing is held while waiting for others, so two batches cannot wait for
    each other.
    """
    results: dict[str, Outcome] = {}
    sizes = {validate_hash(sha256): size for sha256, size in wanted}
    mine: list[str] = []
    with ExitStack() as claims:
        # Left last, when the claims are let go.
        claims.callback(_one_batch_at_a_time.release)
        _one_batch_at_a_time.acquire()
        try:
            for sha256 in sizes:
                if _is_cached(cache, sha256, results) or not fetches.begin(sha256):
                    continue
                mine.append(sha256)
                # Looked at once more under the claim: another process may have brought it.
                if claims.enter_context(claimed(sha256)):
                    _is_cached(cache, sha256, results)
                else:
                    fetches.end(mine.pop(), None)
            missing = [sha256 for sha256 in mine if sha256 not in results]
            _fill(cache, [(sha256, sizes[sha256]) for sha256 in missing], fill, results)
        finally:
            for sha256 in mine:
                fetches.end(sha256, results.get(sha256))
    for sha256, size in sizes.items():
        if sha256 not in results:
            results[sha256] = _one(cache, sha256, size, fill)
    return results


def _is_cached(cache: Cache, sha256: str, results: dict[str, Outcome]) -> bool:
    path = cache.path(sha256)
    if path is not None:
        results[sha256] = path
    return path is not None


def _fill(
    cache: Cache,
    missing: Sequence[tuple[str, int]],
    fill: Fill,
    results: dict[str, Outcome],
) -> None:
    if not missing:
        return
    try:
        reservations = cache.reserve_many([size for _, size in missing])
    except CacheError:
        return  # together they find no room; one by one they may
    pairs = [
        (sha256, reservation)
        for (sha256, _), reservation in zip(missing, reservations, strict=True)
    ]
    try:
        _one_batch_at_a_time.release()
        try:
            errors = fill(pairs)
        finally:
            _one_batch_at_a_time.acquire()
        results.update(errors)
        good = [(reservation, sha256) for sha256, reservation in pairs if sha256 not in errors]
        if good:
            cache.commit_many(good)
            results.update((sha256, cache.place(sha256)) for _, sha256 in good)
    finally:
        for _, reservation in pairs:
            if reservation.active:
                reservation.abort()


def _one(cache: Cache, sha256: str, size: int, fill: Fill) -> Outcome:
    def fill_one(reservation: Reservation) -> None:
        for error in fill([(sha256, reservation)]).values():
            raise error

    try:
        return cache.fetch(sha256, size, fill_one)
    except Exception as error:  # noqa: BLE001 - one bad file does not stop the rest
        return error
