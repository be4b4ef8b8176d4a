"""The files that are moved, and whether what arrived is what was sent."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import BenchmarkError

__all__ = ["SMALL_FILE", "big_file", "require_same", "require_stored", "small_files", "sparse_file"]

SMALL_FILE = 4096
_PER_FOLDER = 100
_BLOCK = 4 * 1024 * 1024


def small_files(folder: Path, count: int) -> Path:
    """A tree of `count` files of 4 KiB, all different, 100 in each folder."""
    rng = random.Random(1)
    for number in range(count):
        below = folder / f"d{number // _PER_FOLDER:04}"
        if number % _PER_FOLDER == 0:
            below.mkdir(parents=True)
        (below / f"f{number:06}.bin").write_bytes(rng.randbytes(SMALL_FILE))
    return folder


def big_file(folder: Path, size: int) -> Path:
    """A folder with one file of `size` random bytes."""
    folder.mkdir(parents=True)
    rng = random.Random(2)
    with (folder / "big.bin").open("wb") as file:
        left = size
        while left:
            file.write(rng.randbytes(min(_BLOCK, left)))
            left -= min(_BLOCK, left)
    return folder


def sparse_file(folder: Path, size: int) -> Path:
    """A folder with one file of `size` zeroes that takes no room on the disk."""
    folder.mkdir(parents=True)
    with (folder / "sparse.bin").open("wb") as file:
        file.truncate(size)
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path) -> list[str]:
    found = []
    for path in _files(folder):
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return sorted(found)


def require_same(source: Path, target: Path) -> None:
    """Compare two trees by content.

    Raises
    ------
    BenchmarkError
        When files are missing, superfluous or different: then the time means nothing.
    """
    if _digests(source) != _digests(target):
        raise BenchmarkError("what was downloaded is not what was uploaded")


def require_stored(source: Path, server: Path) -> None:
    """Compare number and bytes of the files with those on the server's disk."""
    sent = sorted(os.path.getsize(path) for path in _files(source))
    stored = sorted(os.path.getsize(path) for path in _files(server))
    if sent != stored:
        raise BenchmarkError(f"{len(sent)} files were sent, {len(stored)} are on the server")
