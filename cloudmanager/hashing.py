"""SHA-256 of files and streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

__all__ = ["BLOCK", "EMPTY_SHA256", "read_blocks", "sha256_of"]

BLOCK = 1024 * 1024
"""Bytes read at a time: large enough that hashlib and the disk set the pace."""

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


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
