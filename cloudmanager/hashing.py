"""SHA-256 of files and streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

__all__ = ["BLOCK", "EMPTY_SHA256", "read_blocks", "sha256_of", "sha256_of_bytes"]

BLOCK = 1024 * 1024
"""Bytes read at a time: large enough that hashlib and the disk set the pace."""

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


_SMALL = 64 * 1024
_WITH_THE_LOCK = 2047


def sha256_of_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 hex digits.

    hashlib gives up Python's global lock for 2,048 bytes and more. Where many threads handle
    small files, getting it back takes many times as long as hashing one, so it is kept.
    """
    if len(data) > _SMALL:
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    view = memoryview(data)
    for start in range(0, len(data), _WITH_THE_LOCK):
        digest.update(view[start : start + _WITH_THE_LOCK])
    return digest.hexdigest()


def read_blocks(file: BinaryIO, block: int = BLOCK) -> Iterator[bytes]:
    """Yield the rest of `file` in blocks of at most `block` bytes."""
    while data := file.read(block):
        yield data


def sha256_of(source: BinaryIO | Iterable[bytes]) -> str:
    """The SHA-256 of a binary file object or of an iterable of bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    blocks = source if isinstance(source, Iterable) and not hasattr(source, "read") else None
    for block in blocks if blocks is not None else read_blocks(cast(BinaryIO, source)):
        digest.update(block)
    return digest.hexdigest()
