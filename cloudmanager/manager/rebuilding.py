"""Making a lost catalog anew from what the hosts list."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from cloudmanager.catalog import Catalog
from cloudmanager.errors import IntegrityError, ObjectNotFound
from cloudmanager.hashing import sha256_of
from cloudmanager.hosts import Host
from cloudmanager.manager.results import RebuildResult
from cloudmanager.manager.ring import Ring
from cloudmanager.model import FileRecord, ObjectInfo, UploadRecord
from cloudmanager.progress import SILENT, Cancelled, Progress

__all__ = ["Rebuilder"]

log = logging.getLogger(__name__)
_KEY = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})\Z")
_PAGE = 1000


class Rebuilder:
    """Lists every host and records each object of the pool's layout.

    Objects whose sizes disagree between hosts are read and hashed: only the right ones are
    recorded as stored. A listing that fails ends the run with the host's error; what
    was recorded until then is right and stays.
    """

    def __init__(self, ring: Ring, catalog: Catalog, *, jobs: int, cancel: threading.Event) -> None:
        self._ring = ring
        self._catalog = catalog
        self._jobs = jobs
        self._cancel = cancel

    def run(self, *, names: bool = True, progress: Progress = SILENT) -> RebuildResult:
        """List and record. With `names`, ask for each new file's original name as well."""
        before, _ = self._catalog.totals()
        objects: dict[str, int] = {}
        doubtful: list[str] = []
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="rebuild") as pool:
            for host in self._ring.hosts:
                if not host.capabilities.list:
                    continue
                objects[host.name] = 0
                listing = (info for info in host.list() if _KEY.match(info.key))
                while page := list(islice(listing, _PAGE)):
                    if self._cancel.is_set():
                        raise Cancelled("stopped")
                    progress.expect(len(page), 0)
                    # Held against removals: what one deletes meanwhile must not be recorded.
                    with self._catalog.sharing(_hash_of(info) for info in page):
                        self._record(host, page, names, pool, doubtful)
                    objects[host.name] += len(page)
                    progress.finished(len(page))
        after, _ = self._catalog.totals()
        return RebuildResult(objects, after, after - before, tuple(doubtful))

    def survey(self) -> Iterator[tuple[str, int, int]]:
        """Host, objects and bytes of the pool's layout; records nothing."""
        for host in self._ring.hosts:
            if host.capabilities.list:
                objects = size = 0
                for info in host.list():
                    if _KEY.match(info.key):
                        objects += 1
                        size += info.size
                yield host.name, objects, size

    def _record(
        self,
        host: Host,
        page: Sequence[ObjectInfo],
        names: bool,
        pool: ThreadPoolExecutor,
        doubtful: list[str],
    ) -> None:
        hashes = [_hash_of(info) for info in page]
        known = self._catalog.get_many(hashes)
        existing = self._catalog.uploads_many(hashes)
        # Also where the listing gave the name: a removal since then deleted the object.
        look_up = [info for info in page if names and _hash_of(info) not in known]
        found = {
            info.key: looked
            for info, looked in zip(
                look_up, pool.map(lambda info: _look(host, info), look_up), strict=True
            )
        }
        files: list[FileRecord] = []
        uploads: list[UploadRecord] = []
        for info in page:
            sha256 = _hash_of(info)
            detailed = found.get(info.key, info)
            if detailed is None:
                continue  # removed since it was listed
            file = known.get(sha256)
            if file is not None and file.size != info.size:
                doubtful.append(info.location)
                if not _is_right(host, info, sha256):
                    uploads.append(_upload(host, detailed, sha256, "failed"))
                    continue
                # The host that was listed before holds the wrong one: correct the record.
                self._correct(file, info.size, existing.get(sha256, ()))
                known[sha256] = FileRecord(sha256, file.name, info.size, file.created)
            if file is None:
                created = info.modified.timestamp() if info.modified else time.time()
                name = detailed.filename or sha256
                files.append(FileRecord(sha256, name, info.size, created))
            if any(_settled(u, info) for u in existing.get(sha256, ())):
                continue
            uploads.append(_upload(host, detailed, sha256, "stored"))
        self._catalog.record(files, uploads)

    def _correct(self, file: FileRecord, size: int, uploads: Iterable[UploadRecord]) -> None:
        wrong = [
            UploadRecord(
                u.hash,
                u.host,
                u.location,
                status="failed",
                verdict="wrong",
                error="another host has the right bytes in another size",
                verified_at=time.time(),
            )
            for u in uploads
            if u.status == "stored" and not u.external
        ]
        self._catalog.record([], wrong)
        self._catalog.correct_size(file.hash, size)


def _hash_of(info: ObjectInfo) -> str:
    return info.key[3:]


def _settled(upload: UploadRecord, info: ObjectInfo) -> bool:
    """Whether the catalog knows more of this object than that it is listed."""
    if upload.location != info.location:
        return False
    return upload.status in ("stored", "removing") or upload.verdict == "wrong"


def _look(host: Host, info: ObjectInfo) -> ObjectInfo | None:
    """The object with its name; None when it has gone since it was listed."""
    try:
        return host.stat(info.location)
    except ObjectNotFound:
        return None


def _is_right(host: Host, info: ObjectInfo, sha256: str) -> bool:
    try:
        return sha256_of(host.get(info.location)) == sha256
    except (IntegrityError, ObjectNotFound) as exc:
        log.warning("%s", exc)
        return False


def _upload(host: Host, info: ObjectInfo, sha256: str, status: str) -> UploadRecord:
    return UploadRecord(
        hash=sha256,
        host=host.name,
        location=info.location,
        status=status,
        stored_at=info.modified.timestamp() if info.modified else None,
        checksum=info.checksum,
        etag=info.etag,
        verdict=None if status == "stored" else "wrong",
    )
