"""The name and the type under which an object downloads.

Content-Disposition as RFC 6266 has it, with the extended form of RFC 5987 (now RFC 8187)
for whatever ASCII cannot say, and back again.
"""

from __future__ import annotations

import functools
import mimetypes
import re
import unicodedata
from urllib.parse import quote_from_bytes, unquote_to_bytes

__all__ = ["content_disposition", "content_type", "filename_of"]

_LONGEST = 1024
"""Bytes of a name that are kept. File systems end at 255 bytes (macOS: 255 UTF-16 units, up
to 765 bytes); percent-encoded, this still fits the 8 KiB that servers allow for headers."""

_ATTR_CHAR = "!#$&+-.^_`|~"  # RFC 8187 section 3.2.1, besides letters and digits
_UNSAFE = re.compile(r'[^\x20-\x7e]|["\\/%]')

_SIMPLE = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")

_EXTENDED = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]*)", re.IGNORECASE)
_SUFFIX = re.compile(r"\.[^./]+\Z")
_QUOTED = re.compile(r';\s*filename\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE | re.DOTALL)
_TOKEN = re.compile(r';\s*filename\s*=\s*([^\s";]+)', re.IGNORECASE)

# Its own table, not the module's: the machine's mime.types must not decide what is stored.
_TYPES = mimetypes.MimeTypes(filenames=())
_COMPRESSED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
    "br": "application/octet-stream",
}


def content_disposition(filename: str) -> str:
    """The header value that makes a browser save an object as `filename`.

    Always printable ASCII on one line. A name that ASCII cannot say is given twice: readable
    for old clients, and percent-encoded as ``filename*``. Bytes that are not UTF-8
    (surrogate escapes, PEP 383) are percent-encoded as they are, so that `filename_of` gets
    them back; a browser ignores such a ``filename*`` and takes the readable form, which is
    better than a replacement character in every tool. A name of more than 1,024 bytes is cut.
    """
    if _SIMPLE.match(filename):
        return f'attachment; filename="{filename}"'
    raw = _encode(filename)
    if len(raw) > _LONGEST:
        raw = _cut(raw)
        filename = raw.decode("utf-8", "surrogateescape")
    if not filename:
        return "attachment"
    # Neither quotes, backslashes nor percent signs: they may be written, but clients
    # disagree about how to read them (RFC 6266, appendix D). A slash is no part of a name.
    plain = unicodedata.normalize("NFKD", filename)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    fallback = _UNSAFE.sub("_", plain)
    if fallback == filename and filename.strip() == filename:
        return f'attachment; filename="{fallback}"'
    return (
        f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{quote_from_bytes(raw, _ATTR_CHAR)}"
    )


def filename_of(disposition: str | None) -> str | None:
    """The file name in a Content-Disposition, or None when there is none that can be read."""
    if not disposition:
        return None
    if match := _EXTENDED.search(disposition):
        charset, value = match.group(1).lower(), unquote_to_bytes(match.group(2))
        if charset == "utf-8":
            return value.decode("utf-8", "surrogateescape") or None
        if charset == "iso-8859-1":
            return value.decode("latin-1") or None
    if match := _QUOTED.search(disposition):
        return re.sub(r"\\(.)", r"\1", match.group(1), flags=re.DOTALL) or None
    if match := _TOKEN.search(disposition):
        return match.group(1)
    return None


def content_type(filename: str) -> str:
    """The media type that the extension of `filename` stands for.

    A compressed file is what it is (``application/gzip`` for ``x.tar.gz``), since the object
    is stored without a Content-Encoding; the unknown is ``application/octet-stream``.
    """
    # Not guess_type: it takes a name such as "data:,x" or "http:a.txt" for a URL.
    suffix = _SUFFIX.search(filename)
    return "application/octet-stream" if suffix is None else _type_of(suffix.group().lower())


@functools.lru_cache(maxsize=256)
def _type_of(suffix: str) -> str:
    extension = _TYPES.suffix_map.get(suffix, suffix)
    for ending, encoding in _TYPES.encodings_map.items():
        if extension.endswith(ending.lower()):
            return _COMPRESSED.get(encoding, "application/octet-stream")
    return _TYPES.types_map[True].get(extension, "application/octet-stream")


def _encode(filename: str) -> bytes:
    try:
        return filename.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        return filename.encode("utf-8", "replace")


def _cut(raw: bytes) -> bytes:
    """The first bytes of a long name and its extension, without halving a character."""
    stem, dot, extension = raw.rpartition(b".")
    tail = dot + extension if stem and len(extension) <= 32 else b""
    head = raw[: _LONGEST - len(tail)]
    for back in range(4):
        candidate = head[: len(head) - back] if back else head
        with_escapes = candidate.decode("utf-8", "surrogateescape")
        if not with_escapes or not "\udc80" <= with_escapes[-1] <= "\udcff":
            return candidate + tail
    return head + tail
