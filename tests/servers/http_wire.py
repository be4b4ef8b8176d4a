"""HTTP/1.1 as it is on the wire: heads and bodies, read from a socket block by block."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["BLOCK", "Broken", "Headers", "Request", "Response", "Stream", "chunk"]

BLOCK = 256 * 1024
"""Bytes taken from a socket at a time at most."""

_LARGEST_HEAD = 256 * 1024


class Broken(Exception):
    """The other side hung up in the middle of a message, or does not speak HTTP/1.1."""


class Headers(Mapping[str, str]):
    """Header fields; a name is found however it is spelled. Repeated ones are joined."""

    def __init__(self, lines: list[bytes]) -> None:
        self._fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon:
                raise Broken(f"no header field: {line[:80]!r}")
            key, value = name.strip().lower(), value.strip()
            self._fields[key] = f"{self._fields[key]},{value}" if key in self._fields else value

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def has(self, name: str, token: str) -> bool:
        """Whether a field that is a list of tokens has this one."""
        tokens = self.get(name, "").lower().split(",")
        return token in (each.strip() for each in tokens)

    @property
    def chunked(self) -> bool:
        return self.has("transfer-encoding", "chunked")

    @property
    def length(self) -> int | None:
        """Content-Length, in bytes."""
        text = self.get("content-length")
        if text is None:
            return None
        if not text.isdigit():
            raise Broken(f"no content length: {text[:80]!r}")
        return int(text)


@dataclass(frozen=True)
class Request:
    """The head of a request; `raw` is every byte of it as it came."""

    raw: bytes
    method: str
    target: str
    headers: Headers

    @property
    def has_body(self) -> bool:
        return self.headers.chunked or bool(self.headers.length)

    @property
    def expects_continue(self) -> bool:
        return self.headers.has("expect", "100-continue")

    @property
    def keeps_alive(self) -> bool:
        return not self.headers.has("connection", "close")


@dataclass(frozen=True)
class Response:
    """The head of a response; `raw` is every byte of it as it came."""

    raw: bytes
    version: str
    status: int
    headers: Headers

    @property
    def interim(self) -> bool:
        """Another response will follow, as after 100 Continue."""
        return 100 <= self.status < 200

    def has_body(self, method: str) -> bool:
        if method == "HEAD" or self.interim or self.status in (204, 304):
            return False
        return self.headers.length != 0 or self.headers.chunked

    @property
    def keeps_alive(self) -> bool:
        if self.version == "HTTP/1.0":
            return self.headers.has("connection", "keep-alive")
        return not self.headers.has("connection", "close")


def chunk(payload: bytes) -> bytes:
    """One chunk of a chunked body. An empty one would end it, and is nothing."""
    return b"%x\r\n%s\r\n" % (len(payload), payload) if payload else b""


class Stream:
    """What comes out of a socket, message by message."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()

    @property
    def buffered(self) -> bool:
        """Whether there is something to read without asking the socket."""
        return bool(self._buffer)

    def _fill(self) -> bool:
        data = self.sock.recv(BLOCK)
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _head(self) -> tuple[bytes, list[bytes]] | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LARGEST_HEAD:
                raise Broken("a head without end")
            if not self._fill():
                if self._buffer:
                    raise Broken("hung up within a head")
                return None
        raw = self._take(end + 4)
        return raw, raw[:-4].split(b"\r\n")

    def request(self) -> Request | None:
        """The next head of a request; None when the other side is done."""
        head = self._head()
        if head is None:
            return None
        raw, lines = head
        words = lines[0].decode("latin-1").split(" ")
        if len(words) != 3:
            raise Broken(f"no request line: {lines[0][:80]!r}")
        return Request(raw, words[0], words[1], Headers(lines[1:]))

    def response(self) -> Response:
        """The next head of a response."""
        head = self._head()
        if head is None:
            raise Broken("hung up instead of a response")
        raw, lines = head
        words = lines[0].decode("latin-1").split(" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise Broken(f"no status line: {lines[0][:80]!r}")
        return Response(raw, words[0], int(words[1]), Headers(lines[1:]))

    def block(self, limit: int = BLOCK) -> bytes:
        """At least one byte and at most `limit`; none when the other side is done."""
        if self._buffer:
            return self._take(min(limit, BLOCK))
        return self.sock.recv(min(limit, BLOCK))

    def line(self) -> bytes:
        """The next line, without its end."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LARGEST_HEAD:
                raise Broken("a line without end")
            if not self._fill():
                raise Broken("hung up within a line")
        return self._take(end + 2)[:-2]

    def sized(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, block by block."""
        while size:
            block = self.block(size)
            if not block:
                raise Broken("hung up within a body")
            size -= len(block)
            yield block

    def chunks(self, trailers: list[bytes]) -> Iterator[bytes]:
        """The payload of a chunked body; the lines after its end go to `trailers`."""
        while True:
            text = self.line().split(b";")[0].strip()
            try:
                size = int(text, 16)
            except ValueError as exc:
                raise Broken(f"no chunk size: {text[:80]!r}") from exc
            if size == 0:
                break
            yield from self.sized(size)
            if self.line():
                raise Broken("a chunk longer than it says")
        while line := self.line():
            trailers.append(line)

    def to_the_end(self) -> Iterator[bytes]:
        """Everything until the other side is done."""
        while block := self.block():
            yield block

    def body(self, headers: Headers, trailers: list[bytes]) -> Iterator[bytes]:
        """The payload of a body whose head says how it ends."""
        if headers.chunked:
            return self.chunks(trailers)
        if headers.length is not None:
            return self.sized(headers.length)
        return self.to_the_end()
