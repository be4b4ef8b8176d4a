"""Requests to a WebDAV server, and what its answers and silences mean.

The one border to requests and urllib3: what comes out are our own errors, also while a body
is being read. Credentials go to the configured server and to no other: a redirect is followed
for reading only, and only if it stays on the same origin.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urljoin

from cloudmanager.errors import (
    AccessDenied,
    HostError,
    HostFull,
    HostUnavailable,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hosts.base import OnBytes
from cloudmanager.hosts.http_answers import WrongAnswer, classify, content_length
from cloudmanager.hosts.webdav_options import WebdavOptions
from cloudmanager.hosts.webdav_place import Place, Segments, origin_of
from cloudmanager.source import HashedReader, Source

if TYPE_CHECKING:
    import requests

__all__ = ["NoAnswer", "UploadBody", "Wire"]

MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_FOLLOWED = {"GET", "PROPFIND"}
_SMALL = 64 * 1024
_PIECE = 256 * 1024
_GATEWAY = {502, 504}
_WORDS: Mapping[int, tuple[type[HostError], str]] = {
    401: (
        AccessDenied,
        "the server does not accept the credentials (status 401); see the options user, password "
        "and token",
    ),
    403: (AccessDenied, "the server does not allow this (status 403); check the user's rights"),
    404: (ObjectNotFound, "no such object"),
    410: (ObjectNotFound, "no such object"),
    413: (HostError, "the file is larger than the server takes (status 413); raise its limit"),
    # Most locks are held for no longer than the request of somebody else.
    423: (HostUnavailable, "it is locked by another client (status 423); unlock it if it stays so"),
    507: (HostFull, "the server has no room left (status 507); free some or choose another host"),
}
_NOT_DAV = {200, 405, 501}
_LASTING = {505, 506, 508, 510, 511}


class NoAnswer(HostUnavailable):
    """Whether the server did it is unknown: the connection broke, or a gateway gave up."""


class UploadBody:
    """A source as the body of one request, hashed on the way unless it is trusted.

    Deliberately no file object: requests would ask such a one for its position, and take
    its refusal for an empty body.
    """

    def __init__(self, source: Source, sha256: str, on_bytes: OnBytes | None) -> None:
        self._source = source
        self._on_bytes = on_bytes
        self._left = source.size
        self._unreported = 0
        with self._its_errors():
            self._file = (
                source.open() if source.trusted else cast(BinaryIO, HashedReader(source, sha256))
            )

    def __len__(self) -> int:
        return self._source.size

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read():
            yield data

    @property
    def sent(self) -> bool:
        """Whether all of it was handed to the connection."""
        return self._left == 0

    def read(self, _: int = -1) -> bytes:
        """The next piece: more than the 16 KiB that are asked for, which cost speed, and less
        than all, to the sending of which the time limit would apply as a whole."""
        try:
            self.report()
            with self._its_errors():
                data = self._file.read(min(_PIECE, self._left))
            if self._left and not data:
                raise SourceChanged(f"{self._source} became shorter while it was read")
        except OSError as exc:
            # A caller's own. urllib3 would take it for one of the network: some it wraps, and
            # after a broken pipe it waits for an answer.
            raise _CallerFailed(exc) from exc
        self._left -= len(data)
        self._unreported = len(data)
        return data

    def report(self) -> None:
        """Tell of the piece before, which has gone out by now."""
        count, self._unreported = self._unreported, 0
        if count and self._on_bytes is not None:
            self._on_bytes(count)

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _its_errors(self) -> Iterator[None]:
        """Keep the errors of reading the source apart from those of the network."""
        try:
            yield
        except OSError as exc:
            raise SourceChanged(
                f"{self._source} cannot be read any more: {exc.strerror or exc}; upload it again"
            ) from exc


class Wire:
    """Sends requests for one host. Thread-safe."""

    def __init__(self, name: str, place: Place, options: WebdavOptions) -> None:
        self._name = name
        self._place = place
        self._options = options
        self._lock = threading.Lock()
        self._made: requests.Session | None = None

    def close(self) -> None:
        with self._lock:
            session, self._made = self._made, None
        if session is not None:
            session.close()

    @contextmanager
    def request(
        self,
        method: str,
        below: Segments,
        operation: str,
        location: str,
        *,
        collection: bool = False,
        headers: Mapping[str, str] | None = None,
        body: UploadBody | bytes | None = None,
        time_limit: float | None = None,
    ) -> Iterator[requests.Response]:
        """Send one request, and map every error until its body is read."""
        import requests
        import urllib3

        response: requests.Response | None = None
        try:
            url = self._place.request_url(below, collection=collection)
            sent = {"Accept-Encoding": "identity", **(headers or {})}
            if self._options.authorization is not None:
                sent["Authorization"] = self._options.authorization
            for _ in range(MOST_REDIRECTS + 1):
                # One try, our time limit, and no netrc: credentials are never found by accident.
                response = self._session().request(
                    method,
                    url,
                    headers=sent,
                    # An empty one as bytes, so that it is sent with a length and not in chunks.
                    data=body if body else b"",
                    allow_redirects=False,
                    stream=True,
                    timeout=time_limit or self._options.time_limit,
                    auth=_no_auth,
                    verify=self._options.verify,
                )
                target = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not target or method not in _FOLLOWED:
                    break
                there = urljoin(url, target)
                if origin_of(there) != self._place.origin:
                    break  # `fail` says where it leads
                response.close()
                url = there
            else:
                raise self.error(
                    HostError, f"more than {MOST_REDIRECTS} redirects", operation, location
                )
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if response.ok and encoding not in ("", "identity"):
                raise WrongAnswer(
                    HostError,
                    f"the server encodes its answer ({encoding:.20}), though asked not to",
                )
            yield response
            _drain(response)
        except _CallerFailed as exc:
            raise exc.error from None
        except WrongAnswer as exc:
            raise self.error(exc.kind, str(exc), operation, location) from exc
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            kind, message = classify(exc)
            kind = NoAnswer if kind is HostUnavailable else kind
            raise self.error(kind, message, operation, location) from exc
        finally:
            if response is not None:
                response.close()

    def expect(
        self,
        response: requests.Response,
        wanted: Collection[int],
        operation: str,
        location: str,
    ) -> None:
        """Raise what the answer means, unless its status is a wanted one."""
        status = response.status_code
        if status in wanted:
            return
        method = response.request.method or ""
        if status in _REDIRECTS:
            target = origin_of(urljoin(response.url, response.headers.get("Location", "")))
            raise self.error(
                HostError,
                f"the server redirects {method} to {target or 'something else than http(s)'}, and "
                "that was not followed; give the host the URL where its files really are",
                operation,
                location,
            )
        raise self.failure(status, method, operation, location)

    def failure(self, status: int, method: str, operation: str, location: str) -> HostError:
        """The error that stands for a status."""
        kind, message = _WORDS.get(status, (HostError, ""))
        if not message:
            message = f"the server answers {method} with status {status}"
            if status in _GATEWAY:
                kind = NoAnswer
            elif status in (408, 425, 429) or (status >= 500 and status not in _LASTING | _NOT_DAV):
                kind = HostUnavailable
            elif status in _NOT_DAV:
                message += "; is the URL that of a WebDAV collection?"
        return self.error(kind, message, operation, location)

    def error(
        self, kind: type[HostError], message: str, operation: str, location: str
    ) -> HostError:
        return kind(message, host=self._name, operation=operation, location=location)

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


class _CallerFailed(Exception):
    """Carries a caller's `OSError` through the libraries; never leaves this module."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _drain(response: requests.Response) -> None:
    """Read the small rest of an answer, so that its connection serves the next request."""
    # The status has said it all: what breaks now is no failure of the request.
    size = content_length(response)
    if size is not None and size <= _SMALL:
        response.raw.drain_conn()
