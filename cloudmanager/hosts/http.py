"""Files behind plain http(s) URLs, to read only."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from http.cookiejar import DefaultCookiePolicy
from os.path import expanduser, isfile
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote_to_bytes, urljoin, urlsplit

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    HostError,
    HostUnavailable,
    ObjectNotFound,
)
from cloudmanager.hosts.base import TIME_LIMIT, Host, OnBytes
from cloudmanager.hosts.disposition import filename_of
from cloudmanager.hosts.http_answers import (
    WrongAnswer,
    body_of,
    classify,
    content_length,
    content_range,
    http_date,
)
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.source import Source

if TYPE_CHECKING:
    import requests

__all__ = ["HttpHost", "HttpOptions", "open_http"]

MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
# What servers say that do not answer HEAD; a link signed for GET alone gets 401 or 403.
_HEAD_REFUSED = {400, 401, 403, 405, 501}
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """What can be set for an http(s) host. Secrets do not show in its repr.

    Attributes
    ----------
    ca_bundle:
        A PEM file with the certificates to trust instead of the system's.
    headers:
        Sent with every request to the configured server, such as Authorization; never to
        another one that it redirects to.
    allow_private:
        Follow redirects from the configured server to another host with a loopback, private
        or link-local address. Off: a public server must not make us read our own network.
    """

    ca_bundle: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    allow_private: bool = False


def open_http(name: str, url: str, options: Mapping[str, Any]) -> HttpHost:
    """``http(s)://host[:port]/base`` as a read-only host. No network I/O.

    Raises
    ------
    ConfigurationError
        For an unknown option, or a URL with a user, query or fragment.
    """
    known = [each.name for each in fields(HttpOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigurationError(
            f"host {name}: unknown option {', '.join(unknown)}; an http host takes: "
            f"{', '.join(known)}"
        )
    parsed = HttpOptions(**options)
    headers = parsed.headers
    if not isinstance(headers, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) and not re.search(r"[\r\n]", k + v)
        for k, v in headers.items()
    ):
        raise ConfigurationError(f"host {name}: headers must be a table of texts on one line")
    if parsed.ca_bundle is not None and not isfile(expanduser(parsed.ca_bundle)):
        raise ConfigurationError(f"host {name}: there is no ca_bundle file {parsed.ca_bundle!r}")
    parts = _split(url)
    if parts is None or parts.query:
        raise ConfigurationError(
            f"host {name}: an http host needs a URL such as https://example.org/files, without "
            "user, query or fragment; credentials go into the option headers"
        )
    return HttpHost(name, parts, parsed)


class HttpHost(Host):
    """Every URL below one base URL. Reads only: the rest raises `Unsupported` before any I/O."""

    capabilities = Capabilities(put=False, list=False, delete=False, atomic_put=False)

    def __init__(
        self, name: str, base: SplitResult, options: HttpOptions, *, time_limit: float = TIME_LIMIT
    ) -> None:
        self.name = name
        self.options = options
        self.time_limit = time_limit
        self._base = base
        self._segments = _segments(base.path.rstrip("/")) or []
        self._lock = threading.Lock()
        self._made: requests.Session | None = None

    # -- the contract ------------------------------------------------------------------

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        raise self._unsupported("put", key)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._key_of(location, "get")
        if length == 0:
            return
        wanted = None
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            wanted = f"bytes={offset}-{last}"
        with self._request("GET", location, "get", wanted) as response:
            if response.status_code == 416 and wanted is not None:
                total = content_range(response)[2]
                if total is None or offset >= total:
                    return
            self._expect(response, "get", location)
            try:
                yield from body_of(response, offset, length)
            except WrongAnswer as exc:
                raise self._error(exc.kind, str(exc), "get", location) from exc

    def stat(self, location: str) -> ObjectInfo:
        key = self._key_of(location, "stat")
        with self._request("HEAD", location, "stat") as response:
            size = content_length(response)
            refused = response.status_code in _HEAD_REFUSED
            if not refused:
                self._expect(response, "stat", location)
            if size is not None and not refused:
                return _info(location, key, size, response)
        # Without a HEAD, one byte tells the size as well.
        with self._request("GET", location, "stat", "bytes=0-0") as response:
            total = content_range(response)[2]
            if response.status_code != 416 or total != 0:
                self._expect(response, "stat", location)
            size = total if total is not None else content_length(response)
            if size is None:
                raise self._error(HostError, "the server does not tell the size", "stat", location)
            return _info(location, key, size, response)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        raise self._unsupported("list", prefix)

    def delete(self, locations: Iterable[str]) -> None:
        raise self._unsupported("delete")

    def owns(self, location: str) -> bool:
        return self._key(location) is not None

    def location(self, key: str) -> str:
        return (
            f"{self._base.geturl().rstrip('/')}/{quote(key, safe='/~', errors='surrogateescape')}"
        )

    def check(self) -> None:
        """The server answers. There may well be nothing at the base URL itself."""
        url = self._base.geturl()
        with self._request("HEAD", url, "check") as response:
            if response.status_code not in (404, 405, 410, 501):
                self._expect(response, "check", url)

    def close(self) -> None:
        with self._lock:
            session, self._made = self._made, None
        if session is not None:
            session.close()

    # -- how -----------------------------------------------------------------------------

    @contextmanager
    def _request(
        self, method: str, url: str, operation: str, wanted: str | None = None
    ) -> Iterator[requests.Response]:
        """Send one request, follow its redirects, and map every error until the body is read."""
        import requests
        import urllib3

        response: requests.Response | None = None
        try:
            here = url
            for _ in range(MOST_REDIRECTS + 1):
                headers = {"Range": wanted} if wanted else {}
                if _origin(here) == _origin(self._base.geturl()):
                    headers = {**self.options.headers, **headers}
                # One try, our time limit, and no netrc: credentials are never found by accident.
                response = self._session().request(
                    method,
                    here,
                    headers={**headers, "Accept-Encoding": "identity"},
                    allow_redirects=False,
                    stream=True,
                    timeout=self.time_limit,
                    auth=_no_auth,
                    verify=expanduser(self.options.ca_bundle) if self.options.ca_bundle else True,
                )
                target = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not target:
                    break
                response.close()
                here = self._redirected(here, target, operation, url)
            else:
                raise self._error(
                    HostError, f"more than {MOST_REDIRECTS} redirects", operation, url
                )
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise self._error(
                    HostError,
                    f"the server sends the file encoded ({encoding:.20}), though asked not to",
                    operation,
                    url,
                )
            yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            kind, message = classify(exc)
            raise self._error(kind, message, operation, url) from exc
        finally:
            if response is not None:
                response.close()

    def _redirected(self, here: str, target: str, operation: str, url: str) -> str:
        """Where a redirect leads, if it may be followed."""
        there = urljoin(here, target)
        parts = _split(there, fragment=True)
        if parts is None:
            raise self._error(
                HostError, "a redirect to something else than http(s)", operation, url
            )
        if here.lower().startswith("https:") and parts.scheme != "https":
            raise self._error(
                HostError, "a redirect from https to http was not followed", operation, url
            )
        if (
            parts.hostname != self._base.hostname
            and not self.options.allow_private
            and _is_private(parts)
        ):
            raise self._error(
                HostError,
                "a redirect to a private address was not followed; see the option allow_private",
                operation,
                url,
            )
        return parts._replace(fragment="").geturl()

    def _expect(self, response: requests.Response, operation: str, location: str) -> None:
        """Raise unless the answer is 200 or 206."""
        status = response.status_code
        if status in (200, 206):
            return
        shown = f"the server answers with status {status}"
        if status in (401, 403):
            raise self._error(AccessDenied, f"{shown}; see the option headers", operation, location)
        if status in (404, 410):
            raise self._error(ObjectNotFound, "no such file", operation, location)
        if status in (408, 425, 429) or status >= 500:
            raise self._error(HostUnavailable, shown, operation, location)
        raise self._error(HostError, shown, operation, location)

    def _session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter

        with self._lock:
            if self._made is None:
                session = requests.Session()
                session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
                for scheme in ("http://", "https://"):
                    session.mount(scheme, HTTPAdapter(pool_maxsize=64, max_retries=0))
                self._made = session
            return self._made

    def _key(self, location: str) -> str | None:
        parts = _split(location)
        if parts is None or _origin(location) != _origin(self._base.geturl()):
            return None
        segments = _segments(parts.path)
        depth = len(self._segments)
        if segments is None or segments[:depth] != self._segments:
            return None
        key = "/".join(segments[depth:])
        if not key:
            return None
        return f"{key}?{parts.query}" if parts.query else key

    def _key_of(self, location: str, operation: str) -> str:
        key = self._key(location)
        if key is None:
            raise self._error(HostError, "the location is not on this host", operation, location)
        return key

    def _error(
        self, kind: type[HostError], message: str, operation: str, location: str
    ) -> HostError:
        # The query of a signed link is as good as a password.
        shown = re.sub(r"\?.*", "?***", location, flags=re.DOTALL)
        return kind(message, host=self.name, operation=operation, location=shown)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _split(url: str, *, fragment: bool = False) -> SplitResult | None:
    """An http(s) URL taken apart; None for anything else, or one with a user or fragment."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None:
        return None
    return None if parts.fragment and not fragment else parts


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def _segments(path: str) -> list[str] | None:
    """The unquoted segments of a path; None when one is ``.`` or ``..``: those lead elsewhere."""
    raw = path.split("/")[1:] if path else []
    segments = [unquote_to_bytes(each).decode("utf-8", "surrogateescape") for each in raw]
    return None if any(each in (".", "..") for each in segments) else segments


def _info(location: str, key: str, size: int, response: requests.Response) -> ObjectInfo:
    headers = response.headers
    etag = headers.get("ETag")
    return ObjectInfo(
        location=location,
        key=key,
        size=size,
        modified=http_date(headers.get("Last-Modified")),
        etag=etag.strip('"') if etag else None,
        filename=filename_of(headers.get("Content-Disposition")),
    )


def _is_private(parts: SplitResult) -> bool:
    """Whether a host name leads, by any of its addresses, to where only we can go."""
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or _PORTS[parts.scheme])
    except OSError:
        return False  # the request itself will say that it cannot be resolved
    addresses = (ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found)
    return any(not address.is_global for address in addresses)
