"""What the calls of `CloudManager` answer with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from cloudmanager.model import FileRecord, UploadRecord

__all__ = [
    "CopyVerdict",
    "FileInfo",
    "QueuedCopy",
    "RebuildResult",
    "Repair",
    "Shortage",
    "SyncResult",
    "SyncStatus",
    "UploadResult",
    "Verdict",
]

Verdict = Literal["good", "missing", "wrong", "unverifiable", "unreachable"]


@dataclass(frozen=True, slots=True)
class UploadResult:
    """What became of one file of `upload_many`.

    `hash` is its SHA-256, or False when it is not in the pool; then `error` says why. `size`
    is in bytes. `hosts` are the names of the hosts that hold it, `waiting` of those that
    still owe it a copy. With a hash and no `hosts` the file lies flushed in the cache, pinned
    until a host takes it; `error` says why none did. `new` is False when the pool had it
    already.
    """

    path: str
    hash: str | Literal[False]
    size: int = 0
    hosts: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    new: bool = True
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class FileInfo:
    """All that is known about one file: its record, its copies, and whether it is cached."""

    file: FileRecord
    uploads: tuple[UploadRecord, ...]
    cached: bool


@dataclass(frozen=True, slots=True)
class QueuedCopy:
    """One copy that a host still owes, or one that is still to be deleted (`removal`)."""

    hash: str
    name: str
    size: int
    host: str
    removal: bool
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """What waits for hosts. `size` is in bytes; `hosts` counts the waiting copies by host.

    `unknown_hosts` are hosts that are owed copies but are not in this pool's list.
    """

    copies: int
    size: int
    removals: int
    hosts: Mapping[str, int]
    unknown_hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What `cloud_sync` did: copies delivered, objects deleted, and what still waits."""

    delivered: int
    removed: int
    waiting: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What `rebuild` found: objects listed per host, files that were new to the catalog."""

    objects: Mapping[str, int]
    files: int
    new_files: int
    doubtful: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopyVerdict:
    """What `verify` found of one copy.

    `verdict` is ``good``: the bytes are those of the hash, as the host can prove or as they were
    read; ``missing``; ``wrong``: other bytes or another size; ``unverifiable``: nothing
    contradicts it, but only reading it (`read`) would prove it; ``unreachable``: the host did
    not answer, or refused. `detail` says why it is not good. `read` counts bytes of traffic.
    """

    hash: str
    host: str
    location: str
    verdict: Verdict
    detail: str = ""
    read: int = 0


@dataclass(frozen=True, slots=True)
class Shortage:
    """A file with fewer good copies than the pool shall hold, or with a copy that failed."""

    file: FileRecord
    copies: int
    failed: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair` did, or would do, for one copy of a file.

    `action` is ``restored`` (a copy was missing), ``replaced`` (a wrong one), ``waiting`` (the
    host does not answer: `cloud_sync` or the next repair delivers) or ``lost``: no host has the
    right bytes any more. The file stays in the catalog.
    """

    hash: str
    name: str
    host: str
    action: Literal["restored", "replaced", "waiting", "lost"]
    detail: str = ""
