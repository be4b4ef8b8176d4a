"""Reading the answer to PROPFIND (RFC 4918): what a server says of a collection's members.

The XML is read as it arrives. Of a listing nothing is kept but the properties we want, so
its memory is that of the members, however the server spells them. It comes from somebody
else: a document type (where entities come from), an answer without end and elements without
bottom are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from xml.parsers import expat

from cloudmanager.errors import HostError, HostUnavailable
from cloudmanager.hosts.http_answers import WrongAnswer, http_date
from cloudmanager.model import Checksum

__all__ = ["ASK", "ASK_RIGHTS", "Member", "members"]

_DAV = "DAV: "
_OC = "http://owncloud.org/ns "
_PROPERTIES = "<d:resourcetype/><d:getcontentlength/><d:getlastmodified/><d:getetag/>"


def _question(more: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns">'
        f"<d:prop>{_PROPERTIES}{more}</d:prop></d:propfind>"
    ).encode()


ASK = _question("<oc:checksums/>")
"""The properties of an object or a collection's members."""

ASK_RIGHTS = _question("<d:current-user-privilege-set/>")
"""What we may do with a collection as well, where the server says so (RFC 3744)."""

_DEEPEST = 64
_ENDED_EARLY = {
    expat.errors.codes[each]
    for each in (
        expat.errors.XML_ERROR_NO_ELEMENTS,
        expat.errors.XML_ERROR_UNCLOSED_TOKEN,
        expat.errors.XML_ERROR_PARTIAL_CHAR,
        expat.errors.XML_ERROR_UNCLOSED_CDATA_SECTION,
    )
}
_LONGEST_TEXT = 64 * 1024
_WANTED = {
    f"{_DAV}href",
    f"{_DAV}status",
    f"{_DAV}getcontentlength",
    f"{_DAV}getlastmodified",
    f"{_DAV}getetag",
    f"{_OC}checksums",
}
_STATUS = re.compile(r"\s*HTTP/\d(?:\.\d)?\s+(\d{3})\b")
# In the order in which we would rather have them. Adler-32, which some send, proves nothing.
_CHECKSUMS = {"SHA256": ("sha256", 64), "SHA1": ("sha1", 40), "MD5": ("md5", 32)}
_SUM = re.compile(r"([A-Za-z0-9]+):([0-9A-Fa-f]+)\Z")


@dataclass(frozen=True, slots=True)
class Member:
    """One resource of an answer. `status` is what the server says of it: 200, 403, 404, …

    `rights` are the names of the privileges (such as ``DAV: write``), None when the server
    does not tell. `seen` is when it was so, by the server's clock.
    """

    href: str
    status: int
    collection: bool
    size: int | None
    modified: datetime | None
    etag: str | None
    checksum: Checksum | None
    rights: frozenset[str] | None
    seen: datetime | None


def members(
    blocks: Iterable[bytes], *, limit: int, seen: datetime | None = None
) -> Iterator[Member]:
    """The resources of a multi-status answer, each as soon as it is complete.

    `limit` is the most bytes that the answer may have.

    Raises
    ------
    WrongAnswer
        When it is not such an answer, has a document type, is too long, or ends early.
    """
    reader = _Reader(seen)
    parser = expat.ParserCreate(namespace_separator=" ")
    # Joins the pieces of a text, within bounds of its own.
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.refuse
    parser.EntityDeclHandler = reader.refuse
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    total = 0
    try:
        for block in blocks:
            total += len(block)
            if total > limit:
                raise WrongAnswer(HostError, f"the answer has more than {limit} bytes of XML")
            parser.Parse(block, False)
            yield from reader.take()
        parser.Parse(b"", True)
    except expat.ExpatError as exc:
        if exc.code in _ENDED_EARLY:
            raise WrongAnswer(HostUnavailable, "the answer ended early") from exc
        raise WrongAnswer(
            HostError, "the answer is not the XML of a WebDAV server; is the URL right?"
        ) from exc
    yield from reader.take()
    if not reader.is_multistatus:
        raise WrongAnswer(HostError, "the answer is not the XML of a WebDAV server")


