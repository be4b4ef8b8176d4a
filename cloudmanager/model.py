"""The values that the rooms hand to each other. Plain, frozen, without I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime

__all__ = [
    "Capabilities",
    "Checksum",
    "FileRecord",
    "ObjectInfo",
    "UploadRecord",
    "format_bytes",
    "parse_bytes",
    "pool_key",
    "validate_hash",
]

_HASH = re.compile(r"[0-9a-f]{64}\Z")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTPE]?)(i?)(B?)\s*\Z", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def validate_hash(value: object) -> str:
    """Return `value` as 64 lower-case hex digits.

    Raises
    ------
    ValueError
        When it is anything else than a SHA-256 in hex. Upper case is accepted.
    """
    if isinstance(value, str):
        lowered = value.lower()
        if _HASH.match(lowered):
            return lowered
    raise ValueError(f"not a SHA-256 hash (64 hex digits): {value!r:.80}")


def pool_key(sha256: str) -> str:
    """Where the pool puts a file below a host's prefix: ``6f/6f7bed7…``."""
    return f"{sha256[:2]}/{sha256}"


def parse_bytes(value: int | str) -> int:
    """Read a size in bytes: ``1048576``, ``"20GiB"``, ``"10M"``, ``"1.5TB"``.

    ``K``, ``M``, ``G`` … and ``KiB``, ``MiB``, ``GiB`` … are powers of 1024, as rclone and
    restic read them; ``KB``, ``MB``, ``GB`` … are powers of 1000.

    Raises
    ------
    ValueError
        When it is not a size, or negative.
    """
    if isinstance(value, bool):
        raise ValueError(f"not a size in bytes: {value!r}")
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"a size cannot be negative: {value}")
        return value
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a size in bytes (try 500MiB or 20GiB): {value!r:.80}")
    number, unit, binary, byte = match.groups()
    base = 1000 if unit and byte and not binary else 1024
    return (
        int(float(number) * base ** _POWERS[unit.upper()])
        if "." in number
        else (int(number) * base ** _POWERS[unit.upper()])
    )


def format_bytes(size: float) -> str:
    """``1536`` as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} PiB"


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a host can prove about an object.

    `kind` is ``sha256``, ``md5``, ``crc32c``, ``crc64nvme`` … for the whole object, or
    ``sha256-composite`` / ``md5-composite`` for a checksum over the checksums of the parts
    (S3 multipart); then `part_size` is the size in bytes of every part but the last.
    `value` is lower-case hex; a composite ends in ``-N``, N being the number of parts.
    """

    kind: str
    value: str
    part_size: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object on a host.

    `location` is the URL to keep and to give to every other call; `key` is its name below
    the host's prefix; `size` is in bytes; `modified` is UTC; `checksum` is what the host
    itself computed or verified, never metadata that we wrote.
    """

    location: str
    key: str
    size: int
    checksum: Checksum | None = None
    modified: datetime | None = None
    etag: str | None = None
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a host can do; using what it lacks raises `Unsupported` before any I/O."""

    put: bool = True
    list: bool = True
    delete: bool = True
    atomic_put: bool = True
    range_read: bool = True
    create_only: bool = False
    checksums: frozenset[str] = field(default_factory=frozenset)
    signed_urls: bool = False


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of the pool. `size` in bytes, `created` in Unix seconds.

    `name` is the base name as the operating system gave it: bytes that are not UTF-8 are
    kept as surrogate escapes (PEP 383).
    """

    hash: str
    name: str
    size: int
    created: float


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """One copy of a file, or one that is still owed.

    `status` is one of

    - ``stored``: the host acknowledged it, `location` says where;
    - ``queued``: the host still owes it (`location` is ``""``), also after failed attempts;
    - ``failed``: it was there and is not any more, or holds wrong bytes;
    - ``removing``: to be deleted from the host, then forgotten.

    `external` marks what a mover put under a user's name: readable, but never counted,
    rewritten or deleted by the pool. Times are Unix seconds.
    """

    hash: str
    host: str
    location: str = ""
    status: str = "stored"
    external: bool = False
    error: str | None = None
    attempts: int = 0
    stored_at: float | None = None
    checksum: Checksum | None = None
    etag: str | None = None
    verified_at: float | None = None
    verdict: str | None = None
