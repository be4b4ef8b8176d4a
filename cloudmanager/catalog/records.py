"""Rows to and from the house's records.

File names are bytes on POSIX. `name` holds readable text; where the bytes are not UTF-8
(or hold what PostgreSQL cannot store) `name_bytes` holds them as they are, and wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cloudmanager.catalog.tables import STATUSES, files, uploads
from cloudmanager.model import Checksum, FileRecord, UploadRecord

__all__ = [
    "FILE_COLUMNS",
    "UPLOAD_COLUMNS",
    "file_from_row",
    "file_to_row",
    "key_to_row",
    "upload_from_row",
    "upload_to_row",
]

FILE_COLUMNS = [files.c.hash, files.c.name, files.c.name_bytes, files.c.size, files.c.created]
UPLOAD_COLUMNS = list(uploads.c)


def file_to_row(record: FileRecord) -> dict[str, Any]:
    """The parameters of an INSERT.

    Raises
    ------
    ValueError
        When the name could not have come from a file system (a lone surrogate that is no
        surrogate escape).
    """
    name, raw = _split_name(record.name)
    return {
        "hash": record.hash,
        "name": name,
        "name_bytes": raw,
        "size": record.size,
        "created": record.created,
    }


def file_from_row(row: Sequence[Any]) -> FileRecord:
    """A row of `FILE_COLUMNS` as a record."""
    sha256, name, raw, size, created = row
    if raw is not None:
        name = bytes(raw).decode("utf-8", "surrogateescape")
    return FileRecord(sha256, name, size, created)


def upload_to_row(record: UploadRecord) -> dict[str, Any]:
    """The parameters of an INSERT.

    Raises
    ------
    ValueError
        For an unknown status, or a host or location that is no storable text.
    """
    if record.status not in STATUSES:
        raise ValueError(f"an upload cannot be {record.status!r}; it is one of {STATUSES}")
    checksum = record.checksum
    return {
        "hash": record.hash,
        "host": _key_text(record.host),
        "location": _key_text(record.location),
        "status": record.status,
        "external": record.external,
        "error": _shown(record.error),
        "attempts": record.attempts,
        "stored_at": record.stored_at,
        "checksum_kind": checksum.kind if checksum else None,
        "checksum_value": checksum.value if checksum else None,
        "checksum_part_size": checksum.part_size if checksum else None,
        "etag": record.etag,
        "verified_at": record.verified_at,
        "verdict": _shown(record.verdict),
    }


def upload_from_row(row: Sequence[Any]) -> UploadRecord:
    """A row of `UPLOAD_COLUMNS` as a record."""
    (
        sha256,
        host,
        location,
        status,
        external,
        error,
        attempts,
        stored_at,
        kind,
        value,
        part_size,
        etag,
        verified_at,
        verdict,
    ) = row
    return UploadRecord(
        hash=sha256,
        host=host,
        location=location,
        status=status,
        external=bool(external),
        error=error,
        attempts=attempts,
        stored_at=stored_at,
        checksum=None if kind is None else Checksum(kind, value, part_size),
        etag=etag,
        verified_at=verified_at,
        verdict=verdict,
    )


def key_to_row(record: UploadRecord) -> dict[str, Any]:
    """The primary key under names that do not clash with the columns."""
    return {"key_hash": record.hash, "key_host": record.host, "key_location": record.location}


def _split_name(name: str) -> tuple[str, bytes | None]:
    """Readable text, and the raw bytes when the text alone would lose something."""
    if name.isascii():
        if "\0" not in name:
            return name, None
        return name.replace("\0", "\N{REPLACEMENT CHARACTER}"), name.encode()
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"not a file name: {name!r:.80}") from None
    shown = raw.decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return shown, None if shown == name else raw


def _key_text(value: str) -> str:
    """Host and location are compared and followed, so they are stored exactly or not at all."""
    if not value.isascii():
        value.encode("utf-8")  # UnicodeEncodeError is a ValueError
    if "\0" in value:
        raise ValueError(f"a host or location cannot hold a NUL: {value!r:.80}")
    return value


def _shown(value: str | None) -> str | None:
    """Messages are for reading: what cannot be stored is written as an escape."""
    if value is None:
        return None
    if not value.isascii():
        value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value.replace("\0", "\\0")
