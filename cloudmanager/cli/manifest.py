"""Manifests: the lines of ``sha256sum``, so that other programs can check a tree too.

Format: hash, two characters (a blank, then a blank or ``*``), path. A line whose path holds a
backslash, newline or carriage return starts with a backslash, and these are written
``\\\\``, ``\\n`` and ``\\r`` (GNU coreutils, "md5sum invocation").
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from cloudmanager.errors import ConfigurationError

__all__ = ["line_for", "read_manifest", "target_below", "write_manifest"]

_LINE = re.compile(rb"(\\?)([0-9A-Fa-f]{64})[ ][ *](.+)\Z", re.DOTALL)
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}


def line_for(sha256: str, path: str) -> bytes:
    """One line, without its newline."""
    name = os.fsencode(path)
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    mark = b"\\" if escaped != name else b""
    return mark + sha256.encode() + b"  " + escaped


def write_manifest(path: Path, entries: Iterable[tuple[str, str]]) -> None:
    """Write (hash, path) entries, sorted by path, whole or not at all."""
    lines = [
        line_for(sha256, name) for sha256, name in sorted(entries, key=lambda e: os.fsencode(e[1]))
    ]
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            for line in lines:
                file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(path: Path) -> Iterator[tuple[str, str]]:
    """The (hash, path) entries of a manifest.

    Raises
    ------
    ConfigurationError
        For a line that is not one of ``sha256sum``, with its number.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            line = raw.rstrip(b"\n")
            if not line:
                continue
            match = _LINE.match(line)
            if match is None:
                raise ConfigurationError(f"{str(path)!r}, line {number}: not a line of sha256sum")
            mark, sha256, name = match.groups()
            if mark:
                name = re.sub(rb"\\[\\nr]", lambda m: _ESCAPES[m.group()], name)
            yield sha256.decode().lower(), os.fsdecode(name)


def target_below(folder: Path, name: str) -> Path:
    """Where a path of a manifest goes below `folder`.

    A leading ``/`` is dropped, as tar does.

    Raises
    ------
    ConfigurationError
        For a path that would leave the folder.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name:
        raise ConfigurationError(f"the path {name!r} of the manifest would leave the folder")
    return folder.joinpath(*parts)
