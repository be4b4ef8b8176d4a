"""Bringing one file's copies to the hosts that shall hold them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from cloudmanager.errors import HostError, IntegrityError, ObjectNotFound
from cloudmanager.hosts import Host
from cloudmanager.hosts.base import OnBytes
from cloudmanager.manager.ring import Ring
from cloudmanager.model import Checksum, ObjectInfo, UploadRecord, pool_key
from cloudmanager.source import Source

__all__ = ["Placement", "Placer", "contradicts", "stored_record"]


@dataclass(slots=True)
class Placement:
    """What became of a file's copies. `records` is what the catalog should now say."""

    stored: dict[str, UploadRecord] = field(default_factory=dict)
    queued: list[UploadRecord] = field(default_factory=list)
    records: list[UploadRecord] = field(default_factory=list)
    errors: list[HostError] = field(default_factory=list)
    sent_any: bool = False


def stored_record(sha256: str, host: Host, info: ObjectInfo) -> UploadRecord:
    """The record of a copy that the host has just acknowledged."""
    return UploadRecord(
        hash=sha256,
        host=host.name,
        location=info.location,
        status="stored",
        stored_at=time.time(),
        checksum=info.checksum,
        etag=info.etag,
    )


def contradicts(info: ObjectInfo, sha256: str, size: int, known: Checksum | None = None) -> str:
    """Why what a host says of an object cannot be that file; ``""`` when nothing does."""
    if info.size != size:
        return f"it has {info.size} bytes there instead of {size}"
    found = info.checksum
    if found is None:
        return ""
    if found.kind == "sha256" and found.value != sha256:
        return "its SHA-256 differs there"
    same_kind = known is not None and (known.kind, known.part_size) == (found.kind, found.part_size)
    if known is not None and same_kind and known.value != found.value:
        return f"its {found.kind} differs there from the one it was stored with"
    return ""


class Placer:
    """Puts copies on the first hosts that work, with a substitute when one is down."""

    def __init__(self, ring: Ring, redundancy: int, jobs: int) -> None:
        self._ring = ring
        self.redundancy = redundancy
        # One lane a host, so that a slow host never takes the threads of a fast one.
        self._lanes = {
            host.name: ThreadPoolExecutor(jobs, thread_name_prefix=f"put-{rank}")
            for rank, host in enumerate(ring.writable)
        }

    def place(
        self,
        sha256: str,
        source: Source,
        filename: str,
        known: Sequence[UploadRecord],
        on_bytes: OnBytes,
    ) -> Placement:
        """Confirm the copies that are known, then put as many as are missing.

        What could not be placed is `queued` for the most preferred hosts without a copy.

        Raises
        ------
        SourceChanged
            When an untrusted source no longer has that hash.
        """
        done = Placement()
        self._confirm(done, sha256, source.size, known)
        candidates = [host for host in self._ring.writable if host.name not in done.stored]
        failed: dict[str, HostError] = {}
        while candidates and len(done.stored) < self.redundancy:
            wave: list[Host] = []
            while candidates and len(wave) < self.redundancy - len(done.stored):
                host = candidates.pop(0)
                if self._ring.available(host):
                    wave.append(host)
            for host, outcome in self._put_on(wave, sha256, source, filename, on_bytes):
                if isinstance(outcome, HostError):
                    done.errors.append(outcome)
                    failed[host.name] = outcome
                else:
                    record = stored_record(sha256, host, outcome)
                    done.stored[host.name] = record
                    done.records.append(record)
                    done.sent_any = True
        attempts = {u.host: u.attempts for u in known if u.status == "queued"}
        owed = [host for host in self._ring.writable if host.name not in done.stored]
        for host in owed[: max(0, self.redundancy - len(done.stored))]:
            error = failed.get(host.name)
            tried = attempts.get(host.name, 0) + (error is not None)
            text = str(error) if error is not None else self._ring.error(host.name)
            done.queued.append(
                UploadRecord(sha256, host.name, status="queued", error=text, attempts=tried)
            )
        done.records.extend(done.queued)
        return done

    def serves(self, name: str) -> bool:
        """Whether the pool has a host of that name."""
        return self._ring.get(name) is not None

    def put_on(
        self, host: Host, sha256: str, source: Source, filename: str, on_bytes: OnBytes
    ) -> ObjectInfo:
        """Put one copy on one host, and believe it only when its answer fits.

        Raises
        ------
        HostError
            Whatever the host says; `IntegrityError` when it stored something else.
        """
        try:
            info = host.put(
                pool_key(sha256), source, sha256=sha256, filename=filename, on_bytes=on_bytes
            )
            if why := contradicts(info, sha256, source.size):
                raise IntegrityError(why, host=host.name, operation="put", location=info.location)
        except HostError as exc:
            self._ring.failed(host, exc)
            raise
        self._ring.worked(host)
        return info

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.shutdown(wait=False, cancel_futures=True)

    def _confirm(
        self, done: Placement, sha256: str, size: int, known: Iterable[UploadRecord]
    ) -> None:
        """Look at every copy the catalog knows: an old record alone is not trusted."""
        for upload in known:
            if upload.external or upload.status not in ("stored", "removing", "failed"):
                continue
            host = self._ring.owner(upload)
            if host is None or host.name in done.stored or not self._ring.available(host):
                continue
            try:
                info = host.stat(upload.location)
            except ObjectNotFound as exc:
                self._ring.worked(host)
                done.records.append(_spoiled(upload, "missing", str(exc)))
                continue
            except HostError as exc:
                self._ring.failed(host, exc)
                done.errors.append(exc)
                continue
            self._ring.worked(host)
            why = contradicts(info, sha256, size, upload.checksum)
            if why:
                done.records.append(_spoiled(upload, "wrong", why))
            elif upload.status == "failed" and upload.verdict == "wrong":
                continue  # its bytes were read and found wrong: it is put again
            else:
                record = replace(upload, status="stored", error=None, verdict=None)
                done.stored[host.name] = record
                if upload.status != "stored":
                    done.records.append(record)

    def _put_on(
        self, wave: Sequence[Host], sha256: str, source: Source, filename: str, on_bytes: OnBytes
    ) -> list[tuple[Host, ObjectInfo | HostError]]:
        """Put on all hosts of the wave at once; the first one from this thread."""
        futures: list[tuple[Host, Future[ObjectInfo]]] = [
            (
                host,
                self._lanes[host.name].submit(
                    self.put_on, host, sha256, source, filename, on_bytes
                ),
            )
            for host in wave[1:]
        ]
        outcomes: list[tuple[Host, ObjectInfo | HostError]] = []
        unexpected: BaseException | None = None
        for host in wave[:1]:
            try:
                outcomes.append((host, self.put_on(host, sha256, source, filename, on_bytes)))
            except HostError as exc:
                outcomes.append((host, exc))
            except BaseException as exc:  # noqa: BLE001 - raised below, when the others have ended
                unexpected = exc
        for host, future in futures:
            try:
                outcomes.append((host, future.result()))
            except HostError as exc:
                outcomes.append((host, exc))
            except BaseException as exc:  # noqa: BLE001
                unexpected = unexpected or exc
        if unexpected is not None:
            raise unexpected
        return outcomes


def _spoiled(upload: UploadRecord, verdict: str, why: str) -> UploadRecord:
    return replace(
        upload, status="failed", verdict=verdict, error=why, verified_at=time.time(), checksum=None
    )
