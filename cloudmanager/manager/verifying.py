"""Asking hosts whether they still have what the catalog says, and recording what they answer."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from cloudmanager.catalog import Catalog
from cloudmanager.errors import Busy, HostError, IntegrityError, ObjectNotFound
from cloudmanager.hosts import Host
from cloudmanager.manager.meter import Meter
from cloudmanager.manager.placing import contradicts
from cloudmanager.manager.results import CopyVerdict, Verdict
from cloudmanager.manager.ring import Ring
from cloudmanager.model import FileRecord, ObjectInfo, UploadRecord
from cloudmanager.progress import SILENT, Progress, Ticket

__all__ = ["Verifier"]

log = logging.getLogger(__name__)
_BATCH = 64
"""Verdicts that are recorded in one transaction."""


class Verifier:
    """Looks at copies, the ones that were checked longest ago first.

    What is known to be good or bad is recorded with the time; what cannot be told now is not,
    so that the next run comes back to it first. A run that was interrupted is taken up by
    the next one for the same reason.
    """

    def __init__(
        self, ring: Ring, catalog: Catalog, meter: Meter, *, jobs: int, cancel: threading.Event
    ) -> None:
        self._ring = ring
        self._catalog = catalog
        self._meter = meter
        self._jobs = jobs
        self._cancel = cancel

    def run(
        self,
        *,
        read: bool = False,
        sample: float = 1.0,
        older_than: float | None = None,
        budget: int | None = None,
        progress: Progress = SILENT,
    ) -> Iterator[CopyVerdict]:
        """See `CloudManager.verify`."""
        copies = self._chosen(sample, older_than, budget if read else None, progress)
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="verify")
        ahead: deque[tuple[UploadRecord, Future[CopyVerdict]]] = deque()
        done: list[tuple[UploadRecord, CopyVerdict]] = []
        try:
            for file, upload, host in copies:
                future = pool.submit(self._look, file, upload, host, read, progress)
                ahead.append((upload, future))
                while len(ahead) >= 2 * self._jobs or (ahead and ahead[0][1].done()):
                    before, looked = ahead.popleft()
                    done.append((before, looked.result()))
                if len(done) >= _BATCH:
                    yield from self._recorded(done)
                    done.clear()
            for before, looked in ahead:
                done.append((before, looked.result()))
            yield from self._recorded(done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _chosen(
        self, sample: float, older_than: float | None, budget: int | None, progress: Progress
    ) -> Iterator[tuple[FileRecord, UploadRecord, Host]]:
        """The copies to look at. Those on hosts that this pool does not have are left out."""
        now = time.time()
        before = now if older_than is None else min(now, now - older_than)
        most = -(-self._catalog.count_copies(before) * sample // 1)
        spent = 0
        for page in self._pages(before):
            files = self._catalog.get_many([upload.hash for upload in page])
            for upload in page:
                file, host = files.get(upload.hash), self._ring.owner(upload)
                if file is None or host is None:
                    continue
                if most <= 0 or (budget is not None and spent + file.size > budget):
                    return
                most -= 1
                spent += file.size
                progress.expect(1, file.size)
                yield file, upload, host

    def _pages(self, before: float) -> Iterator[Sequence[UploadRecord]]:
        last: UploadRecord | None = None
        while page := self._catalog.copies_by_check(before, after=last):
            yield page
            last = page[-1]

    def _look(
        self, file: FileRecord, upload: UploadRecord, host: Host, read: bool, progress: Progress
    ) -> CopyVerdict:
        ticket = Ticket(self._cancel, progress)
        try:
            verdict, detail = self._verdict(file, upload, host, read, ticket)
        finally:
            self._meter.add(incoming=ticket.moved)
            progress.finished(1)
        return CopyVerdict(upload.hash, host.name, upload.location, verdict, detail, ticket.moved)

    def _verdict(
        self, file: FileRecord, upload: UploadRecord, host: Host, read: bool, ticket: Ticket
    ) -> tuple[Verdict, str]:
        ticket(0)
        if not self._ring.available(host):
            return "unreachable", self._ring.error(host.name)
        try:
            if read:
                wrong = _reading(file, upload, host, ticket)
                proven = True
            else:
                info = host.stat(upload.location)
                wrong = contradicts(info, file.hash, file.size, upload.checksum)
                proven = _proves(info, file.hash, upload)
        except ObjectNotFound as exc:
            self._ring.worked(host)
            return "missing", str(exc)
        except IntegrityError as exc:
            self._ring.worked(host)
            return "wrong", str(exc)
        except HostError as exc:
            self._ring.failed(host, exc)
            return "unreachable", str(exc)
        self._ring.worked(host)
        if wrong:
            return "wrong", wrong
        if proven:
            return "good", ""
        return "unverifiable", "the host does not tell a checksum that can be compared"

    def _recorded(self, done: Sequence[tuple[UploadRecord, CopyVerdict]]) -> list[CopyVerdict]:
        """Record what was found of copies that are still as they were when they were looked at."""
        now = time.time()
        news = {
            (before.hash, before.host, before.location): (before, _as_found(before, verdict, now))
            for before, verdict in done
            if verdict.verdict in ("good", "missing", "wrong")
        }
        if news:
            hashes = sorted({sha256 for sha256, _, _ in news})
            try:
                with self._catalog.sharing(hashes):
                    rows: list[UploadRecord] = []
                    for upload in itertools.chain(*self._catalog.uploads_many(hashes).values()):
                        key = (upload.hash, upload.host, upload.location)
                        before, after = news.get(key, (None, None))
                        if after is not None and before == upload:
                            rows.append(after)
                        elif upload.status == "queued":
                            # To the catalog a copy that failed is the end of what its host
                            # still owed; here the debt goes on.
                            rows.append(upload)
                    self._catalog.record([], rows)
            except Busy as exc:
                log.info("not recorded: %s", exc)
        return [verdict for _, verdict in done]


def _reading(file: FileRecord, upload: UploadRecord, host: Host, ticket: Ticket) -> str:
    """Why the bytes of a copy are not those of the file; ``""`` when they are."""
    digest = hashlib.sha256()
    size = 0
    for block in host.get(upload.location):
        size += len(block)
        if size > file.size:
            return f"it has more than the {file.size} bytes it should have"
        digest.update(block)
        ticket(len(block))
    if size != file.size:
        return f"it ended after {size} of {file.size} bytes"
    return "" if digest.hexdigest() == file.hash else "its bytes do not have that hash there"


def _proves(info: ObjectInfo, sha256: str, upload: UploadRecord) -> bool:
    """Whether a checksum that the host itself computed says that the bytes are right."""
    found, known = info.checksum, upload.checksum
    if found is None:
        return False
    return (found.kind, found.value) == ("sha256", sha256) or found == known


def _as_found(upload: UploadRecord, verdict: CopyVerdict, now: float) -> UploadRecord:
    if verdict.verdict == "good":
        return replace(upload, status="stored", error=None, verdict="good", verified_at=now)
    return replace(
        upload,
        status="stored" if upload.external else "failed",
        error=verdict.detail,
        verdict=verdict.verdict,
        verified_at=now,
    )
