"""Reading and hashing everything: what a hit trusts, `check` proves; and rebuilding the index.

A finding names what disagrees; with `fix` it is put right: wrong files go, right ones
that the index does not know are adopted, rows without files are dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import Busy
from ..hashing import sha256_of
from .eviction import make_room
from .index import EVICTABLE, OWED, Entry, Index
from .layout import MODE_OWED, Border, Layout, flush_path, stat_of
from .living import hold, release
from .recovery import free_the_dead
from .workspace import Workspace

__all__ = ["Finding", "check", "examine", "rebuild"]

_log = logging.getLogger(__name__)
_HASH_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` found wrong.

    `kind` is

    - ``missing``: the index knows a file that is not there;
    - ``wrong``: the bytes do not hash to the name;
    - ``touched``: size, mtime or inode changed, but the bytes are right;
    - ``stray``: a right file that the index does not know;
    - ``foreign``: something in ``objects/`` that is no cached file at all;
    - ``leftover``: what a process that died left in ``tmp/`` or ``live/``;
    - ``sums``: the index miscounts the bytes or the files;
    - ``index``: the index could not be read and was rebuilt.

    `fixed` says whether it was put right.
    """

    kind: str
    path: str
    message: str
    fixed: bool


def examine(
    space: Workspace, digest: bytes, *, thorough: bool = False
) -> tuple[Entry, os.stat_result] | None:
    """Read and hash a file that is not as the index says; keep it, or drop it and answer None.

    With `thorough` its bytes are judged even where the index agrees.
    """
    sha256 = digest.hex()
    name = space.layout.object(sha256)
    while True:
        before, actual = _hash_file(name)
        with space.write(f"examining {sha256}") as transaction:
            entry = transaction.look_up(digest)
            if entry is None:
                return None
            found = stat_of(name)
            if found is not None and stat.S_ISREG(found.st_mode):
                if space.trusts(entry, found) and not thorough:
                    return entry, found
                if before is None or not _same(before, found):
                    continue  # replaced while it was read
                if actual == sha256:
                    transaction.vouch(entry, found)
                    return transaction.look_up(digest) or entry, found
                space.journal([digest])
                os.unlink(name)
            _log.warning("dropping %s: it is missing or its bytes are wrong", name)
            transaction.drop(entry)
            return None


def check(space: Workspace, *, fix: bool) -> Iterator[Finding]:
    """Compare index and files. Other processes may go on using the cache.

    Reads every byte of the cache; holds the write lock only for moments.
    """
    yield from _entries(space, fix)
    yield from _strays(space, fix)
    yield from _leftovers(space, fix)
    yield from _sums(space, fix)


def _entries(space: Workspace, fix: bool) -> Iterator[Finding]:
    after = b""
    while rows := _page(space, after):
        for entry in rows:
            path = space.layout.object(entry.sha256)
            found, actual = _hash_file(path)
            finding = _judge(entry, path, found, actual, fix)
            # Evicted or replaced while it was read: that is not for us to report.
            if finding is not None and space.index.look_up(entry.hash) == entry:
                if fix:
                    examine(space, entry.hash, thorough=True)
                yield finding
        after = rows[-1].hash


def _page(space: Workspace, after: bytes) -> list[Entry]:
    with Border(space.layout.directory, "checking the cache"):
        return space.index.entries_after(after)


def _judge(
    entry: Entry, path: str, found: os.stat_result | None, actual: str, fix: bool
) -> Finding | None:
    if found is None:
        return Finding("missing", path, "the index knows this file, but it is not there", fix)
    if actual != entry.sha256:
        return Finding("wrong", path, f"its bytes hash to {actual}", fix)
    if not entry.describes(found):
        return Finding("touched", path, "size, mtime or inode changed; the bytes are right", fix)
    return None


def _strays(space: Workspace, fix: bool) -> Iterator[Finding]:
    for path, digest in _files(space.layout):
        if digest is None:
            # Not deleted: it may be somebody's, and a directory may hold more of it.
            yield Finding("foreign", path, "this is no cached file; move it away", False)
        elif space.index.look_up(digest) is None:
            yield from _stray(space, path, digest, fix)


def _stray(space: Workspace, path: str, digest: bytes, fix: bool) -> Iterator[Finding]:
    found, actual = _hash_file(path)
    right = actual == digest.hex()
    with space.write(f"checking {path}") as transaction:
        # Nobody commits or evicts now: what has no row is stray indeed.
        now = stat_of(path)
        if transaction.look_up(digest) is not None or found is None or now is None:
            return
        if fix:
            space.journal([digest])
            if right and _same(found, now):
                keep = OWED if stat.S_IMODE(now.st_mode) == MODE_OWED else EVICTABLE
                transaction.add(digest, now, 1, keep=keep, flushed=False)
                space.make_room(transaction, f"adopting {path}")
            else:
                os.unlink(path)
    if right:
        yield Finding("stray", path, "the index does not know this file", fix)
    else:
        yield Finding("wrong", path, f"not in the index, and its bytes hash to {actual}", fix)


