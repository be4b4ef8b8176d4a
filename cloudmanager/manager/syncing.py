"""Delivering what hosts still owe, and finishing removals."""

from __future__ import annotations

import itertools
import logging
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cloudmanager.cache import Cache
from cloudmanager.catalog import Catalog
from cloudmanager.errors import (
    Busy,
    HostError,
    NoGoodCopy,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hosts import Host
from cloudmanager.manager.fetching import Fetcher, Spoiled
from cloudmanager.manager.meter import Meter
from cloudmanager.manager.placing import Placer, contradicts, stored_record
from cloudmanager.manager.results import SyncResult
from cloudmanager.manager.ring import Ring
from cloudmanager.model import FileRecord, ObjectInfo, UploadRecord
from cloudmanager.progress import SILENT, Progress, Ticket
from cloudmanager.source import FileSource, Source, StreamSource

__all__ = ["Syncer"]

log = logging.getLogger(__name__)

_UNTIL_IDLE = 1.0
"""Seconds to wait for a file that somebody is at work on, before leaving it to him."""


@dataclass(slots=True)
class _Outcome:
    delivered: int = 0
    removed: int = 0
    waiting: int = 0
    errors: list[str] = field(default_factory=list)


class Syncer:
    """Works through what waits, file by file."""

    def __init__(
        self,
        ring: Ring,
        cache: Cache,
        catalog: Catalog,
        fetcher: Fetcher,
        placer: Placer,
        meter: Meter,
        *,
        jobs: int,
        cancel: threading.Event,
    ) -> None:
        self._ring = ring
        self._cache = cache
        self._catalog = catalog
        self._fetcher = fetcher
        self._placer = placer
        self._meter = meter
        self._jobs = jobs
        self._cancel = cancel

    def run(self, progress: Progress = SILENT) -> SyncResult:
        """One pass over everything that waits; what fails stays and is tried by the next."""
        self.readopt()
        total = _Outcome()
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="sync")
        running: set[Future[_Outcome]] = set()
        try:
            for sha256, waiting in self._waiting_by_file():
                running.add(pool.submit(self._one, sha256, waiting, progress))
                if len(running) >= 2 * self._jobs:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    _add_all(total, done)
            done, _ = wait(running)
            _add_all(total, done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return SyncResult(
            total.delivered, total.removed, total.waiting, tuple(dict.fromkeys(total.errors))
        )

    def readopt(self) -> None:
        """Make catalog and cache agree on what is owed after a crash between the two.

        What the cache holds for hosts but the catalog does not know (its database was lost or
        is older) is registered again, under its hash as name; what is owed no longer is
        unpinned.
        """
        for sha256 in list(self._cache.owed()):
            if self._agreed(sha256):
                continue
            try:
                # Against uploads too: one that has pinned its file and not recorded it yet
                # looks as if it had crashed in between.
                with self._catalog.exclusively(sha256, wait=_UNTIL_IDLE):
                    self._readopt(sha256)
            except Busy:
                log.debug("%s is being uploaded or removed: whoever does that records it", sha256)

    def _agreed(self, sha256: str) -> bool:
        """Whether the catalog knows what the cache says is owed."""
        uploads = self._catalog.uploads(sha256)  # there are none of a file that is unknown
        return any(upload.status == "queued" for upload in uploads)

    def _readopt(self, sha256: str) -> None:
        if self._agreed(sha256):
            return
        uploads = self._catalog.uploads(sha256)
        known = self._catalog.get(sha256)
        stored = {u.host for u in uploads if u.status == "stored" and not u.external}
        missing = [host for host in self._ring.writable if host.name not in stored]
        missing = missing[: max(0, self._placer.redundancy - len(stored))]
        leaving = any(u.status == "removing" for u in uploads)
        if known is not None and (not missing or (leaving and not stored)):
            self._cache.settle(sha256)
            return
        with self._cache.pinned(sha256) as path:
            if path is None:
                return
            size, created = path.stat().st_size, path.stat().st_mtime
        name = known.name if known is not None else sha256
        queued = [UploadRecord(sha256, host.name, status="queued") for host in missing]
        self._catalog.record([FileRecord(sha256, name, size, created)], queued)

    def remove(self, sha256: str) -> _Outcome:
        """Delete what `mark_removing` marked, as far as the hosts answer."""
        outcome = _Outcome()
        deleted: list[UploadRecord] = []
        for upload in self._catalog.uploads(sha256):
            if upload.status != "removing":
                continue
            host = self._ring.owner(upload)
            if host is None or not self._ring.available(host):
                outcome.waiting += 1
                reason = self._ring.error(upload.host) or f"host {upload.host} is not in this pool"
                outcome.errors.append(reason)
                continue
            try:
                host.delete([upload.location])
            except HostError as exc:
                self._ring.failed(host, exc)
                outcome.waiting += 1
                outcome.errors.append(str(exc))
                continue
            self._ring.worked(host)
            deleted.append(upload)
            outcome.removed += 1
        if outcome.waiting:
            self._catalog.forget_uploads(deleted)
        elif self._catalog.finish_removal(sha256, deleted):
            # Again: a removal that was killed, or a download at the same time, can leave it there.
            try:
                self._cache.remove(sha256)
            except Busy:  # somebody reads it; then it goes when room is needed
                self._cache.settle(sha256)
        return outcome

    def deliver(self, sha256: str, progress: Progress = SILENT) -> None:
        """Send what hosts still owe of one file, which the caller holds."""
        self._deliver(sha256, _Outcome(), progress)

    # -- how -----------------------------------------------------------------------------

    def _waiting_by_file(self) -> Iterator[tuple[str, list[UploadRecord]]]:
        after: tuple[str, str, str] | None = None

        def rows() -> Iterator[UploadRecord]:
            nonlocal after
            while page := self._catalog.waiting(after=after):
                last = page[-1]
                after = (last.hash, last.host, last.location)
                yield from page

        for sha256, group in itertools.groupby(rows(), key=lambda upload: upload.hash):
            yield sha256, list(group)

    def _one(self, sha256: str, waiting: list[UploadRecord], progress: Progress) -> _Outcome:
        outcome = _Outcome()
        try:
            if any(upload.status == "removing" for upload in waiting):
                with self._catalog.exclusively(sha256):
                    removed = self.remove(sha256)
                outcome.removed += removed.removed
                outcome.waiting += removed.waiting
                outcome.errors += removed.errors
            if any(upload.status == "queued" for upload in waiting):
                with self._catalog.sharing([sha256]):
                    self._deliver(sha256, outcome, progress)
        except (Busy, SourceChanged) as exc:
            outcome.waiting += 1
            outcome.errors.append(str(exc))
        return outcome

    def _deliver(self, sha256: str, outcome: _Outcome, progress: Progress) -> None:
        file = self._catalog.get(sha256)
        uploads = self._catalog.uploads(sha256)
        queued = [upload for upload in uploads if upload.status == "queued"]
        if file is None:
            # Removed since it was listed. Not settled: what is pinned by now belongs to an
            # upload of the same content that has not been recorded yet.
            return
        progress.expect(1, file.size * len(queued))
        with ExitStack() as stack:
            cached = stack.enter_context(self._cache.pinned(sha256))
            source: Source
            if cached is not None:
                source = FileSource(cached, size=file.size, trusted=True)
            else:
                source = StreamSource(
                    lambda offset: self._metered(
                        self._fetcher.stream(sha256, file.size, uploads, offset)
                    ),
                    size=file.size,
                    label=f"{sha256} from another host",
                )
            for upload in queued:
                self._deliver_one(file, upload, uploads, source, outcome, progress)
        progress.finished(1)
        left = [u for u in self._catalog.uploads(sha256) if u.status == "queued"]
        if not left:
            self._cache.settle(sha256)

    def _deliver_one(
        self,
        file: FileRecord,
        upload: UploadRecord,
        uploads: list[UploadRecord],
        source: Source,
        outcome: _Outcome,
        progress: Progress,
    ) -> None:
        host = self._ring.get(upload.host)
        if host is None or not host.capabilities.put:
            outcome.waiting += 1
            outcome.errors.append(f"host {upload.host} is not in this pool: add it with --host")
            return
        if not self._ring.available(host):
            outcome.waiting += 1
            outcome.errors.append(self._ring.error(host.name))
            return
        ticket = Ticket(self._cancel, progress)
        try:
            info = None
            for other in uploads:
                if other.status == "stored" and not other.external and host.owns(other.location):
                    info = self._right(host, other, file)
            if info is None:
                info = self._put(host, file, uploads, source, ticket)
        except (HostError, NoGoodCopy, OSError) as exc:
            # The catalog's own trouble ends the run; that of a host, of a copy or of the disk
            # for temporary files does not.
            outcome.waiting += 1
            outcome.errors.append(str(exc))
            failed = UploadRecord(
                file.hash,
                upload.host,
                status="queued",
                error=str(exc),
                attempts=upload.attempts + 1,
            )
            self._catalog.record([], [failed], outgoing=ticket.moved)
            return
        self._catalog.record([], [stored_record(file.hash, host, info)], outgoing=ticket.moved)
        outcome.delivered += 1

    def _put(
        self,
        host: Host,
        file: FileRecord,
        uploads: list[UploadRecord],
        source: Source,
        ticket: Ticket,
    ) -> ObjectInfo:
        try:
            return self._placer.put_on(host, file.hash, source, file.name, ticket)
        except SourceChanged:
            if source.path is not None:
                raise
        # The copy it was streamed from is wrong. Only a whole verified one tells which is
        # right, so this one goes through the disk; the usual case needs no room there.
        with tempfile.NamedTemporaryFile(prefix="cloudmanager-") as spool:
            incoming = Ticket(self._cancel)
            path = Path(spool.name)
            spoiled: tuple[Spoiled, ...] = ()
            try:
                spoiled = tuple(self._fetcher.into(path, file.hash, file.size, uploads, incoming))
            except NoGoodCopy as exc:
                spoiled = tuple(entry for entry in exc.spoiled if isinstance(entry, Spoiled))
                raise
            finally:
                self._meter.add(incoming=incoming.moved)
                self._catalog.record([], [entry.record for entry in spoiled])
            verified = FileSource(path, size=file.size, trusted=True)
            return self._placer.put_on(host, file.hash, verified, file.name, ticket)

    def _right(self, host: Host, upload: UploadRecord, file: FileRecord) -> ObjectInfo | None:
        """The object of a copy that the catalog counts as stored, when it is there and fits."""
        try:
            info = host.stat(upload.location)
        except ObjectNotFound:
            return None
        except HostError as exc:
            self._ring.failed(host, exc)
            raise
        return None if contradicts(info, file.hash, file.size, upload.checksum) else info

    def _metered(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self._meter.add(incoming=len(block))
            yield block


def _add_all(total: _Outcome, done: set[Future[_Outcome]]) -> None:
    for future in done:
        outcome = future.result()
        total.delivered += outcome.delivered
        total.removed += outcome.removed
        total.waiting += outcome.waiting
        total.errors += outcome.errors
