"""The way in: reading, caching, sending and recording overlap, in bounded memory."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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
_FIRST_BATCH = 4
_BATCH_FILES = 64
_BATCH_BYTES = 4 * 1024 * 1024


class Uploader:
    """Files into the pool.

    A worker takes a batch of small files, or one large file, all the way: read and
    hashed into the cache, sent to the hosts, recorded in one transaction, then named in
    the cache. Workers in different phases overlap; what is in flight is bounded by their
    number, not by the number of files.
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
        running = 0
        done: SimpleQueue[Future[list[UploadResult]]] = SimpleQueue()
        failed: list[UploadResult] = []
        batches = self._batches(paths, failed, progress)
        exhausted = False
        broken: Exception | None = None
        try:
            while running or not exhausted:
                while not exhausted and running < 2 * self._jobs:
                    try:
                        batch = next(batches, None)
                    except Exception as exc:  # noqa: BLE001 - raised when all under way is told
                        broken, batch = exc, None
                    if batch is None:
                        exhausted = True
                        break
                    if batch:
                        pool.submit(self._batch, batch, progress).add_done_callback(done.put)
                        running += 1
                    if failed:
                        break
                yield from failed
                failed.clear()
                full = exhausted or running >= 2 * self._jobs
                while running and (full or not done.empty()):
                    yield from done.get().result()
                    running -= 1
                    full = False
            if broken is not None:
                raise broken
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    # -- how -----------------------------------------------------------------------------

    def _batches(
        self, paths: Iterable[str], failed: list[UploadResult], progress: Progress
    ) -> Iterator[list[tuple[str, int]]]:
        batch: list[tuple[str, int]] = []
        total = 0
        # Small batches first: of a few dozen files each worker gets some.
        most, left = _FIRST_BATCH, self._jobs
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
                        most, left = 2 * most, self._jobs
        except Exception:
            # What was found before the list of paths broke off is uploaded all the same.
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def _batch(self, batch: list[tuple[str, int]], progress: Progress) -> list[UploadResult]:
        """Take one batch all the way. Only a cancellation and a broken catalog get out."""
        self._check()
        if len(batch) == 1 and batch[0][1] > SMALL:
            with self._large:
                self._check()
                path, size = batch[0]
                return self._try([path], lambda: [self._stage_one(path, size)], progress)
        return self._try([path for path, _ in batch], lambda: self._stager.small(batch), progress)

    def _try(
        self,
        paths: list[str],
        stage: Callable[[], list[Staged | Exception]],
        progress: Progress,
    ) -> list[UploadResult]:
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
        staged = [entry for entry in entries if isinstance(entry, Staged)]
        if staged:
            results.extend(self._store(staged, progress))
        return results

    def _stage_one(self, path: str, size: int) -> Staged:
        if size > SMALL:
            return self._stager.large(path)
        entry = self._stager.small([(path, size)])[0]
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _store(self, staged: list[Staged], progress: Progress) -> list[UploadResult]:
        """Send, record and cache what was staged. Nothing is left reserved behind it."""
        ticket = Ticket(self._cancel, progress)
        try:
            with self._catalog.sharing({item.sha256 for item in staged}):
                return self._store_held(staged, ticket)
        except Busy as exc:
            return [UploadResult(item.path, False, item.size, error=exc) for item in staged]
        finally:
            for item in staged:
                item.discard()
            progress.finished(len(staged))

    def _store_held(self, staged: list[Staged], ticket: Ticket) -> list[UploadResult]:
        known = self._catalog.uploads_many([item.sha256 for item in staged])
        places: dict[str, Placement] = {}
        errors: dict[str, Exception] = {}
        first: dict[str, Staged] = {}
        for item in staged:
            sha256 = item.sha256
            if sha256 in first:
                continue
            first[sha256] = item
            try:
                places[sha256] = self._placer.place(
                    sha256, item.source, item.name, known.get(sha256, ()), ticket
                )
            except Cancelled:
                raise
            except Exception as exc:  # noqa: BLE001 - one bad file does not stop the rest
                errors[sha256] = exc
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
            self._catalog.record(files, uploads, outgoing=ticket.moved)
            self._forget_needless(known, places)
            self._keep_rest(first, places, lost)
        return [self._result(item, places, errors, lost, known) for item in staged]

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
