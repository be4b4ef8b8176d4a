"""Bringing files back to the number of copies that they shall have."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from cloudmanager.cache import Cache
from cloudmanager.catalog import Catalog
from cloudmanager.errors import Busy, SourceChanged
from cloudmanager.hosts import Host
from cloudmanager.manager.fetching import Fetcher
from cloudmanager.manager.results import Repair, Shortage
from cloudmanager.manager.ring import Ring
from cloudmanager.manager.syncing import Syncer
from cloudmanager.model import FileRecord, UploadRecord
from cloudmanager.progress import SILENT, Progress

__all__ = ["Repairer"]


class Repairer:
    """Queues what files lack for the hosts that shall hold it, and delivers it at once.

    Interrupted at any moment, what is queued by then is delivered by `cloud_sync`.
    """

    def __init__(
        self,
        ring: Ring,
        cache: Cache,
        catalog: Catalog,
        fetcher: Fetcher,
        syncer: Syncer,
        *,
        redundancy: int,
        jobs: int,
    ) -> None:
        self._ring = ring
        self._cache = cache
        self._catalog = catalog
        self._fetcher = fetcher
        self._syncer = syncer
        self._redundancy = redundancy
        self._jobs = jobs

    def shortages(self) -> Iterator[Shortage]:
        """Files that need care, ascending by hash."""
        after = ""
        while page := self._catalog.shortages(self._redundancy, after=after):
            for file, copies, failed in page:
                yield Shortage(file, copies, failed)
            after = page[-1][0].hash

    def run(self, *, dry_run: bool = False, progress: Progress = SILENT) -> Iterator[Repair]:
        """See `CloudManager.repair`."""
        if dry_run:
            for shortage in self.shortages():
                yield from self._plan(shortage.file, self._catalog.uploads(shortage.file.hash))[1]
            return
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="repair")
        stop = threading.Event()
        done: SimpleQueue[Future[list[Repair]]] = SimpleQueue()
        running = 0
        try:
            for shortage in self.shortages():
                pool.submit(self._one, shortage.file, stop, progress).add_done_callback(done.put)
                running += 1
                if running >= 2 * self._jobs:
                    yield from done.get().result()
                    running -= 1
            for _ in range(running):
                yield from done.get().result()
        finally:
            stop.set()
            pool.shutdown(wait=False)

    def _plan(
        self, file: FileRecord, uploads: Sequence[UploadRecord]
    ) -> tuple[list[Host], list[Repair]]:
        """The hosts to put copies on, wrong ones first; and what that will have done."""
        mine = [u for u in uploads if not u.external]
        stored = {self._holder(u) for u in mine if u.status == "stored"}
        failed = {self._holder(u): u for u in mine if u.status == "failed"}
        if not self._somewhere(file.hash, uploads):
            why = "; ".join(u.error or u.verdict or u.status for u in failed.values())
            why = why or "no host of this pool has it"
            return [], [Repair(file.hash, file.name, "", "lost", why)]
        hosts: list[Host] = []
        repairs: list[Repair] = []
        by_need = sorted(self._ring.writable, key=lambda host: host.name not in failed)
        for host in by_need:
            if host.name in stored:
                continue
            if host.name not in failed and len(stored) + len(hosts) >= self._redundancy:
                continue
            hosts.append(host)
            before = failed.get(host.name)
            wrong = before is not None and before.verdict != "missing"
            action = "replaced" if wrong else "restored"
            detail = "" if before is None else before.error or ""
            repairs.append(Repair(file.hash, file.name, host.name, action, detail))  # type: ignore[arg-type]
        return hosts, repairs

    def _holder(self, upload: UploadRecord) -> str:
        """The name of the host that has a copy. By URL: hosts can be renamed, and two copies
        in one place are one."""
        host = self._ring.owner(upload)
        return upload.host if host is None else host.name

    def _somewhere(self, sha256: str, uploads: Sequence[UploadRecord]) -> bool:
        """Whether there is a copy that may be good."""
        if self._cache.contains(sha256):
            return True
        copies = self._fetcher.copies(uploads)
        return any(upload.status == "stored" for _, upload in copies)

    def _one(self, file: FileRecord, stop: threading.Event, progress: Progress) -> list[Repair]:
        if stop.is_set():
            return []
        try:
            with self._catalog.sharing([file.hash]):
                known = self._catalog.get(file.hash)
                uploads = self._catalog.uploads(file.hash)
                if known is None or any(u.status == "removing" for u in uploads):
                    return []
                hosts, repairs = self._plan(known, uploads)
                if not hosts:
                    return repairs
                owed = {u.host: u for u in uploads if u.status == "queued"}
                queued = [
                    owed.get(host.name) or UploadRecord(file.hash, host.name, status="queued")
                    for host in hosts
                ]
                self._catalog.record([], queued)
                self._syncer.deliver(file.hash, progress)
                return [self._outcome(repair, uploads) for repair in repairs]
        except (Busy, SourceChanged) as exc:
            return [Repair(file.hash, file.name, "", "waiting", str(exc))]

    def _outcome(self, repair: Repair, before: Sequence[UploadRecord]) -> Repair:
        """What became of one copy; a failed record in another place of its host goes."""
        uploads = self._catalog.uploads(repair.hash)
        now = [u for u in uploads if self._holder(u) == repair.host and not u.external]
        if not any(u.status == "stored" for u in now):
            if not self._somewhere(repair.hash, uploads):
                why = "what was left of it turned out wrong when it was read"
                return Repair(repair.hash, repair.name, repair.host, "lost", why)
            owed = next((u for u in now if u.status == "queued"), None)
            why = owed.error if owed is not None and owed.error else self._ring.error(repair.host)
            return Repair(repair.hash, repair.name, repair.host, "waiting", why)
        spent = [u for u in now if u.status == "failed" and u in before]
        if spent:
            self._catalog.forget_uploads(spent)
        return repair
