"""Judging the answers of an HTTP server: which bytes they hold, what went wrong and when."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from cloudmanager.errors import HostError, HostUnavailable, IntegrityError

if TYPE_CHECKING:
    import requests

__all__ = ["WrongAnswer", "body_of", "classify", "content_length", "content_range", "http_date"]

_BLOCK = 256 * 1024
_CONTENT_RANGE = re.compile(r"\s*bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)\s*\Z", re.IGNORECASE)


class WrongAnswer(Exception):
    """An answer that is not what was asked for. Never leaves a host: it becomes a `kind`."""

    def __init__(self, kind: type[HostError], message: str) -> None:
        super().__init__(message)
        self.kind = kind


def body_of(response: requests.Response, offset: int, length: int | None) -> Iterator[bytes]:
    """The bytes that were asked for, out of a part or of the whole file.

    Raises
    ------
    WrongAnswer
        When the answer holds another part, or does not end where it said it would.
    """
    first, last, total = content_range(response)
    if first is None and response.status_code == 206:
        raise WrongAnswer(IntegrityError, "the server sends a part without saying which")
    size = content_length(response)
    if first is not None and last is not None:
        # Some servers say 200 and send a part: the range counts, not the status.
        end = None if length is None else offset + length
        if first != offset or (end is not None and last >= end):
            raise WrongAnswer(IntegrityError, "the server sends another part than asked")
        goal = end if total is None else min(total, end if end is not None else total)
        if goal is not None and last + 1 < goal:
            raise WrongAnswer(HostUnavailable, "the server sends less than asked")
        skip, left = 0, last - first + 1
        expected: int | None = left
    else:
        skip = offset
        left = -1 if length is None else length
        expected = size
    got = 0
    for block in response.iter_content(_BLOCK):
        got += len(block)
        data = block
        if skip:
            data = block[skip:]
            skip -= len(block) - len(data)
        if left >= 0:
            data = data[:left]
            left -= len(data)
        if data:
            yield data
        if left == 0 and first is None:
            return  # the rest of the whole file was not asked for
    if expected is not None and got != expected:
        kind = HostUnavailable if got < expected else IntegrityError
        raise WrongAnswer(kind, f"the answer has {got} bytes instead of {expected}")


def content_length(response: requests.Response) -> int | None:
    """Bytes of the body, as far as a header tells them."""
    value = response.headers.get("Content-Length", "").strip()
    return int(value) if value.isascii() and value.isdigit() else None


def content_range(response: requests.Response) -> tuple[int | None, int | None, int | None]:
    """First and last byte and size of the whole, as far as Content-Range tells them."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        return None, None, None
    first, last, total = (int(each) if each and each != "*" else None for each in match.groups())
    return first, last, total


def http_date(value: str | None) -> datetime | None:
    """A date as HTTP writes it, in UTC; None when it cannot be read."""
    if not value:
        return None
    try:
        found = parsedate_to_datetime(value)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def classify(exc: Exception) -> tuple[type[HostError], str]:
    """What an exception of requests or urllib3 means."""
    import requests

    text = str(exc).lower()
    if isinstance(exc, requests.exceptions.SSLError):
        if "eof" in text or "reset" in text:
            return HostUnavailable, "the connection broke"
        return HostError, "the server's TLS certificate was not accepted; see the option ca_bundle"
    if isinstance(exc, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return HostError, "not a URL that can be fetched"
    if isinstance(exc, requests.Timeout) or "timed out" in text:
        return HostUnavailable, "no answer in time"
    if "resolve" in text or "name resolution" in text or "getaddrinfo" in text:
        return HostUnavailable, "the host name cannot be resolved"
    if "refused" in text:
        return HostUnavailable, "the connection was refused"
    return HostUnavailable, "the connection broke before the answer was complete"
