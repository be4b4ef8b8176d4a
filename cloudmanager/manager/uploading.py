"""The way in: reading, caching, sending and recording overlap, in bounded memory."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import BinaryIO

from cloudmanager.cache import Cache
from cloudmanager.catalog import Catalog
from cloudmanager.errors import Busy, CacheError, CloudManagerError, HostUnavailable
from cloudmanager.manager.placing import Placement, Placer
from cloudmanager.manager.results import UploadResult
from cloudmanager.manager.staging import SMALL, Staged, Stager
from cloudmanager.model import FileRecord, UploadRecord
from cloudmanager.progress import SILENT, Cancelled, Progress, Ticket

__all__ = ["Uploader"]

log = logging.getLogger(__name__)
_FIRST_BATCH = 16
_BATCH_FILES = 256
_BATCH_BYTES = 4 * 1024 * 1024
_SHARE = 8
"""Files of a batch that a worker sends before it looks for others."""

_SMALL_AHEAD = 4
"""Batches in flight."""

_LARGE_AHEAD = 2
"""Large files in flight or waiting, for each worker."""

_Deliver = Callable[["list[UploadResult] | BaseException"], None]


class _Batch:
    """Files on their way together, and all that is known of them."""

    def __init__(
        self,
        staged: list[Staged],
        known: dict[str, list[UploadRecord]],
        ticket: Ticket,
        holding: ExitStack,
    ) -> None:
        self.staged = staged
        self.known = known
        self.ticket = ticket
        self.holding = holding
        self.first: dict[str, Staged] = {}
        for item in staged:
            self.first.setdefault(item.sha256, item)
        self.places: dict[str, Placement] = {}
        self.errors: dict[str, Exception] = {}
        self.broken: BaseException | None = None
        self.left = 1
        self._lock = threading.Lock()

    def is_last(self) -> bool:
        """Whether the share that has just ended was the last one."""
        with self._lock:
            self.left -= 1
            return self.left == 0


def _deliver(
    done: SimpleQueue[tuple[int, list[UploadResult] | BaseException]],
    weight: int,
    outcome: list[UploadResult] | BaseException,
) -> None:
    done.put((weight, outcome))


class Uploader:
    """Files into the pool.

    A worker takes one large file all the way: read and hashed into the cache, sent to the
    hosts, recorded, then named in the cache. Small files go in batches: one worker reads a
    batch, all send its files, and who sends the last one records the batch in one transaction.
    Batches in different phases overlap; what is in flight is bounded by the number of workers,
    not by the number of files.
    """

    def __init__(
        self,
        cache: Cache,
        catalog: Catalog,
        placer: Placer,
        *,
        jobs: int,
        large_jobs: int,
        cancel: threading.Event,
    ) -> None:
        self._cache = cache
        self._catalog = catalog
        self._placer = placer
        self._jobs = jobs
        self._large = threading.BoundedSemaphore(large_jobs)
        self._cancel = cancel
        # As `one_at_a_time`, but apart from it: a flush of the catalog is no reason not to read.
        self._recording = threading.Lock()
        self._stager = Stager(cache, self._check)

    def one(self, path: str, progress: Progress = SILENT) -> UploadResult:
        """Upload one file. Errors with the file itself are raised."""
        size = os.stat(path).st_size
        progress.expect(1, size * self._placer.redundancy)
        staged = self._stage_one(path, size)
        return self._store([staged], progress)[0]

    def stream(self, file: BinaryIO, name: str, progress: Progress = SILENT) -> UploadResult:
        """Upload what `file` delivers, under `name`."""
        staged = self._stager.stream(file, name)
        progress.expect(1, staged.size * self._placer.redundancy)
        return self._store([staged], progress)[0]

    def many(self, paths: Iterable[str], progress: Progress = SILENT) -> Iterator[UploadResult]:
        """Upload files; one result per path, in the order in which they are done."""
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="upload")
        done: SimpleQueue[tuple[int, list[UploadResult] | BaseException]] = SimpleQueue()
        stop = threading.Event()
        running, most = 0, _LARGE_AHEAD * self._jobs
        failed: list[UploadResult] = []
        batches = self._batches(paths, failed, progress)
        exhausted = False
        broken: Exception | None = None
        try:
            while running or not exhausted:
                while not exhausted and running < most:
                    try:
                        batch = next(batches, None)
                    except Exception as exc:  # noqa: BLE001 - raised when all under way is told
                        broken, batch = exc, None
                    if batch is None:
                        exhausted = True
                        break
                    if batch and batch[0][1] > SMALL:
                        weight = 1
                        deliver = functools.partial(_deliver, done, weight)
                        pool.submit(self._one_large, batch[0], progress, stop, deliver)
                        running += weight
                    elif batch:
                        weight = most // min(_SMALL_AHEAD, self._jobs)
                        deliver = functools.partial(_deliver, done, weight)
                        pool.submit(self._begin, batch, progress, pool, stop, deliver)
                        running += weight
                    if failed:
                        break
                yield from failed
                failed.clear()
                full = exhausted or running >= most
                while running and (full or not done.empty()):
                    weight, outcome = done.get()
                    running -= weight
                    if isinstance(outcome, BaseException):
                        raise outcome
                    yield from outcome
                    full = False
            if broken is not None:
                raise broken
        finally:
            # Nothing is cancelled: who comes last in a batch has to let go of what it holds.
            stop.set()
            pool.shutdown(wait=False)

    # -- how -----------------------------------------------------------------------------

    def _batches(
        self, paths: Iterable[str], failed: list[UploadResult], progress: Progress
    ) -> Iterator[list[tuple[str, int]]]:
        batch: list[tuple[str, int]] = []
        total = 0
        # Small batches first, so that the first results do not have to wait for many files.
        most, left = _FIRST_BATCH, _SMALL_AHEAD
        try:
            for path in paths:
                try:
                    size = os.stat(path).st_size
                except (OSError, ValueError) as exc:
                    failed.append(UploadResult(path, False, error=exc))
                    progress.expect(1, 0)
                    progress.finished(1)
                    if len(failed) >= _BATCH_FILES:
                        yield []
                    continue
                progress.expect(1, size * self._placer.redundancy)
                if size > SMALL:
                    yield [(path, size)]
                    continue
                batch.append((path, size))
                total += size
                if len(batch) >= most or total >= _BATCH_BYTES:
                    yield batch
                    batch, total = [], 0
                    left -= 1
                    if left == 0 and most < _BATCH_FILES:
                        most, left = 2 * most, _SMALL_AHEAD
        except Exception:
            # What was found before the list of paths broke off is uploaded all the same.
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def _one_large(
        self,
        file: tuple[str, int],
        progress: Progress,
        stop: threading.Event,
        deliver: _Deliver,
    ) -> None:
        path, size = file
        try:
            with self._large:
                if stop.is_set():
                    raise Cancelled("nobody waits for it")
                self._check()
                results, staged = self._staged(
                    [path], lambda: [self._stage_one(path, size)], progress
                )
                if staged:
                    results += self._store(staged, progress)
        except BaseException as exc:  # noqa: BLE001 - raised where the results are awaited
            deliver(exc)
        else:
            deliver(results)

    def _begin(
        self,
        files: list[tuple[str, int]],
        progress: Progress,
        pool: ThreadPoolExecutor,
        stop: threading.Event,
        deliver: _Deliver,
    ) -> None:
        """Read a batch of small files and share it out among the workers."""
        try:
            if stop.is_set():
                raise Cancelled("nobody waits for it")
            self._check()
            paths = [path for path, _ in files]
            results, staged = self._staged(paths, lambda: self._stager.small(files), progress)
            if not staged:
                deliver(results)
                return
            batch = self._held(staged, progress)
        except BaseException as exc:  # noqa: BLE001 - raised where the results are awaited
            deliver(exc)
            return
        if isinstance(batch, list):
            deliver(results + batch)
            return

        def end(shared: _Batch) -> None:
            try:
                deliver(results + self._end(shared))
            except BaseException as exc:  # noqa: BLE001
                deliver(exc)

        def share(items: list[Staged]) -> None:
            try:
                if stop.is_set():
                    raise Cancelled("nobody waits for it")
                self._place(batch, items)
            except BaseException as exc:  # noqa: BLE001 - raised where the results are awaited
                batch.broken = batch.broken or exc
            if batch.is_last():
                end(batch)

        items = list(batch.first.values())
        size = max(1, min(_SHARE, len(items) // self._jobs))
        shares = [items[start : start + size] for start in range(0, len(items), size)]
        batch.left = len(shares)
        for mine in shares[1:]:
            try:
                pool.submit(share, mine)
            except RuntimeError:  # the pool was shut down, as nobody waits for it any more
                share(mine)
        share(shares[0])

    def _staged(
        self,
        paths: list[str],
        stage: Callable[[], list[Staged | Exception]],
        progress: Progress,
    ) -> tuple[list[UploadResult], list[Staged]]:
        """What cannot be read, and what was. Only a cancellation gets out."""
        try:
            entries = stage()
        except (Cancelled, KeyboardInterrupt):
            raise
        except Exception as exc:  # noqa: BLE001 - one bad file does not stop the rest
            entries = [exc for _ in paths]
        results = [
            UploadResult(path, False, error=entry)
            for path, entry in zip(paths, entries, strict=True)
            if isinstance(entry, Exception)
        ]
        progress.finished(len(results))
        return results, [entry for entry in entries if isinstance(entry, Staged)]

    def _stage_one(self, path: str, size: int) -> Staged:
        if size > SMALL:
            return self._stager.large(path)
        entry = self._stager.small([(path, size)])[0]
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _store(self, staged: list[Staged], progress: Progress) -> list[UploadResult]:
        """Send, record and cache what was staged. Nothing is left reserved behind it."""
        batch = self._held(staged, progress)
        if isinstance(batch, list):
            return batch
        try:
            self._place(batch, batch.first.values())
        except BaseException as exc:  # noqa: BLE001 - raised when what was sent is recorded
            batch.broken = exc
        return self._end(batch)

    def _held(self, staged: list[Staged], progress: Progress) -> _Batch | list[UploadResult]:
        """Hold what was staged against removals, and look it up; the results when that fails."""
        with ExitStack() as stack:
            stack.callback(progress.finished, len(staged))
            for item in staged:
                stack.callback(item.discard)
            try:
                stack.enter_context(self._catalog.sharing({item.sha256 for item in staged}))
            except Busy as exc:
                return [UploadResult(item.path, False, item.size, error=exc) for item in staged]
            known = self._catalog.uploads_many([item.sha256 for item in staged])
            return _Batch(staged, known, Ticket(self._cancel, progress), stack.pop_all())

    def _place(self, batch: _Batch, items: Iterable[Staged]) -> None:
        """Send some files of a batch."""
        for item in items:
            sha256 = item.sha256
            try:
                batch.places[sha256] = self._placer.place(
                    sha256, item.source, item.name, batch.known.get(sha256, ()), batch.ticket
                )
            except Cancelled:
                raise
            except Exception as exc:  # noqa: BLE001 - one bad file does not stop the rest
                batch.errors[sha256] = exc

    def _end(self, batch: _Batch) -> list[UploadResult]:
        """Record what became of a batch, and let go of all it holds."""
        with batch.holding:
            results = self._record(batch)
        if batch.broken is not None:
            raise batch.broken
        return results

    def _record(self, batch: _Batch) -> list[UploadResult]:
        known, places, first = batch.known, batch.places, batch.first
        lost = self._keep_owed(first, places)
        now = time.time()
        files: list[FileRecord] = []
        uploads: list[UploadRecord] = []
        for sha256, place in places.items():
            if sha256 not in lost:
                item = first[sha256]
                files.append(FileRecord(sha256, item.name, item.size, now))
                uploads.extend(place.records)
        self._correct_sizes([file for file in files if known.get(file.hash)])
        with self._recording:
            self._catalog.record(files, uploads, outgoing=batch.ticket.moved)
            self._forget_needless(known, places)
            self._keep_rest(first, places, lost)
        return [
            self._result(item, places, batch.errors, lost, known)
            for item in batch.staged
            if item.sha256 in places or item.sha256 in batch.errors  # the rest was cancelled
        ]

    def _correct_sizes(self, files: list[FileRecord]) -> None:
        """A catalog that was rebuilt from a damaged object has its size: now we know better."""
        known = self._catalog.get_many([file.hash for file in files]) if files else {}
        for file in files:
            if file.hash in known and known[file.hash].size != file.size:
                self._catalog.correct_size(file.hash, file.size)

    def _forget_needless(
        self, known: dict[str, list[UploadRecord]], places: dict[str, Placement]
    ) -> None:
        """Drop what was queued for a host when enough others have the file by now."""
        needless = [
            upload
            for sha256, place in places.items()
            if len(place.stored) >= self._placer.redundancy
            for upload in known.get(sha256, ())
            if upload.status == "queued"
            and upload.host not in place.stored
            # Hosts that only other pools of this catalog have are theirs to judge.
            and self._placer.serves(upload.host)
        ]
        if needless:
            self._catalog.forget_uploads(needless)
        for sha256, place in places.items():
            if not place.queued and any(u.status == "queued" for u in known.get(sha256, ())):
                self._cache.settle(sha256)

    def _keep_owed(self, first: dict[str, Staged], places: dict[str, Placement]) -> set[str]:
        """Flush to the cache what hosts still owe; the hashes that nothing at all holds."""
        return {
            sha256
            for sha256, place in places.items()
            if place.queued and not self._pin(first[sha256]) and not place.stored
        }

    def _pin(self, item: Staged) -> bool:
        """Have the cache hold what hosts still owe; whether it does."""
        try:
            if item.reservation is None:
                # There was no room for one more copy of what may well lie there already.
                return self._cache.owe(item.sha256)
            item.reservation.commit(item.sha256, owed=True)
        except (CacheError, OSError) as exc:
            log.warning("%s is not cached: %s", item.sha256, exc)
            return False
        item.reservation = None
        return True

    def _keep_rest(
        self, first: dict[str, Staged], places: dict[str, Placement], lost: set[str]
    ) -> None:
        items = []
        for sha256, place in places.items():
            reservation = first[sha256].reservation
            if reservation is not None and place.stored and sha256 not in lost:
                items.append((reservation, sha256))
        if not items:
            return
        try:
            self._cache.commit_many(items)
        except (CacheError, OSError) as exc:
            # The hosts have them, the catalog knows: only the cache is the poorer.
            log.warning("not cached: %s", exc)
            return
        for _, sha256 in items:
            first[sha256].reservation = None

    def _result(
        self,
        item: Staged,
        places: dict[str, Placement],
        errors: dict[str, Exception],
        lost: set[str],
        known: dict[str, list[UploadRecord]],
    ) -> UploadResult:
        sha256 = item.sha256
        place = places.get(sha256)
        if place is None:
            return UploadResult(item.path, False, item.size, error=errors[sha256])
        if sha256 in lost:
            error = place.errors[-1] if place.errors else _nowhere(item)
            return UploadResult(item.path, False, item.size, error=error)
        return UploadResult(
            item.path,
            sha256,
            item.size,
            hosts=tuple(place.stored),
            waiting=tuple(record.host for record in place.queued),
            new=not known.get(sha256),
            error=None if place.stored else _why_waiting(place),
        )

    def _check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("stopped")


def _why_waiting(place: Placement) -> Exception:
    if place.errors:
        return place.errors[-1]
    waiting = ", ".join(record.host for record in place.queued)
    return HostUnavailable(
        "left alone for now after its last failure", host=waiting, operation="put"
    )


def _nowhere(item: Staged) -> CloudManagerError:
    return CloudManagerError(
        f"no host took {item.path!r} and the cache cannot hold its {item.size} bytes; "
        "try again when a host is back, or give the cache a larger --capacity"
    )
