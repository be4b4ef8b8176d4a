"""Locked files: how processes see who is alive, without time-outs and without polling.

The operating system drops a lock (flock) the moment its holder dies, whatever kills it.
Three things are built on that:

- an open cache that writes holds ``live/<owner>``; its reservations die with it. The file is
  also its journal: the hashes whose files the transaction under way renames or unlinks, so
  that who finds the owner dead can put index and files in agreement again;
- a running fetch holds one byte of ``claims``, or ``live/<hash>`` on systems without locks
  for parts of a file; who waits for it waits for the lock, and takes over when the fetcher dies;
- a live pin is a shared lock on the content file itself; eviction needs an exclusive one.

Locks belong to open file descriptions, so two caches in one process exclude each other
like two processes. A forked child shares them: see `Cache` for what it does about that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable

__all__ = [
    "claim",
    "hold",
    "is_pinned",
    "let_go",
    "pin",
    "read_journal",
    "release",
    "unlink_unless_pinned",
    "unlock",
    "write_journal",
]

_DIGEST = 32
_LOCK: int = getattr(fcntl, "F_OFD_SETLK", 0)
_LOCK_WAITING: int | None = getattr(fcntl, "F_OFD_SETLKW", None)  # Linux
_FLOCK = "@hhqqi"
"""struct flock of 64-bit Linux: type, whence, start, length, pid (fcntl(2))."""


def hold(path: str, *, wait: bool) -> int | None:
    """Create and lock `path`; its file descriptor, or None when somebody else holds it.

    Whoever unlinks such a file does so while holding its lock, so a lock counts only when
    the name still leads to the locked file.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _still_named(path, fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def release(path: str, fd: int) -> None:
    """Unlink and unlock what `hold` returned."""
    try:
        with contextlib.suppress(FileNotFoundError):  # somebody emptied the directory by hand
            os.unlink(path)
    finally:
        unlock(fd)


def unlock(fd: int) -> None:
    """Unlock and close. Closing alone would leave it locked while a forked child has it open."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def claim(claims: str, path: str, sha256: str, *, wait: bool) -> int | None:
    """Become the one that fetches a hash: a descriptor for `let_go`, or None when another is.

    The byte of `claims` at the offset that the first 15 digits give is locked, for the open
    file description. A file for each claim, `path`, is the second choice: ext4 avoids inodes that
    were freed in the last minutes, and looks at each of them to do so. Thousands of short
    fetches a minute made the creation of any file here ten times slower.
    """
    if _LOCK_WAITING is None:
        return hold(path, wait=wait)
    fd = os.open(claims, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, int(sha256[:15], 16), 1, 0)
    try:
        fcntl.fcntl(fd, _LOCK_WAITING if wait else _LOCK, wanted)
    except (BlockingIOError, PermissionError):  # POSIX allows both for "somebody has it"
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def let_go(path: str, fd: int) -> None:
    """End what `claim` began."""
    if _LOCK_WAITING is None:
        release(path, fd)
    else:
        os.close(fd)


def write_journal(fd: int, hashes: Iterable[bytes]) -> None:
    """Say which files are about to be renamed or unlinked. Outlives SIGKILL, not power loss."""
    data = b"".join(hashes)
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))


def read_journal(fd: int) -> list[bytes]:
    """The hashes in a journal. Those of a cut-off write were not acted upon, and are left out."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    return [data[i : i + _DIGEST] for i in range(0, len(data) - _DIGEST + 1, _DIGEST)]


def pin(path: str) -> int | None:
    """Hold a finished file against eviction: its file descriptor, or None when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if _still_named(path, fd):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def is_pinned(path: str) -> bool:
    """Whether somebody holds a live pin on that file right now."""
    return not _while_unpinned(path, unlink=False)


def unlink_unless_pinned(path: str) -> bool:
    """Delete a content file; False when a live pin forbids it. A missing one is no error."""
    return _while_unpinned(path, unlink=True)


def _while_unpinned(path: str, *, unlink: bool) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if unlink:
            os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    finally:
        os.close(fd)
    return True


def _still_named(path: str, fd: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (named.st_ino, named.st_dev) == (held.st_ino, held.st_dev)
