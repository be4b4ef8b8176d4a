"""From the catalog's records to verified bytes in the cache, in a file, or in a stream."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cloudmanager.cache import Cache, Reservation
from cloudmanager.catalog import Catalog
from cloudmanager.errors import (
    Busy,
    CacheError,
    CacheFull,
    CacheUnusable,
    HostError,
    NoGoodCopy,
    SourceError,
    UnknownFile,
)
from cloudmanager.manager import staging
from cloudmanager.manager.fetching import Fetcher, Spoiled, write_new
from cloudmanager.manager.meter import Meter
from cloudmanager.manager.placing import Placer, stored_record
from cloudmanager.manager.reading import PinnedFile, RemoteFile, buffered
from cloudmanager.manager.staging import SMALL
from cloudmanager.model import FileRecord, UploadRecord, validate_hash
from cloudmanager.progress import SILENT, Progress, Ticket
from cloudmanager.source import BytesSource, FileSource, Source

__all__ = ["Downloader", "Wanted", "in_batches", "safe_name", "target_for"]

log = logging.getLogger(__name__)
_WHOLE = 16 * 1024 * 1024
_THROUGH_THE_CACHE = 64 * 1024 * 1024
_BATCH_FILES = 32
_BATCH_BYTES = 4 * 1024 * 1024
_TEMPORARY = ".cloudmanager-"
_OF_ONE_FILE = (HostError, NoGoodCopy, CacheError, UnknownFile, ValueError, OSError)
"""What says nothing about the other files that are wanted."""


Dest = str | os.PathLike[str] | None


class Wanted(NamedTuple):
    """A file that is asked for: the hash as it was given, where to, and what is known of it."""

    given: str
    dest: Dest
    file: FileRecord | None
    uploads: Sequence[UploadRecord]


class Downloader:
    """Files out of the pool."""

    def __init__(
        self,
        cache: Cache,
        catalog: Catalog,
        fetcher: Fetcher,
        placer: Placer,
        meter: Meter,
        *,
        cancel: threading.Event,
        read_repair: bool,
    ) -> None:
        self._cache = cache
        self._catalog = catalog
        self._fetcher = fetcher
        self._placer = placer
        self._meter = meter
        self._cancel = cancel
        self._read_repair = read_repair

    def to_cache(
        self,
        file: FileRecord,
        progress: Progress = SILENT,
        uploads: Sequence[UploadRecord] | None = None,
    ) -> Path:
        """Bring a file into the cache; its path there.

        `uploads` are its copies, when the caller has looked them up already.

        Raises
        ------
        CacheFull
            When the cache cannot hold it.
        NoGoodCopy
            When no host could give the right bytes.
        """
        progress.expect(1, file.size)
        spoiled: list[Spoiled] = []
        fetched = False

        def fill(reservation: Reservation) -> None:
            nonlocal fetched
            fetched = True
            spoiled.extend(self._fill(file, reservation, progress, uploads))

        try:
            path = self._cache.fetch(file.hash, file.size, fill)
        except CacheFull as exc:
            raise _too_large(file, exc) from exc
        finally:
            progress.finished(1)
        if fetched:
            self._require_known(file)
        self._repair_from_cache(file, spoiled)
        return path

    def _require_known(self, file: FileRecord) -> None:
        """Take a file back out of the cache that was removed while it was fetched."""
        if not self._catalog.exists(file.hash):
            with contextlib.suppress(Busy):  # somebody reads it; nobody finds it any more
                self._cache.remove(file.hash)
            raise UnknownFile(file.hash)

    def _fill(
        self,
        file: FileRecord,
        reservation: Reservation,
        progress: Progress,
        uploads: Sequence[UploadRecord] | None,
    ) -> Sequence[Spoiled]:
        try:
            return self._pull(file, reservation.path, progress, uploads)
        except OSError as exc:
            raise CacheUnusable(
                f"cannot write {file.hash} to the cache: {exc.strerror or exc}; free some "
                "space on its disk, or download(hash, dest=...) (-o on the command line)"
            ) from exc

    def _repair_from_cache(self, file: FileRecord, spoiled: Sequence[Spoiled]) -> None:
        if spoiled and self._read_repair:
            with self._cache.pinned(file.hash) as pinned:
                source = None if pinned is None else FileSource(pinned, size=file.size)
                self._repair(file, spoiled, source)

    def to_file(
        self,
        file: FileRecord,
        dest: Path,
        progress: Progress = SILENT,
        uploads: Sequence[UploadRecord] | None = None,
        *,
        fill_cache: bool = True,
    ) -> Path:
        """Bring a file to `dest`, whole or not at all.

        It comes from the cache when it is there. Else a file of at most 64 MiB goes through the
        cache, if `fill_cache`; larger ones and bulk restores go straight to their place, so
        that they do not push out all the rest. An existing file is replaced. The same errors as
        `to_cache`, but for `CacheFull`.
        """
        fill_cache = fill_cache and file.size <= _THROUGH_THE_CACHE
        for _ in range(3):
            with self._cache.pinned(file.hash) as cached:
                if cached is not None:
                    try:
                        _copy_to(cached, dest)
                    except FileNotFoundError:
                        if not dest.parent.is_dir():
                            raise
                        continue  # somebody took the file out of the cache behind our back
                    return dest
            if not fill_cache:
                break
            try:
                self.to_cache(file, progress, uploads)
            except CacheError as exc:  # full, or its disk is: `dest` may be on another one
                log.info("not cached: %s", exc)
                break
        return self._straight_to_file(file, dest, progress, uploads)

    def look_up(self, wanted: Sequence[tuple[str, Dest]]) -> list[Wanted]:
        """(hash, dest) pairs with what the catalog knows, in two queries for all of them."""
        hashes: list[str] = []
        for sha256, _ in wanted:
            with contextlib.suppress(ValueError):  # `many` reports it, at its place
                hashes.append(validate_hash(sha256))
        files = self._catalog.get_many(hashes)
        uploads = self._catalog.uploads_many(hashes)
        return [
            Wanted(given, dest, files.get(given.lower()), uploads.get(given.lower(), ()))
            for given, dest in wanted
        ]

    def many(
        self,
        wanted: Sequence[Wanted],
        progress: Progress = SILENT,
        *,
        fill_cache: bool = True,
        exact: bool = False,
    ) -> list[tuple[str, Path | Exception]]:
        """Small files together, others one after the other; (hash, path or what went wrong)
        for each. With `exact` no `dest` is a folder."""
        results: list[tuple[str, Path | Exception]] = []
        together = self._many_to_cache(wanted, progress)
        if not fill_cache:
            results, wanted = self._many_to_files(wanted, progress, exact)
        for item in wanted:
            if item.dest is None and item.file is not None and item.file.hash in together:
                results.append((item.given, together[item.file.hash]))
                continue
            try:
                if item.file is None:
                    validate_hash(item.given)
                    raise UnknownFile(item.given)
                if item.dest is None:
                    path = self.to_cache(item.file, progress, item.uploads)
                else:
                    target = target_for(item.file, item.dest)
                    path = self.to_file(
                        item.file, target, progress, item.uploads, fill_cache=fill_cache
                    )
            except _OF_ONE_FILE as exc:
                results.append((item.given, exc))
            else:
                results.append((item.given, path))
        return results

    def _many_to_cache(
        self, wanted: Sequence[Wanted], progress: Progress
    ) -> dict[str, Path | Exception]:
        """Bring the small files without `dest` into the cache; hash and path or error of each."""
        items = {
            item.file.hash: (item.file, item.uploads)
            for item in wanted
            if item.file is not None and item.dest is None and item.file.size <= SMALL
        }
        spoiled: dict[str, Sequence[Spoiled]] = {}

        def fill(pairs: Sequence[tuple[str, Reservation]]) -> dict[str, Exception]:
            errors: dict[str, Exception] = {}
            for sha256, reservation in pairs:
                file, uploads = items[sha256]
                try:
                    spoiled[sha256] = self._fill(file, reservation, progress, uploads)
                except (HostError, NoGoodCopy, CacheError) as exc:
                    errors[sha256] = exc
            return errors

        progress.expect(len(items), sum(file.size for file, _ in items.values()))
        found = self._cache.fetch_many([(f.hash, f.size) for f, _ in items.values()], fill)
        for sha256 in spoiled:
            try:
                self._require_known(items[sha256][0])
            except UnknownFile as exc:
                found[sha256] = exc
        for sha256, each in spoiled.items():
            self._repair_from_cache(items[sha256][0], each)
        for sha256, outcome in found.items():
            if isinstance(outcome, CacheFull):
                found[sha256] = _too_large(items[sha256][0], outcome)
        progress.finished(len(items))
        return found

    def _many_to_files(
        self, wanted: Sequence[Wanted], progress: Progress, exact: bool
    ) -> tuple[list[tuple[str, Path | Exception]], list[Wanted]]:
        """Bring the small files that are not cached to their `dest`, past the cache; what
        became of them, and what is left to do.

        First all are read from their hosts, then all are written: the many short system calls
        of writing are for one thread at a time, see `staging.one_at_a_time`.
        """
        cached = self._cached(wanted)
        direct: list[tuple[Wanted, FileRecord, str | os.PathLike[str]]] = []
        rest: list[Wanted] = []
        for item in wanted:
            file, dest = item.file, item.dest
            if file is None or dest is None or file.size > SMALL or file.hash in cached:
                rest.append(item)
            else:
                direct.append((item, file, dest))
        progress.expect(len(direct), sum(file.size for _, file, _ in direct))
        results: list[tuple[str, Path | Exception]] = []
        read: list[bytes | Exception] = []
        ticket = Ticket(self._cancel, progress)
        try:
            for item, file, _ in direct:
                try:
                    read.append(self._read(file, item.uploads, ticket))
                except _OF_ONE_FILE as exc:
                    read.append(exc)
            with staging.one_at_a_time:
                write = _Writer()
                for (item, file, dest), data in zip(direct, read, strict=True):
                    if isinstance(data, Exception):
                        results.append((item.given, data))
                        continue
                    try:
                        target = Path(dest) if exact else target_for(file, dest)
                        write(target, data)
                    except _OF_ONE_FILE as exc:
                        results.append((item.given, exc))
                    else:
                        results.append((item.given, target))
        finally:
            self._meter.add(incoming=ticket.moved)
            progress.finished(len(direct))
        return results, rest

    def _cached(self, wanted: Sequence[Wanted]) -> set[str]:
        """The hashes that the cache may have."""
        hashes = {item.file.hash for item in wanted if item.file is not None}
        try:
            return self._cache.known(hashes)
        except CacheError:
            return hashes  # asked one by one, each gets its own error

    def _read(self, file: FileRecord, uploads: Sequence[UploadRecord], ticket: Ticket) -> bytes:
        """The verified bytes of a small file; what was found about its copies is recorded."""
        spoiled: Sequence[Spoiled] = ()
        try:
            data, spoiled = self._fetcher.read(file.hash, file.size, uploads, ticket)
        except NoGoodCopy as exc:
            spoiled = [entry for entry in exc.spoiled if isinstance(entry, Spoiled)]
            raise
        finally:
            if spoiled:
                self._note(file, [entry.record for entry in spoiled])
        if spoiled and self._read_repair:
            self._repair(file, spoiled, BytesSource(data))
        return data

    def open(self, file: FileRecord) -> BinaryIO:
        """A binary file object; see `CloudManager.open`."""
        for _ in range(3):
            opened = self._open_cached(file.hash)
            if opened is not None:
                return opened
            if file.size > _WHOLE:
                break
            try:
                self.to_cache(file)
            except CacheError as exc:  # full, or its disk is
                log.info("not cached: %s", exc)
                break
        uploads = self._uploads(file.hash)

        def read_range(offset: int, length: int) -> bytes:
            data = self._fetcher.range(file.hash, uploads, offset, length)
            self._meter.add(incoming=len(data))
            return data

        if not self._fetcher.ranged(uploads):
            return self._spooled(file)
        return buffered(RemoteFile(file.hash, file.size, read_range))

    def _open_cached(self, sha256: str) -> BinaryIO | None:
        with ExitStack() as stack:
            path = stack.enter_context(self._cache.pinned(sha256))
            if path is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                return buffered(PinnedFile(path, stack.pop_all()))
        return None

    def _spooled(self, file: FileRecord) -> BinaryIO:
        """Hosts without ranges: fetch the whole into a file that goes when it is closed."""
        fd, name = tempfile.mkstemp(prefix="cloudmanager-")
        os.close(fd)
        try:
            self._pull(file, Path(name), SILENT)
            return open(name, "rb")
        finally:
            os.unlink(name)

    # -- how -----------------------------------------------------------------------------

    def _uploads(self, sha256: str) -> Sequence[UploadRecord]:
        return self._catalog.uploads(sha256)

    def _pull(
        self,
        file: FileRecord,
        path: Path,
        progress: Progress,
        uploads: Sequence[UploadRecord] | None = None,
    ) -> Sequence[Spoiled]:
        """Write the verified bytes to `path`; record what was found about the copies."""
        ticket = Ticket(self._cancel, progress)
        spoiled: Sequence[Spoiled] = ()
        try:
            spoiled = self._fetcher.into(
                path,
                file.hash,
                file.size,
                self._uploads(file.hash) if uploads is None else uploads,
                ticket,
            )
        except NoGoodCopy as exc:
            spoiled = [entry for entry in exc.spoiled if isinstance(entry, Spoiled)]
            raise
        finally:
            self._meter.add(incoming=ticket.moved)
            if spoiled:
                self._note(file, [entry.record for entry in spoiled])
        return spoiled

    def _straight_to_file(
        self,
        file: FileRecord,
        dest: Path,
        progress: Progress,
        uploads: Sequence[UploadRecord] | None,
    ) -> Path:
        progress.expect(1, file.size)
        temporary = _new_beside(dest)
        try:
            spoiled = self._pull(file, temporary, progress, uploads)
            if spoiled and self._read_repair:
                self._repair(file, spoiled, FileSource(temporary, size=file.size))
            os.replace(temporary, dest)
        finally:
            temporary.unlink(missing_ok=True)
            progress.finished(1)
        return dest

    def _repair(self, file: FileRecord, spoiled: Sequence[Spoiled], source: Source | None) -> None:
        """Replace the spoiled copies by the good one; what fails now waits for `sync`."""
        for entry in spoiled:
            host, record = entry.host, entry.record
            if record.external or not host.capabilities.put:
                continue
            ticket = Ticket(self._cancel)
            try:
                if source is None:
                    raise FileNotFoundError(file.hash)
                with self._catalog.sharing([file.hash]):
                    if not self._catalog.exists(file.hash):
                        return  # removed meanwhile: a repair must not bring it back
                    info = self._placer.put_on(host, file.hash, source, file.name, ticket)
                    new = replace(stored_record(file.hash, host, info), host=record.host)
                    self._catalog.record([], [new], outgoing=ticket.moved)
                log.warning("repaired %s on host %s", file.hash, host.name)
            except Busy as exc:
                log.info("not repaired: %s", exc)
                return
            except (HostError, SourceError, OSError) as exc:
                log.warning("could not repair %s on host %s: %s", file.hash, host.name, exc)
                queued = UploadRecord(
                    file.hash, host.name, status="queued", error=str(exc), attempts=1
                )
                self._note(file, [queued], outgoing=ticket.moved)

    def _note(
        self, file: FileRecord, uploads: Sequence[UploadRecord], *, outgoing: int = 0
    ) -> None:
        """Keep what was found about copies, unless the file is or was removed meanwhile."""
        try:
            with self._catalog.sharing([file.hash]):
                if self._catalog.exists(file.hash):
                    # To the catalog a copy that failed is the end of what its host still owed,
                    # as it is in an upload; here the debt goes on.
                    hosts = {upload.host for upload in uploads if upload.status == "failed"}
                    known = self._catalog.uploads(file.hash)
                    owed = [u for u in known if u.status == "queued" and u.host in hosts]
                    self._catalog.record([], [*uploads, *owed], outgoing=outgoing)
                    return
        except Busy as exc:  # no reason to fail a download
            log.info("not recorded: %s", exc)
        self._meter.add(outgoing=outgoing)


def _too_large(file: FileRecord, exc: CacheFull) -> CacheFull:
    full = CacheFull(
        f"the cache cannot hold {file.hash} ({file.size} bytes): {exc}; "
        "use open(hash), or download(hash, dest=...) (-o on the command line)"
    )
    full.__cause__ = exc
    return full


def in_batches(page: Sequence[Wanted], jobs: int) -> Iterator[Sequence[Wanted]]:
    """Small files some at a time, so that handing over costs little; others one by one."""
    most = max(1, min(_BATCH_FILES, len(page) // jobs))
    batch: list[Wanted] = []
    total = 0
    for item in page:
        size = item.file.size if item.file is not None else 0
        if size > SMALL:
            yield [item]
            continue
        if batch and total + size > _BATCH_BYTES:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
        if len(batch) >= most:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def safe_name(file: FileRecord) -> str:
    """A file's original name as one that cannot leave a folder; else its hash."""
    name = os.path.basename(file.name)
    return file.hash if name in ("", ".", "..") or "\0" in name else name


def target_for(file: FileRecord, dest: str | os.PathLike[str]) -> Path:
    """Where a file goes: to `dest`, or under its original name when that is a folder."""
    target = Path(dest)
    return target / safe_name(file) if os.path.isdir(target) else target


class _Writer:
    """Writes small files, each whole or not at all, with few system calls."""

    def __init__(self) -> None:
        self._stem = f"{_TEMPORARY}{secrets.token_hex(8)}"
        self._count = 0

    def __call__(self, target: Path, data: bytes) -> None:
        self._count += 1
        name = os.fspath(target)
        temporary = os.path.join(os.path.dirname(name), f"{self._stem}-{self._count}")
        try:
            write_new(temporary, data, 0o666)
            os.replace(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):  # what went wrong before is what is told
                os.unlink(temporary)
            raise


def _new_beside(dest: Path) -> Path:
    """A new empty file in the folder of `dest`, with the mode any new file gets."""
    while True:
        temporary = dest.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            return temporary


def _copy_to(cached: Path, dest: Path) -> None:
    temporary = _new_beside(dest)
    try:
        shutil.copyfile(cached, temporary)
        os.replace(temporary, dest)
    finally:
        temporary.unlink(missing_ok=True)
