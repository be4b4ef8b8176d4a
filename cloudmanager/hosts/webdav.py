"""A collection on a WebDAV server (RFC 4918) as a host: Nextcloud, ownCloud, Apache, rclone, …"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    HostError,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
)
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.hosts.http_answers import body_of, content_range
from cloudmanager.hosts.webdav_answers import ASK_RIGHTS, Member
from cloudmanager.hosts.webdav_options import WebdavOptions
from cloudmanager.hosts.webdav_place import TEMPORARY, Place, Segments, is_temporary, why_no_key
from cloudmanager.hosts.webdav_tree import Tree, raw_key
from cloudmanager.hosts.webdav_wire import NoAnswer, UploadBody, Wire
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.source import Source

__all__ = ["WebdavHost", "open_webdav"]

_PLAIN = re.compile(r"[A-Za-z0-9._/-]+\Z")
_TIDYING = 5.0
"""Seconds for removing what a failed upload left: the failure is what the caller waits for."""
_STORED = {200, 201, 204}
_MAY_WRITE = {"DAV: all", "DAV: write", "DAV: write-content", "DAV: bind"}


def open_webdav(name: str, url: str, options: Mapping[str, Any]) -> WebdavHost:
    """``webdav+https://server/path`` or ``webdav+http://…``. No network I/O.

    Raises
    ------
    ConfigurationError
        For an unknown option, one that does not fit, or another URL.
    """
    parsed = WebdavOptions.parse(name, options)
    places = []
    for each in (url, *parsed.aliases):
        try:
            places.append(Place.parse(each))
        except ValueError as exc:
            raise ConfigurationError(f"host {name}: not the URL of a WebDAV host: {exc}") from exc
    return WebdavHost(name, places[0], parsed, aliases=places[1:])


class WebdavHost(Host):
    """Objects as files below one collection, which must exist.

    An object is sent under a temporary name into the collection where it belongs, looked at,
    and moved to its name: what is there under a key is whole. What proves an upload: that the
    server acknowledged it and tells the right size, and the right SHA-256 where it tells
    one. An upload whose acknowledgement was lost is taken for stored only when the server's
    SHA-256 says so, or the bytes, read back, have the hash. A lost acknowledgement of the
    move is settled by the temporary name having gone, which nothing else makes it do.

    Checksums are the server's (``oc:checksums`` of ownCloud's family), never told to it by us.
    """

    capabilities = Capabilities(checksums=frozenset({"sha256", "sha1", "md5"}))

    def __init__(
        self, name: str, place: Place, options: WebdavOptions, *, aliases: Iterable[Place] = ()
    ) -> None:
        self.name = name
        self.place = place
        self.options = options
        self._aliases = tuple(aliases)
        self._wire = Wire(name, place, options)
        self._tree = Tree(place, self._wire)
        self._known: set[Segments] = set()

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
        location = self.location(key)
        if why := why_no_key(key):
            raise self._wire.error(HostError, why, "put", location)
        below = tuple(key.split("/"))
        self._make_collection(below[:-1], location)
        temporary = (*below[:-1], TEMPORARY + uuid.uuid4().hex)
        try:
            found = self._send(temporary, source, sha256, on_bytes, location)
            self._move(temporary, below, source.size, location)
            if not _PLAIN.match(key):
                self._require_name(below, location)
        except Exception:
            self._discard(temporary, location)
            raise
        # Not its etag: that was the one under the temporary name.
        return ObjectInfo(
            location=location,
            key=key,
            size=source.size,
            checksum=found.checksum,
            modified=found.modified,
        )

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        yield from self._read(self._below(location, "get"), offset, length, "get", location)

    def _read(
        self, below: Segments, offset: int, length: int | None, operation: str, location: str
    ) -> Iterator[bytes]:
        if length == 0:
            return
        headers = {}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            headers["Range"] = f"bytes={offset}-{last}"
        with self._wire.request("GET", below, operation, location, headers=headers) as response:
            if response.status_code == 416 and headers:
                total = content_range(response)[2]
                if total is None or offset >= total:
                    return
            if response.status_code in (404, 410):
                self._tree.require_base(operation)
            self._wire.expect(response, {200, 206}, operation, location)
            yield from body_of(response, offset, length)

    def stat(self, location: str) -> ObjectInfo:
        below = self._below(location, "stat")
        found = self._tree.look(below, "stat", location)
        if found is None:
            self._tree.require_base("stat")
            raise self._wire.error(ObjectNotFound, "no such object", "stat", location)
        if found.collection:
            raise self._wire.error(
                ObjectNotFound, "what is there is a collection", "stat", location
            )
        return self._info("/".join(below), found, "stat")

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        start = tuple(prefix.split("/")[:-1])
        if why_no_key("/".join((*start, "x"))):
            start = ()  # nothing can be there, and what is asked for is only ours
        for below, found in self._tree.walk(start, raw_key(prefix), raw_key(after), "list"):
            if not any(is_temporary(each) for each in below):
                yield self._info("/".join(below), found, "list")

    def delete(self, locations: Iterable[str]) -> None:
        base_seen = False
        for location in locations:
            below = self._below(location, "delete")
            # Looked at first: DELETE of a collection takes everything below it along.
            found = self._tree.look(below, "delete", location)
            if found is None:
                if not base_seen:
                    self._tree.require_base("delete")
                base_seen = True
                continue
            base_seen = True
            if found.collection:
                raise self._wire.error(
                    HostError,
                    "what is there is a collection, which was left alone",
                    "delete",
                    location,
                )
            self._delete(below, "delete", location)

    def owns(self, location: str) -> bool:
        return self._key(location) is not None

    def location(self, key: str) -> str:
        return self.place.location(tuple(key.split("/")))

    def check(self) -> None:
        """The collection is there and ours to read; and to write, where the server tells."""
        found = self._tree.require_base("check", ASK_RIGHTS)
        if found.rights and not found.rights & _MAY_WRITE:
            raise self._wire.error(
                AccessDenied,
                "the user may only read there; give write permission on the server",
                "check",
                self.place.url,
            )

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Delete what killed processes left under temporary names.

        Their age is by the server's clock, and counts from the last byte that came in.
        """
        for below, found in self._tree.walk((), b"", b"", "clean"):
            now = found.seen or datetime.now(UTC)
            if not is_temporary(below[-1]) or found.modified is None:
                continue
            if now - found.modified >= older_than:
                location = self.place.location(below)
                self._delete(below, "clean", location)
                yield f"removed the unfinished upload {location}"

    def close(self) -> None:
        self._wire.close()

    # -- putting -------------------------------------------------------------------------

    def _send(
        self,
        temporary: Segments,
        source: Source,
        sha256: str,
        on_bytes: OnBytes | None,
        location: str,
    ) -> Member:
        """Upload under the temporary name; what the server then has there, and it is right."""
        lost: NoAnswer | None = None
        try:
            if not self._upload(temporary, source, sha256, on_bytes, location):
                # Somebody removed the collection that we remembered.
                self._tree.require_base("put")
                self._known.clear()
                self._make_collection(temporary[:-1], location)
                if not self._upload(temporary, source, sha256, on_bytes, location):
                    raise self._wire.failure(409, "PUT", "put", location)
        except _Unacknowledged as exc:
            lost = exc.reason
        found = self._look_after(lost, temporary, location)
        told = found.checksum if found and found.checksum else None
        proven = told is not None and told.kind == "sha256"
        wrong = ""
        if found is None or found.collection:
            wrong = "the server does not have what it acknowledged"
        elif found.size != source.size:
            wrong = f"the server has {found.size} bytes instead of the {source.size} sent"
        elif told is not None and proven and told.value != sha256:
            wrong = "what the server has does not have the SHA-256 of what was sent"
        if lost is not None and not wrong and not proven:
            # The size alone is no proof: some servers reserve it, and a gateway that gave up
            # may still be writing.
            digest = hashlib.sha256()
            with self._else(lost):
                for block in self._read(temporary, 0, None, "put", location):
                    digest.update(block)
            wrong = "" if digest.hexdigest() == sha256 else "it was not stored"
        if wrong and lost is not None:
            raise lost
        if wrong or found is None:
            raise self._wire.error(IntegrityError, f"{wrong}; upload it again", "put", location)
        return found

    def _upload(
        self,
        temporary: Segments,
        source: Source,
        sha256: str,
        on_bytes: OnBytes | None,
        location: str,
    ) -> bool:
        """One PUT. False when its collection is missing; `_Unacknowledged` when it may be done."""
        body = UploadBody(source, sha256, on_bytes)
        with contextlib.closing(body):
            if not source.size:
                body.read()  # nobody else would, and it might have grown
            try:
                with self._wire.request("PUT", temporary, "put", location, body=body) as response:
                    if response.status_code in (404, 409):
                        return False
                    self._wire.expect(response, _STORED, "put", location)
            except NoAnswer as exc:
                if not body.sent:
                    raise
                raise _Unacknowledged(exc) from exc
            body.report()
        return True

    def _move(self, temporary: Segments, below: Segments, size: int, location: str) -> None:
        """Give the upload its name, in the place of whatever object has it.

        First without replacing anything: MOVE onto a collection would delete all that is in
        it. Never repeated: some servers remove the target before they find the source missing.
        """
        status = self._try_move(temporary, below, size, location, overwrite="F")
        if status == 412:
            found = self._tree.look(below, "put", location)
            if found is not None and found.collection:
                raise self._wire.error(
                    HostError,
                    "a collection has that name on the server; it was left alone",
                    "put",
                    location,
                )
            status = self._try_move(temporary, below, size, location, overwrite="T")
        if status in (404, 409, 412):
            raise self._wire.error(
                HostUnavailable,
                f"the upload could not be moved to its name (status {status}); somebody changed "
                "the collection meanwhile",
                "put",
                location,
            )

    def _try_move(
        self, temporary: Segments, below: Segments, size: int, location: str, *, overwrite: str
    ) -> int:
        headers = {"Destination": self.place.request_url(below), "Overwrite": overwrite}
        try:
            with self._wire.request(
                "MOVE", temporary, "put", location, headers=headers
            ) as response:
                self._wire.expect(response, {*_STORED, 404, 409, 412}, "put", location)
                return response.status_code
        except NoAnswer as exc:
            with self._else(exc):
                there = self._tree.look(below, "put", location)
                moved = self._tree.look(temporary, "put", location) is None
            if not moved or there is None or there.collection or there.size != size:
                raise
            return 204

    def _require_name(self, below: Segments, location: str) -> None:
        """Some servers misread an encoded name in the header that says where to move."""
        if self._tree.look(below, "put", location) is None:
            raise self._wire.error(
                IntegrityError,
                "the server stored it under another name; use letters, digits, '.', '_' and '-'",
                "put",
                location,
            )

    def _look_after(self, lost: NoAnswer | None, below: Segments, location: str) -> Member | None:
        with self._else(lost):
            return self._tree.look(below, "put", location)

    @contextlib.contextmanager
    def _else(self, reason: NoAnswer | None) -> Iterator[None]:
        """While settling what became of a request: what goes wrong leaves it unanswered."""
        try:
            yield
        except HostError as exc:
            if reason is None:
                raise
            raise reason from exc

    def _make_collection(self, below: Segments, location: str) -> None:
        """Make a collection and those above it, unless they are there. Any number may race."""
        if not below or below in self._known:
            return
        for last_try in (False, True):
            with self._wire.request("MKCOL", below, "put", location, collection=True) as response:
                status = response.status_code
                if status in (408, 425, 429) or status >= 500:
                    self._wire.expect(response, (), "put", location)
            # 405 is what the standard wants for one that is there; servers differ.
            if status in (*_STORED, 405) or self._is_collection(below, location):
                break
            if status not in (404, 409) or last_try:
                raise self._wire.failure(status, "MKCOL", "put", location)
            if len(below) == 1:
                self._tree.require_base("put")
            self._known.discard(below[:-1])
            self._make_collection(below[:-1], location)
        self._known.add(below)

    def _is_collection(self, below: Segments, location: str) -> bool:
        found = self._tree.look(below, "put", location, collection=True)
        return found is not None and found.collection

    def _discard(self, temporary: Segments, location: str) -> None:
        """Remove what a failed upload left, if that can be had; else `clean` finds it."""
        with contextlib.suppress(HostError):  # the reason to fail is the one to report
            limit = min(_TIDYING, self.options.time_limit)
            self._delete(temporary, "put", location, time_limit=limit)

    # -- how -----------------------------------------------------------------------------

    def _delete(
        self, below: Segments, operation: str, location: str, *, time_limit: float | None = None
    ) -> None:
        with self._wire.request(
            "DELETE", below, operation, location, time_limit=time_limit
        ) as response:
            self._wire.expect(response, {200, 202, 204, 404, 410}, operation, location)

    def _info(self, key: str, found: Member, operation: str) -> ObjectInfo:
        location = self.location(key)
        if found.size is None:
            raise self._wire.error(
                HostError, "the server does not tell the size", operation, location
            )
        return ObjectInfo(
            location=location,
            key=key,
            size=found.size,
            checksum=found.checksum,
            modified=found.modified,
            etag=found.etag,
        )

    def _key(self, location: str) -> Segments | None:
        for place in (self.place, *self._aliases):
            below = place.below(location)
            if below is not None and not why_no_key("/".join(below)):
                return below
        return None

    def _below(self, location: str, operation: str) -> Segments:
        below = self._key(location)
        if below is None:
            raise self._wire.error(
                HostError, "the location is not on this host", operation, location
            )
        return below


class _Unacknowledged(Exception):
    """All of a file was sent, and no answer came."""

    def __init__(self, reason: NoAnswer) -> None:
        super().__init__(str(reason))
        self.reason = reason