class _Reader:
    """Collects members from the events of the parser."""

    def __init__(self, seen: datetime | None) -> None:
        self._seen = seen
        self.is_multistatus = False
        self._path: list[str] = []
        self._done: list[Member] = []
        self._text: list[str] | None = None
        self._length = 0
        self._response: dict[str, str] = {}
        self._refused: list[int] = []
        self._begin_propstat()

    def take(self) -> list[Member]:
        done, self._done = self._done, []
        return done

    def refuse(self, *_: object) -> None:
        raise WrongAnswer(HostError, "the answer holds a document type, which is refused")

    def start(self, name: str, _: object) -> None:
        if not self._path:
            self.is_multistatus = name == f"{_DAV}multistatus"
        self._path.append(name)
        if len(self._path) > _DEEPEST:
            raise WrongAnswer(HostError, "the answer is nested too deeply")
        if name == f"{_DAV}response" and len(self._path) == 2:
            self._response, self._refused = {}, []
            self._collection = False
            self._rights: set[str] | None = None
        elif name == f"{_DAV}propstat":
            self._begin_propstat()
        elif name in _WANTED:
            self._text, self._length = [], 0
        elif self._path[-2:] == [f"{_DAV}resourcetype", f"{_DAV}collection"]:
            self._found["collection"] = "yes"
        elif name == f"{_DAV}current-user-privilege-set":
            self._found["rights"] = ""
        elif self._path[-2:-1] == [f"{_DAV}privilege"] and "rights" in self._found:
            self._found["rights"] += f"{name}\n"

    def text(self, data: str) -> None:
        if self._text is None:
            return
        self._length += len(data)
        if self._length > _LONGEST_TEXT:
            raise WrongAnswer(HostError, "the answer holds a property that is too long")
        self._text.append(data)

    def end(self, name: str) -> None:
        self._path.pop()
        depth = len(self._path)
        if name in _WANTED and self._text is not None:
            value = "".join(self._text).strip()
            self._text = None
            if depth == 2:  # multistatus, response: of the resource as a whole
                self._response[name] = value
            elif name != f"{_DAV}href":  # those within properties are something else
                self._found[name] = value
        elif name == f"{_OC}checksum" and self._text is not None:
            self._text.append(" ")
        elif name == f"{_DAV}propstat":
            self._end_propstat()
        elif name == f"{_DAV}response" and depth == 1:
            self._end_response()

    def _begin_propstat(self) -> None:
        self._found: dict[str, str] = {}

    def _end_propstat(self) -> None:
        status = _status(self._found.pop(f"{_DAV}status", ""))
        if status == 200:
            self._collection = self._collection or "collection" in self._found
            if "rights" in self._found:
                self._rights = set(self._found["rights"].split("\n")) - {""}
            self._response.update(self._found)
        elif status != 404:  # 404: a property that this resource does not have
            self._refused.append(status)
        self._begin_propstat()

    def _end_response(self) -> None:
        found = self._response
        href = found.get(f"{_DAV}href")
        if href is None:
            raise WrongAnswer(HostError, "the answer names a resource without its address")
        status = _status(found[f"{_DAV}status"]) if f"{_DAV}status" in found else 200
        size = found.get(f"{_DAV}getcontentlength", "")
        is_size = size.isascii() and size.isdigit()
        if status == 200 and not is_size and not self._collection and self._refused:
            status = self._refused[0]  # what it refuses to tell is what we need
        etag = found.get(f"{_DAV}getetag", "").removeprefix("W/").strip('"')
        self._done.append(
            Member(
                href=href,
                status=status,
                collection=self._collection,
                size=int(size) if is_size else None,
                modified=http_date(found.get(f"{_DAV}getlastmodified")),
                etag=etag or None,
                checksum=_checksum(found.get(f"{_OC}checksums", "")),
                rights=None if self._rights is None else frozenset(self._rights),
                seen=self._seen,
            )
        )


def _status(line: str) -> int:
    match = _STATUS.match(line)
    if match is None:
        raise WrongAnswer(HostError, "the answer holds a status that cannot be read")
    return int(match.group(1))


def _checksum(text: str) -> Checksum | None:
    """The best of ``SHA1:… MD5:… ADLER32:…``."""
    found: dict[str, str] = {}
    for word in text.split():
        if match := _SUM.match(word):
            found[match.group(1).upper().replace("-", "")] = match.group(2).lower()
    for name, (kind, digits) in _CHECKSUMS.items():
        if len(found.get(name, "")) == digits:
            return Checksum(kind, found[name])
    return None
