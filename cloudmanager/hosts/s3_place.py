"""Where an S3 host lies: its URL, the locations below it, and which of them are its own.

A location names the place on its own: ``s3://bucket/key`` on Amazon S3 itself, where bucket
names are unique in the world, ``s3+https://endpoint/bucket/key`` everywhere else. So the
buckets of one name at two providers are never mixed up.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urlsplit

__all__ = ["LONGEST_KEY", "Place", "is_amazon", "normal_endpoint", "parse_url"]

LONGEST_KEY = 1024
"""Bytes of UTF-8 that S3 allows for a key, the prefix included."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Not the Chinese partition (amazonaws.com.cn): its bucket names are its own.
_AMAZON = re.compile(r"(?:^|\.)amazonaws\.com\Z")
_AMAZON_STYLE = re.compile(
    r"(?:(?P<bucket>[^/]+)\.)?s3(?:[.-](?!vpce)[a-z0-9-]+)*\.amazonaws\.com\Z"
)
_REGION = re.compile(r"s3(?:-fips)?(?:\.dualstack)?[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com\Z")
_SAFE = "/!$&'()*+,;=:@~"
_UNQUOTED = re.compile(r"[A-Za-z0-9_./-]+\Z")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}\Z")


def normal_endpoint(url: str) -> str:
    """``https://host[:port]``: lower case, no default port, no slash at the end.

    Raises
    ------
    ValueError
        When it is no such URL. A path is refused: a location could not tell it from a bucket.
    """
    parts = urlsplit(url.strip())
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ValueError("an endpoint is http(s)://host[:port]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials do not belong into a URL")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("an endpoint has no path, query or fragment")
    host = parts.hostname.rstrip(".")
    shown = f"[{host}]" if ":" in host else host
    if parts.port is not None and parts.port != _DEFAULT_PORTS[scheme]:
        shown += f":{parts.port}"
    return f"{scheme}://{shown}"


def is_amazon(endpoint: str) -> bool:
    """Whether the endpoint is Amazon's own, of whatever region or network."""
    return _AMAZON.search(urlsplit(endpoint).hostname or "") is not None


def region_of(endpoint: str) -> str | None:
    """The region that an endpoint of Amazon's names."""
    match = _REGION.search(urlsplit(endpoint).hostname or "")
    return match.group(1) if match else None


def parse_url(url: str) -> tuple[str | None, str, str]:
    """Endpoint (None for an ``s3://`` URL), bucket and path of a host's URL or a location.

    The path comes without its percent-encoding. A bucket in the host name of an Amazon
    endpoint is found as well.

    Raises
    ------
    ValueError
        When it is not such a URL.
    """
    scheme, colon, rest = url.partition("://")
    scheme = scheme.lower()
    if not colon or scheme not in ("s3", "s3+http", "s3+https"):
        raise ValueError("it is not s3://bucket/prefix or s3+https://endpoint/bucket/prefix")
    if "?" in rest or "#" in rest:
        raise ValueError("'?' and '#' in a key must be percent-encoded")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ValueError("credentials do not belong into a URL")
    endpoint: str | None = None
    if scheme == "s3":
        bucket = authority
    else:
        endpoint = normal_endpoint(f"{scheme[3:]}://{authority}")
        match = _AMAZON_STYLE.match(urlsplit(endpoint).hostname or "")
        if match and match.group("bucket"):
            bucket = match.group("bucket")
            endpoint = endpoint.replace(f"//{bucket}.", "//", 1)
        else:
            bucket, _, path = path.partition("/")
    if not _BUCKET.match(bucket):
        raise ValueError(f"{bucket!r} is not the name of a bucket")
    try:
        return endpoint, bucket, unquote_to_bytes(path).decode()
    except UnicodeDecodeError as exc:
        raise ValueError("a key is UTF-8") from exc


@dataclass(frozen=True, slots=True)
class Place:
    """A prefix in a bucket at an endpoint.

    `endpoint` is None on Amazon S3 itself; `prefix` is ``""`` or ends with a slash.
    """

    endpoint: str | None
    bucket: str
    prefix: str = ""

    @classmethod
    def make(cls, endpoint: str | None, bucket: str, path: str) -> Place:
        """From the parts of a URL; `endpoint` may be one of Amazon's."""
        if endpoint is not None and is_amazon(endpoint):
            endpoint = None
        prefix = path.strip("/")
        return cls(endpoint, bucket, prefix + "/" if prefix else "")

    @property
    def url(self) -> str:
        """The canonical URL; that of every object starts with it and a slash."""
        return self.location("").rstrip("/")

    def location(self, key: str) -> str:
        """The canonical location of `key` below the prefix."""
        if _UNQUOTED.match(key):
            return _root(self) + key
        return self._quoted(key)

    def _quoted(self, key: str) -> str:
        root = "s3://" if self.endpoint is None else f"s3+{self.endpoint}/"
        # Surrogate escapes are kept so that a message can name such a key; S3 refuses it.
        path = quote(self.prefix + key, safe=_SAFE, errors="surrogateescape")
        return f"{root}{self.bucket}/{path}"

    def key(self, location: str) -> str | None:
        """The key below the prefix that a location names, or None when it lies elsewhere."""
        root = _root(self)
        if location.startswith(root) and _UNQUOTED.match(location, len(root)):
            return location[len(root) :]  # as we write nearly all of them ourselves
        try:
            endpoint, bucket, path = parse_url(location)
        except ValueError:
            return None
        if endpoint is not None and is_amazon(endpoint):
            endpoint = None
        if (endpoint, bucket) != (self.endpoint, self.bucket):
            return None
        if not path.startswith(self.prefix) or len(path) == len(self.prefix):
            return None
        return path[len(self.prefix) :]


@functools.lru_cache(maxsize=64)
def _root(place: Place) -> str:
    """What the canonical location of every object below the place starts with."""
    return place._quoted("")