def _leftovers(space: Workspace, fix: bool) -> Iterator[Finding]:
    with space.write("checking for leftovers") as transaction:
        paths = [(f"{space.layout.live}/{name}") for name in os.listdir(space.layout.live)]
        dead = [path for path in paths if _is_dead(path)]
        alive = {os.path.basename(path) for path in paths} - {os.path.basename(p) for p in dead}
        for name in os.listdir(space.layout.temporary):
            if name.partition(".")[0] not in alive:
                dead.append(f"{space.layout.temporary}/{name}")
        if fix:
            free_the_dead(transaction, space.layout)
    for path in dead:
        yield Finding("leftover", path, "left by a process that died", fix)


def _is_dead(path: str) -> bool:
    fd = hold(path, wait=False)
    if fd is None:
        return False
    os.close(fd)
    return True


def _sums(space: Workspace, fix: bool) -> Iterator[Finding]:
    with space.write("adding up the cache") as transaction:
        wrong = transaction.recount(fix=fix)
        if wrong and fix:
            space.make_room(transaction, "adding up the cache")
    if wrong:
        yield Finding("sums", space.layout.index, wrong, fix)


def _files(layout: Layout) -> Iterator[tuple[str, bytes | None]]:
    """Everything in ``objects/``: the path, and the hash that the name says."""
    for fan in sorted(os.scandir(layout.objects), key=lambda entry: entry.name):
        if not fan.is_dir(follow_symlinks=False):
            yield fan.path, None
            continue
        for file in sorted(os.scandir(fan.path), key=lambda entry: entry.name):
            digest: bytes | None = None
            if len(file.name) == _HASH_DIGITS and file.name[:2] == fan.name:
                with contextlib.suppress(ValueError):  # not hexadecimal: foreign
                    digest = bytes.fromhex(file.name)
            named = digest is not None and digest.hex() == file.name
            regular = file.is_file(follow_symlinks=False)
            yield file.path, digest if named and regular else None


def _hash_file(path: str) -> tuple[os.stat_result | None, str]:
    """What was read, and its SHA-256; None and ``""`` when there is no regular file."""
    try:
        # O_NONBLOCK: a pipe under that name must not hold us up.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, ""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        return None, ""
    with open(fd, "rb", buffering=0) as file:
        return found, sha256_of(file)


def rebuild(directory: str | os.PathLike[str], capacity: int) -> list[Finding]:
    """Make a new index from the files, whatever became of the old one.

    Files whose bytes hash to their name are adopted, in the order of their mtime; what
    their mode says is owed stays owed; others are deleted. Reads every byte, and keeps every
    other process waiting meanwhile. The new index replaces the old one only when it is
    complete, so an interrupted rebuild changes nothing but the wrong files it deleted.

    Raises
    ------
    Busy
        When another process has the cache open for writing.
    CacheFull
        When the files that are owed need more than `capacity` bytes.
    """
    layout = Layout(directory)
    draft = Layout(directory, draft=True)
    findings: list[Finding] = []
    with Border(layout.directory, "rebuilding the cache"):
        layout.create()
        lock = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _refuse_while_used(layout)
            _delete(draft.index, draft.recency)
            try:
                _draft(layout, draft, capacity, findings)
                _delete(layout.index)
                os.rename(draft.recency, layout.recency)
                os.rename(draft.index, layout.index)
            finally:
                _delete(draft.index, draft.recency, draft.lock)
            flush_path(layout.directory)
        finally:
            os.close(lock)
    findings.append(Finding("index", layout.index, "the index was rebuilt from the files", True))
    return findings


def _refuse_while_used(layout: Layout) -> None:
    for name in os.listdir(layout.live):
        path = f"{layout.live}/{name}"
        fd = hold(path, wait=False)
        if fd is None:
            raise Busy(
                f"rebuilding the cache in {layout.directory}: another process is using it; "
                "stop it and try again"
            )
        release(path, fd)
    for name in os.listdir(layout.temporary):
        os.unlink(f"{layout.temporary}/{name}")


def _draft(layout: Layout, draft: Layout, capacity: int, findings: list[Finding]) -> None:
    good: list[tuple[int, bytes, os.stat_result]] = []
    for path, digest in _files(layout):
        if digest is None:
            findings.append(Finding("foreign", path, "no cached file; move it away", False))
            continue
        found, actual = _hash_file(path)
        if found is None or actual != digest.hex():
            os.unlink(path)
            findings.append(Finding("wrong", path, f"its bytes hash to {actual}", True))
            continue
        good.append((found.st_mtime_ns, digest, found))
    good.sort(key=lambda item: item[:2])
    index = Index(draft, on_reopen=lambda: None)
    try:
        with index.write() as transaction:
            transaction.capacity = capacity
            for stamp, (_, digest, found) in enumerate(good, 1):
                owed = stat.S_IMODE(found.st_mode) == MODE_OWED
                flush_path(layout.object(digest.hex()))
                keep = OWED if owed else EVICTABLE
                transaction.add(digest, found, stamp, keep=keep, flushed=True)
            make_room(
                transaction,
                layout,
                index.recency,
                now=lambda: len(good) + 1,
                journal=_unjournaled,
                recover=lambda: None,
                purpose=f"rebuilding the cache with {capacity} bytes",
            )
    finally:
        index.close()


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )


def _unjournaled(hashes: list[bytes]) -> None:
    """A draft needs no journal: whatever happens to it, the files are read again."""


def _delete(*paths: str) -> None:
    for path in paths:
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):  # the usual case
                os.unlink(path + suffix)
