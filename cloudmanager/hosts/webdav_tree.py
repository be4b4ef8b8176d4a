"""What lies on a WebDAV server: one resource, or all files below a collection in order."""

from __future__ import annotations

from collections.abc import Iterator

from cloudmanager.errors import ContainerNotFound, HostError, HostUnavailable
from cloudmanager.hosts.http_answers import http_date
from cloudmanager.hosts.webdav_answers import ASK, Member, members
from cloudmanager.hosts.webdav_place import Place, Segments
from cloudmanager.hosts.webdav_wire import Wire

__all__ = ["Tree", "raw_key"]

_BLOCK = 64 * 1024
_LARGEST_LOOK = 1024 * 1024
_LARGEST_LISTING = 512 * 1024 * 1024
"""Bytes of XML about one collection: more than half a million members, at 1 KiB for each."""
_DEEPEST = 100


class Tree:
    """Looks at what is below a `place`. Thread-safe."""

    def __init__(self, place: Place, wire: Wire) -> None:
        self._place = place
        self._wire = wire

    def look(
        self,
        below: Segments,
        operation: str,
        location: str,
        *,
        collection: bool = False,
        question: bytes = ASK,
    ) -> Member | None:
        """What is there, None when nothing is."""
        found = None
        # To its end, so that the connection can serve the next request.
        for _, member in self._propfind(
            below, operation, location, depth=0, collection=collection, question=question
        ):
            found = member
        return found

    def _propfind(
        self,
        below: Segments,
        operation: str,
        location: str,
        *,
        depth: int,
        collection: bool,
        question: bytes = ASK,
    ) -> Iterator[tuple[Segments, Member]]:
        """What the server says of a resource (and its members); nothing when it is not there.

        An answer that does not name the resource itself is an error: else a server behind a
        proxy that changes its paths would seem to be empty.
        """
        headers = {"Depth": str(depth), "Content-Type": 'application/xml; charset="utf-8"'}
        with self._wire.request(
            "PROPFIND",
            below,
            operation,
            location,
            collection=collection,
            headers=headers,
            body=question,
        ) as response:
            if response.status_code in (404, 410):
                return
            self._wire.expect(response, {207}, operation, location)
            seen = http_date(response.headers.get("Date"))
            asked = self._place.request_url(below, collection=collection)
            itself = False
            blocks = response.iter_content(_BLOCK)
            limit = _LARGEST_LISTING if depth else _LARGEST_LOOK
            for member in members(blocks, limit=limit, seen=seen):
                name = self._place.href(member.href, asked)
                if name is None or name[: len(below)] != below or len(name) > len(below) + depth:
                    continue
                itself = itself or name == below
                if member.status in (404, 410):
                    continue  # gone since the server began to answer
                if member.status != 200:
                    there = self._place.request_url(name)
                    raise self._wire.failure(member.status, "PROPFIND", operation, there)
                yield name, member
            if not itself:
                raise self._wire.error(
                    HostError,
                    "the server answers about other paths than the one asked for; is a proxy "
                    "in front of it that changes them?",
                    operation,
                    location,
                )

    def require_base(self, operation: str, question: bytes = ASK) -> Member:
        url = self._place.url
        found = self.look((), operation, url, collection=True, question=question)
        if found is None:
            raise self._wire.error(
                ContainerNotFound, "there is no such collection; make it first", operation, url
            )
        if not found.collection:
            raise self._wire.error(
                ContainerNotFound, "what is there is no collection", operation, url
            )
        return found

    def walk(
        self,
        start: Segments,
        prefix: bytes,
        after: bytes,
        operation: str,
        *,
        depth: int = 0,
    ) -> Iterator[tuple[Segments, Member]]:
        """Files below `start`, in the order of their keys' bytes.

        Level by level: many servers refuse ``Depth: infinity``, and its answer knows no
        order. A collection sorts as its name and a slash (``a.txt`` before ``a/b``), so that
        the whole keys come out in their order.
        """
        location = self._place.request_url(start, collection=True)
        found: dict[bytes, tuple[Segments, Member]] = {}
        is_collection = False
        for below, member in self._propfind(start, operation, location, depth=1, collection=True):
            if below == start:
                is_collection = member.collection
                continue
            key = raw_key("/".join(below)) + (b"/" if member.collection else b"")
            found[key] = (below, member)
        if not is_collection:
            self.require_base(operation)
            if depth:  # it was one a moment ago: a short list must not pass for a whole one
                raise self._wire.error(
                    HostUnavailable,
                    "a collection went away while it was listed; list again",
                    operation,
                    location,
                )
            return
        if depth > _DEEPEST:
            raise self._wire.error(
                HostError, "collections are nested too deeply", operation, location
            )
        for key in sorted(found):
            below, member = found[key]
            if not member.collection:
                if key.startswith(prefix) and key > after:
                    yield below, member
                continue
            # All keys below `key` start with it: they can only be past `after` when the
            # collection sorts after it, or `after` lies inside it.
            fits = key.startswith(prefix) or prefix.startswith(key)
            if fits and (key > after or after.startswith(key)):
                yield from self.walk(below, prefix, after, operation, depth=depth + 1)


def raw_key(text: str) -> bytes:
    """The bytes of a key, by which listings are ordered."""
    return text.encode("utf-8", "surrogateescape")
