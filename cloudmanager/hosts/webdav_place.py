"""Where a WebDAV host lies: its URL, the locations below it, and which of them are its own.

A location is ``webdav+https://server[:port]/path/key``: host name in lower case, no default
port, every segment percent-encoded in one way. The request goes to the same URL without the
``webdav+``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

__all__ = ["TEMPORARY", "Place", "Segments", "is_temporary", "origin_of", "why_no_key"]

Segments = tuple[str, ...]

TEMPORARY = ".cloudmanager-tmp-"
"""What the name of an unfinished upload starts with. It lies beside its target: a server can
only rename in one step what stays in one collection, or at least on one disk."""

_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"webdav\+(https?)\Z", re.IGNORECASE)
_SAFE = "!$&'()*+,;=:@~"


@dataclass(frozen=True, slots=True)
class Place:
    """A collection on a server.

    `origin` is ``https://server[:port]``; `segments` are those of the path, unquoted.
    """

    origin: str
    segments: Segments

    @classmethod
    def parse(cls, url: str) -> Place:
        """From the URL of a host or an object.

        Raises
        ------
        ValueError
            When it is no such URL; the message never shows it, since it may hold a password.
        """
        scheme, colon, rest = url.strip().partition("://")
        match = _SCHEME.match(scheme)
        if not colon or match is None:
            raise ValueError("it is not webdav+https://server/path or webdav+http://server/path")
        if "?" in rest or "#" in rest:
            raise ValueError("'?' and '#' in a path must be percent-encoded")
        authority, _, path = rest.partition("/")
        if "@" in authority:
            raise ValueError("credentials do not belong into a URL; use user and password")
        origin = origin_of(f"{match.group(1).lower()}://{authority}")
        if origin is None:
            raise ValueError("it does not name a server")
        segments = _segments(path.rstrip("/"))
        if segments is None:
            raise ValueError("its path has an empty segment, '.', '..' or an encoded slash")
        return cls(origin, segments)

    @property
    def url(self) -> str:
        """The canonical URL; that of every object starts with it and a slash."""
        return f"webdav+{self.request_url(())}".rstrip("/")

    def location(self, below: Segments) -> str:
        """The canonical location of an object."""
        return f"webdav+{self.request_url(below)}"

    def request_url(self, below: Segments, *, collection: bool = False) -> str:
        """Where to send a request about an object, or a `collection`, below this place."""
        path = "".join(f"/{_quote(each)}" for each in (*self.segments, *below))
        # With a slash: servers redirect from a collection's name without one.
        return f"{self.origin}{path}/" if collection or not path else f"{self.origin}{path}"

    def below(self, location: str) -> Segments | None:
        """The segments of an object's key, or None when it does not lie below this place."""
        try:
            there = Place.parse(location)
        except ValueError:
            return None
        depth = len(self.segments)
        if location.endswith("/") or there.origin != self.origin:
            return None
        if there.segments[:depth] != self.segments or len(there.segments) == depth:
            return None
        return there.segments[depth:]

    def href(self, href: str, asked: str) -> Segments | None:
        """What a server means by `href` in the answer to a request for `asked`.

        ``()`` is this place itself. None for whatever lies elsewhere, on another server
        too: a name that a server sends must never lead out of the prefix.
        """
        try:
            parts = urlsplit(urljoin(asked, href.strip()))
            origin = origin_of(f"{parts.scheme}://{parts.netloc}")
        except ValueError:
            return None
        segments = _segments(parts.path.removeprefix("/").rstrip("/"))
        depth = len(self.segments)
        if origin != self.origin or parts.query or parts.fragment or segments is None:
            return None
        return segments[depth:] if segments[:depth] == self.segments else None


def why_no_key(key: str) -> str:
    """Why a WebDAV server cannot keep an object of that name; ``""`` when it can."""
    segments = key.split("/")
    if "\0" in key or any(each in ("", ".", "..") for each in segments):
        return f"{key!r} cannot be a path on a WebDAV server"
    if any(is_temporary(each) for each in segments):
        return f"{key!r} looks like an unfinished upload"
    return ""


def is_temporary(name: str) -> bool:
    """Whether a name is one that an unfinished upload gets."""
    return name.startswith(TEMPORARY)


def _quote(segment: str) -> str:
    return quote(segment, safe=_SAFE, errors="surrogateescape")


def origin_of(url: str) -> str | None:
    """``https://server[:port]`` in one spelling; None when it is something else."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname or parts.username is not None:
        return None
    host = parts.hostname.rstrip(".")
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" + ("" if port in (None, _PORTS[scheme]) else f":{port}")


def _segments(path: str) -> Segments | None:
    """The unquoted segments of a path; None when one of them leads elsewhere."""
    if not path:
        return ()
    found = tuple(unquote_to_bytes(s).decode("utf-8", "surrogateescape") for s in path.split("/"))
    wrong = any(each in ("", ".", "..") or "/" in each or "\0" in each for each in found)
    return None if wrong else found
