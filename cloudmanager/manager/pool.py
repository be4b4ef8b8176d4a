"""The facade of the pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO, Literal, Self

from cloudmanager import config
from cloudmanager.cache import Cache
from cloudmanager.catalog import Catalog
from cloudmanager.errors import (
    AmbiguousHash,
    Busy,
    CloudManagerError,
    ConfigurationError,
    NoGoodCopy,
    SourceError,
    UnknownFile,
    Unsupported,
)
from cloudmanager.hosts import Host
from cloudmanager.hosts.throttled import Limiter, ThrottledHost
from cloudmanager.manager.downloading import Downloader, Wanted, in_batches, target_for
from cloudmanager.manager.fetching import Fetcher
from cloudmanager.manager.meter import Meter
from cloudmanager.manager.placing import Placer
from cloudmanager.manager.rebuilding import Rebuilder
from cloudmanager.manager.repairing import Repairer
from cloudmanager.manager.results import (
    CopyVerdict,
    FileInfo,
    QueuedCopy,
    RebuildResult,
    Repair,
    Shortage,
    SyncResult,
    SyncStatus,
    UploadResult,
)
from cloudmanager.manager.ring import Ring
from cloudmanager.manager.syncing import Syncer
from cloudmanager.manager.uploading import Uploader
from cloudmanager.manager.verifying import Verifier
from cloudmanager.model import FileRecord, parse_bytes, validate_hash
from cloudmanager.progress import SILENT, Progress
from cloudmanager.retry import Policy, Retrier

__all__ = ["CloudManager"]

JOBS = 16
"""Small files in flight at once, for each direction."""

_LARGE_JOBS = 3
_PAGE = 512
_MOST_COPIES = 3


class CloudManager:
    """A pool of files, kept on several hosts, known by their SHA-256, cached locally.

    Parameters
    ----------
    database:
        A path (SQLite, made on first use) or an SQLAlchemy URL. A server database is set
        up by ``cm_setup_db``.
    storage:
        The directory of the cache. Made on first use.
    capacity:
        What the cache may hold, in bytes, or as text: ``"20GiB"``.
    hosts:
        Host objects, URLs or names from the configuration, in order of preference. None
        means those of the configuration; when none is configured, one local folder under
        the user's data directory.
    redundancy:
        How many hosts must hold each file. Default: all of them, at most 3.
    read_repair:
        Whether a download replaces the missing or wrong copies it meets.
    jobs:
        Small files in flight at once.
    retry:
        The `Policy` for hosts that fail for a transient reason.
    bwlimit:
        Payload bytes a second to and from all hosts together, or text: ``"10MiB"``. Default, and
        with 0: no limit.

    Thread-safe. Any number of processes may share database and storage. Not to be used in
    a forked child: open another one there.

    Raises
    ------
    ConfigurationError, CatalogError, CacheError
        When it cannot be opened, with what to do about it.
    """

    def __init__(
        self,
        database: str | os.PathLike[str],
        storage: str | os.PathLike[str],
        capacity: int | str,
        hosts: Sequence[Host | str | os.PathLike[str]] | None = None,
        *,
        redundancy: int | None = None,
        read_repair: bool = True,
        jobs: int = JOBS,
        retry: Policy | None = None,
        bwlimit: int | str | None = None,
    ) -> None:
        size = parse_bytes(capacity)
        self._cancel = threading.Event()
        opened = config.hosts_of(hosts)
        if rate := parse_bytes(bwlimit or 0):
            limiter = Limiter(rate, sleep=self._cancel.wait)
            opened = [ThrottledHost(host, limiter) for host in opened]
        writable = sum(host.capabilities.put for host in opened)
        if redundancy is None:
            redundancy = max(1, min(writable, _MOST_COPIES))
        elif not 1 <= redundancy <= max(writable, 1):
            raise ConfigurationError(
                f"redundancy is {redundancy}, but {writable} hosts can store files: "
                "add hosts or ask for fewer copies"
            )
        self.redundancy = redundancy
        self._retrier = Retrier(retry) if retry is not None else Retrier()
        self._jobs = jobs
        self._closed = False
        with ExitStack() as stack:
            self._ring = Ring(opened, self._retrier)
            stack.callback(self._ring.close)
            self._catalog = Catalog.open(database)
            stack.callback(self._catalog.close)
            self._cache = Cache(storage, size)
            stack.callback(self._cache.close)
            self._meter = Meter(self._catalog)
            self._placer = Placer(self._ring, redundancy, jobs)
            stack.callback(self._placer.close)
            self._fetcher = Fetcher(self._ring, streams=4)
            stack.callback(self._fetcher.close)
            stack.callback(self._meter.flush_if_possible)
            self._resources = stack.pop_all()
        self._uploader = Uploader(
            self._cache,
            self._catalog,
            self._placer,
            jobs=jobs,
            large_jobs=_LARGE_JOBS,
            cancel=self._cancel,
        )
        self._downloader = Downloader(
            self._cache,
            self._catalog,
            self._fetcher,
            self._placer,
            self._meter,
            cancel=self._cancel,
            read_repair=read_repair,
        )
        self._syncer = Syncer(
            self._ring,
            self._cache,
            self._catalog,
            self._fetcher,
            self._placer,
            self._meter,
            jobs=jobs,
            cancel=self._cancel,
        )

        self._verifier = Verifier(
            self._ring, self._catalog, self._meter, jobs=jobs, cancel=self._cancel
        )
        self._repairer = Repairer(
            self._ring,
            self._cache,
            self._catalog,
            self._fetcher,
            self._syncer,
            redundancy=redundancy,
            jobs=jobs,
        )

    # -- in --------------------------------------------------------------------------------

    def upload(
        self, path: str | os.PathLike[str], *, progress: Progress = SILENT
    ) -> str | Literal[False]:
        """Store a file; its SHA-256 as 64 hex digits, or False when nothing could take it.

        When it returns a hash, the bytes survive a crash, a loss of power and the loss of the
        source: they are on the required number of hosts; or on fewer, the rest queued; or,
        with no host reachable, flushed to disk and pinned in the cache until `cloud_sync`.
        The same content is stored once.

        Raises
        ------
        FileNotFoundError, PermissionError
            From reading the file.
        NotARegularFile, SourceChanged
            For a folder or device, and a file that changed while it was read.
        Busy
            When the same content is being removed, and that takes too long.
        """
        self._require_hosts()
        result = self._uploader.one(os.fspath(path), progress)
        if result.error is not None and not result.hash:
            about_hosts = isinstance(result.error, CloudManagerError)
            if not about_hosts or isinstance(result.error, SourceError | Busy):
                raise result.error
        return result.hash

    def upload_many(
        self, paths: Iterable[str | os.PathLike[str]], *, progress: Progress = SILENT
    ) -> Iterator[UploadResult]:
        """Store many files, pipelined; a result for each, in the order they are done.

        One bad file does not stop the rest: its result has ``hash`` False and the `error`.
        `paths` may be endless: it is read as the work goes on, and memory is bounded.
        """
        self._require_hosts()
        return self._uploader.many((os.fspath(path) for path in paths), progress)

    def upload_stream(
        self, file: BinaryIO, name: str, *, progress: Progress = SILENT
    ) -> UploadResult:
        """Store what a binary file object delivers until its end, under `name`."""
        self._require_hosts()
        return self._uploader.stream(file, name, progress)

    # -- out -------------------------------------------------------------------------------

    def download(
        self,
        sha256: str,
        dest: str | os.PathLike[str] | None = None,
        *,
        progress: Progress = SILENT,
    ) -> Path | Literal[False] | None:
        """Bring a file into the cache, or to `dest`; its path there.

        None for an unknown hash; False when no host could give the right bytes. A path in the
        cache is valid until the file is evicted; `pinned`, `open` and `dest` are safe
        against that. A `dest` that is a folder gets the file under its original name; an
        existing file is replaced, in one step.

        Raises
        ------
        ValueError
            For a malformed hash.
        CacheFull
            When the cache cannot hold the file and no `dest` was given.
        """
        if dest is None:
            path = self._cache.path(sha256)
            if path is not None:
                return path
        try:
            return self.fetch(sha256, dest, progress=progress)
        except NoGoodCopy:
            return False
        except UnknownFile:
            return None

    def warm_up(self, sha256: str) -> Path | Literal[False] | None:
        """The same as `download` into the cache."""
        return self.download(sha256)

    def fetch(
        self,
        sha256: str,
        dest: str | os.PathLike[str] | None = None,
        *,
        progress: Progress = SILENT,
    ) -> Path:
        """`download` for who wants to know why it failed.

        Raises
        ------
        UnknownFile
            For an unknown hash.
        NoGoodCopy
            When no host could give the right bytes; it says what each of them said.
        """
        sha256 = validate_hash(sha256)
        if dest is None and (path := self._cache.path(sha256)) is not None:
            return path
        file = self._file(sha256)
        if dest is None:
            return self._downloader.to_cache(file, progress)
        return self._downloader.to_file(file, target_for(file, dest), progress)

    def fetch_many(
        self,
        wanted: Iterable[tuple[str, str | os.PathLike[str] | None]],
        *,
        fill_cache: bool = True,
        exact: bool = False,
        progress: Progress = SILENT,
    ) -> Iterator[tuple[str, Path | Exception]]:
        """`fetch` for many (hash, dest) pairs, several at once.

        Yields (hash, path or what went wrong) as they are done. With `fill_cache` False, files
        that are not cached go straight to their `dest`: a bulk restore then leaves the cache
        as it is. A `dest` that is a folder receives the file under its original name; `exact`
        says that none is, which saves looking.
        """

        def bring(batch: Sequence[Wanted]) -> list[tuple[str, Path | Exception]]:
            return self._downloader.many(batch, progress, fill_cache=fill_cache, exact=exact)

        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="download")
        running = 0
        done: SimpleQueue[Future[list[tuple[str, Path | Exception]]]] = SimpleQueue()
        pairs = iter(wanted)
        try:
            while page := self._downloader.look_up(list(islice(pairs, _PAGE))):
                for batch in in_batches(page, self._jobs):
                    pool.submit(bring, batch).add_done_callback(done.put)
                    running += 1
                while running >= 2 * self._jobs:
                    yield from done.get().result()
                    running -= 1
            for _ in range(running):
                yield from done.get().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def open(self, sha256: str) -> BinaryIO:
        """A binary file object of the file, seekable, without fetching the whole of a large one.

        A cached file is pinned until it is closed. A file of at most 16 MiB comes through the
        cache, verified. A larger one is read from its hosts in ranges: read from start to end
        it is verified before the last block is handed over; single ranges are checked for
        length only.

        Raises
        ------
        UnknownFile
            For an unknown hash.
        NoGoodCopy
            Here or while reading, when no host could give the bytes.
        """
        return self._downloader.open(self._file(validate_hash(sha256)))

    @contextmanager
    def pinned(self, sha256: str) -> Iterator[Path]:
        """The file's path in the cache for a with-block, in which it is not evicted.

        Raises
        ------
        UnknownFile, NoGoodCopy, CacheFull
            As `fetch` does.
        """
        sha256 = validate_hash(sha256)
        while True:
            self.fetch(sha256)
            with self._cache.pinned(sha256) as path:
                if path is not None:
                    yield path
                    return

    # -- what is known -----------------------------------------------------------------------

    def exists(self, sha256: str) -> bool:
        """Whether the catalog knows the file."""
        return self._catalog.exists(validate_hash(sha256))

    def on_cache(self, sha256: str) -> bool:
        """Whether the file is in the cache."""
        return self._cache.contains(validate_hash(sha256))

    def info(self, sha256: str) -> FileInfo | None:
        """The file's record, its copies, and whether it is cached; None when unknown."""
        sha256 = validate_hash(sha256)
        file = self._catalog.get(sha256)
        if file is None:
            return None
        uploads = tuple(self._catalog.uploads(sha256))
        return FileInfo(file, uploads, self._cache.contains(sha256))

    def files(self, prefix: str = "") -> Iterator[FileRecord]:
        """Every file of the catalog whose hash starts with `prefix`, ascending by hash."""
        return self._catalog.files(prefix=prefix.lower())

    def resolve(self, prefix: str) -> str:
        """The whole hash for a unique prefix of at least 6 hex digits.

        Raises
        ------
        ValueError
            When it is not hexadecimal or shorter.
        UnknownFile
            When no file fits.
        AmbiguousHash
            When several do.
        """
        lowered = prefix.lower()
        if len(lowered) == 64:
            return validate_hash(lowered)
        if not 6 <= len(lowered) < 64 or lowered.strip("0123456789abcdef"):
            raise ValueError(f"not a SHA-256, nor at least 6 digits of one: {prefix!r:.80}")
        found = self._catalog.find(lowered)
        if not found:
            raise UnknownFile(prefix)
        if len(found) > 1:
            raise AmbiguousHash(f"{prefix} fits {found[0]} and {found[1]}: give more digits")
        return found[0]

    def totals(self) -> tuple[int, int]:
        """How many files the catalog knows, and their bytes."""
        return self._catalog.totals()

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts in order of preference, behind the retry policy."""
        return self._ring.hosts

    # -- the cache ---------------------------------------------------------------------------

    def usage_ratio(self) -> float:
        """The used fraction of the cache, 0.0 to 1.0."""
        return self._cache.usage_ratio()

    def used_space(self) -> int:
        """Bytes in the cache, finished or in flight."""
        return self._cache.used_space()

    def capacity(self) -> int:
        """Bytes the cache may hold."""
        return self._cache.capacity

    @property
    def cache(self) -> Cache:
        """The cache itself: its `check` and `clear`."""
        return self._cache

    # -- what waits --------------------------------------------------------------------------

    def cloud_sync(self, *, progress: Progress = SILENT) -> SyncResult:
        """Send what hosts still owe and finish removals. What fails waits for the next call."""
        self._ring.forgive()
        try:
            return self._syncer.run(progress)
        finally:
            self._meter.flush()

    def sync_status(self) -> SyncStatus:
        """How much waits for which hosts."""
        copies = size = removals = 0
        hosts: dict[str, int] = {}
        for count in self._catalog.status_counts():
            if count.status == "queued":
                copies += count.files
                size += count.bytes
                hosts[count.host] = hosts.get(count.host, 0) + count.files
            elif count.status == "removing":
                removals += count.files
                hosts[count.host] = hosts.get(count.host, 0) + count.files
        unknown = tuple(name for name in hosts if self._ring.get(name) is None)
        return SyncStatus(copies, size, removals, hosts, unknown)

    def upload_queue_info(self) -> Iterator[QueuedCopy]:
        """Every copy that still waits, ascending by hash."""
        after: tuple[str, str, str] | None = None
        while page := self._catalog.waiting(after=after):
            after = (page[-1].hash, page[-1].host, page[-1].location)
            files = self._catalog.get_many([upload.hash for upload in page])
            for upload in page:
                file = files.get(upload.hash)
                yield QueuedCopy(
                    hash=upload.hash,
                    name=file.name if file else upload.hash,
                    size=file.size if file else 0,
                    host=upload.host,
                    removal=upload.status == "removing",
                    attempts=upload.attempts,
                    error=upload.error,
                )

    # -- traffic -----------------------------------------------------------------------------

    def total_incoming(self) -> int:
        """Payload bytes that ever came from hosts."""
        self._meter.flush()
        return self._catalog.meter_total()[0]

    def total_outgoing(self) -> int:
        """Payload bytes that ever went to hosts."""
        self._meter.flush()
        return self._catalog.meter_total()[1]

    def current_incoming(self) -> int:
        """Payload bytes that came from hosts in this month (UTC)."""
        self._meter.flush()
        return self._catalog.meter_month()[0]

    def current_outgoing(self) -> int:
        """Payload bytes that went to hosts in this month (UTC)."""
        self._meter.flush()
        return self._catalog.meter_month()[1]

    # -- care ----------------------------------------------------------------------------------

    def remove(self, sha256: str) -> bool | None:
        """Delete a file from hosts, cache and catalog.

        True when it is gone everywhere; False when a host could not be reached: `cloud_sync`
        goes on with it, and until then the file is listed but not readable. None when it is
        unknown. External locations are left alone; a file that has one stays known.

        Raises
        ------
        Busy
            When the file is being uploaded or read from the cache right now: then nothing is
            removed.
        """
        sha256 = validate_hash(sha256)
        with self._catalog.exclusively(sha256):
            if self._catalog.get(sha256) is None:
                return None
            # The cache first: when somebody reads the file there, nothing has changed yet.
            self._cache.remove(sha256)
            self._catalog.mark_removing(sha256)
            return self._syncer.remove(sha256).waiting == 0

    def verify(
        self,
        *,
        read: bool = False,
        sample: float = 1.0,
        older_than: timedelta | None = None,
        budget: int | str | None = None,
        progress: Progress = SILENT,
    ) -> Iterator[CopyVerdict]:
        """Ask the hosts of this pool for every copy, those first that were asked longest ago.

        Without `read` a host is asked for size and checksum: the copy is proven where the host
        itself computed one that can be compared, else it is unverifiable. With `read` every byte
        is fetched and hashed; `budget` (bytes, or "50GiB") ends the run before the file that
        would exceed it. `sample` is the fraction of the copies to look at, `older_than`
        leaves out those that were proven since. What is found is recorded: `repair` mends it.
        """
        if not 0 <= sample <= 1:
            raise ValueError(f"a sample is a fraction between 0 and 1: {sample}")
        return self._verifier.run(
            read=read,
            sample=sample,
            older_than=None if older_than is None else older_than.total_seconds(),
            budget=None if budget is None else parse_bytes(budget),
            progress=progress,
        )

    def shortages(self) -> Iterator[Shortage]:
        """Files with fewer copies than the pool's redundancy, or with one that failed."""
        return self._repairer.shortages()

    def repair(self, *, dry_run: bool = False, progress: Progress = SILENT) -> Iterator[Repair]:
        """Bring files back to the pool's redundancy, from the cache or any good copy.

        Wrong copies are replaced. Goes by what is known: `verify` finds out. External
        locations are never touched. With `dry_run` nothing is changed.
        """
        return self._repairer.run(dry_run=dry_run, progress=progress)

    def link(self, sha256: str, expires: timedelta = timedelta(days=1)) -> str | None:
        """A URL under which anybody can fetch the file until `expires` is over; None if unknown.

        It downloads under the original name.

        Raises
        ------
        Unsupported
            When no host that holds the file makes such links.
        """
        sha256 = validate_hash(sha256)
        file = self._catalog.get(sha256)
        if file is None:
            return None
        for host, upload in self._fetcher.copies(self._catalog.uploads(sha256)):
            if host.capabilities.signed_urls and upload.status == "stored":
                try:
                    return host.signed_url(upload.location, expires=expires, filename=file.name)
                except Unsupported:
                    continue
        raise Unsupported(
            "no host of this pool that holds the file makes links (S3 and Azure with a key do)",
            host="(any)",
            operation="link",
            location=sha256,
        )

    def rebuild(self, *, names: bool = True, progress: Progress = SILENT) -> RebuildResult:
        """Record in the catalog every file that the hosts list in the pool's layout.

        Changes nothing on the hosts. With `names`, original names are asked for too: one
        request for each file the catalog does not know yet.

        Raises
        ------
        HostError
            When a host cannot be listed: a failed listing is never an empty one.
        """
        rebuilder = Rebuilder(self._ring, self._catalog, jobs=self._jobs, cancel=self._cancel)
        result = rebuilder.run(names=names, progress=progress)
        self._syncer.readopt()
        return result

    def survey(self) -> Iterator[tuple[str, int, int]]:
        """What `rebuild` would find: host, objects of the pool's layout, and their bytes."""
        rebuilder = Rebuilder(self._ring, self._catalog, jobs=self._jobs, cancel=self._cancel)
        return rebuilder.survey()

    def readopt(self) -> None:
        """Queue again what the cache holds for hosts and the catalog does not know (any more)."""
        self._syncer.readopt()

    def cancel(self) -> None:
        """End running transfers and waits at once, from any thread. Then only `close` is left."""
        self._cancel.set()
        self._retrier.stop()

    def close(self) -> None:
        """Release everything; cache and database stay. Can be called twice."""
        if not self._closed:
            self._closed = True
            self.cancel()
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- how -----------------------------------------------------------------------------------

    def _file(self, sha256: str) -> FileRecord:
        file = self._catalog.get(sha256)
        if file is None:
            raise UnknownFile(sha256)
        return file

    def _require_hosts(self) -> None:
        if not self._ring.writable:
            raise ConfigurationError("no host of this pool can store files: add one with --host")
        self._ring.refuse_same_places()
