"""A TCP proxy between a real client and a real server that injects faults.

It reads HTTP/1.1 as far as it must to know where a message begins and ends (content
length, chunks, 100-continue, HEAD, keep-alive), and passes bodies on in large blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from servers.http_wire import Broken, Request, Response, Stream, chunk
from servers.process import free_port

__all__ = [
    "Fault",
    "FaultProxy",
    "Plan",
    "hang",
    "refuse",
    "reset_before_reply",
    "reset_mid_body",
    "short_body",
    "status",
    "swallow_ack",
    "wrong_bytes",
]

Direction: TypeAlias = Literal["up", "down"]
Match: TypeAlias = Callable[[str, str, Mapping[str, str]], bool]

_INVERTED = bytes(255 - value for value in range(256))
_SNDQ_DARWIN = 0x1024  # SO_NWRITE of macOS: bytes of the send buffer not yet sent


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Made by the functions below."""

    kind: str
    after: int = 0
    direction: Direction | None = None
    seconds: float = 0.0
    code: int = 0
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def reset_before_reply() -> Fault:
    """The request is read to its end, never reaches the server, and the connection is reset."""
    return Fault("reset_before_reply")


def reset_mid_body(after_bytes: int, direction: Direction | None = None) -> Fault:
    """The connection is reset when `after_bytes` of a body have passed.

    Of the request's body ("up") if it is longer than that, else of the response's ("down"),
    unless `direction` says which. A body too short for it is reset before its last byte.
    """
    return Fault("reset_mid_body", after=after_bytes, direction=direction)


def status(code: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Fault:
    """The request is read to its end, never reaches the server, and this is the answer."""
    return Fault("status", code=code, body=body, headers=dict(headers or {}))


def wrong_bytes(direction: Direction = "down") -> Fault:
    """Every byte of the response's body (or of the request's, "up") is inverted."""
    return Fault("wrong_bytes", direction=direction)


def short_body() -> Fault:
    """Half of the response's body, then the connection is closed as if that were all.

    The head promises the whole. An answer without a body passes as it is.
    """
    return Fault("short_body")


def swallow_ack() -> Fault:
    """The server gets the request and answers; the client sees the connection closed."""
    return Fault("swallow_ack")


def hang(seconds: float) -> Fault:
    """The request is read to its end, never reaches the server, and nothing comes back.

    After `seconds` the connection is closed.
    """
    return Fault("hang", seconds=seconds)


def refuse() -> Fault:
    """The connection is reset at once; without `match` before any request is read."""
    return Fault("refuse")


@dataclass
class Plan:
    """A fault that waits for its requests. `hits` says how many it met."""

    fault: Fault
    match: Match | None
    times: int | None
    hits: int = 0


class _Bucket:
    """Lets a number of bytes a second pass, over all connections."""

    def __init__(
        self, rate: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._due = clock()

    def take(self, size: int) -> None:
        with self._lock:
            now = self._clock()
            # At most 50 ms are saved up: a pause is not followed by a flood.
            self._due = max(self._due, now - 0.05) + size / self._rate
            wait = self._due - now
        if wait > 0:
            self._sleep(wait)


class FaultProxy:
    """A proxy in front of `upstream` ("http://127.0.0.1:PORT/path"). Thread-safe.

    `endpoint` is the same address through the proxy. `bytes_up` and `bytes_down` count the
    payload of bodies as read from the client and as sent to it, `connections` every
    connection, refused ones too, and `requests` holds method and target of each request.
    """

    def __init__(
        self,
        upstream: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None or parts.port is None:
            raise ValueError(f"not an http endpoint with a port: {upstream}")
        self.server = (parts.hostname, parts.port)
        self.bytes_up = 0
        self.bytes_down = 0
        self.connections = 0
        self.requests: list[tuple[str, str]] = []
        self._bucket = functools.partial(_Bucket, clock=clock, sleep=sleep)
        self._lock = threading.Lock()
        self._plans: list[Plan] = []
        self._down = False
        self._buckets: dict[Direction, _Bucket] = {}
        self._open: set[socket.socket] = set()
        self._closed = False
        port = free_port()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.endpoint = f"http://127.0.0.1:{port}{parts.path}"
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._acceptor.start()

    # -- what a test says ----------------------------------------------------------------

    def plan(
        self,
        fault: Fault | Callable[[], Fault],
        *,
        match: Match | None = None,
        times: int | None = 1,
    ) -> Plan:
        """Let `fault` happen to the next `times` requests (None: to all) that `match`.

        `match` is asked with method, target (path and query) and header fields, whose names
        are found in any spelling. Of several plans the first one made is met first.
        """
        plan = Plan(fault if isinstance(fault, Fault) else fault(), match, times)
        with self._lock:
            self._plans.append(plan)
        return plan

    def clear(self) -> None:
        """Forget every plan."""
        with self._lock:
            self._plans.clear()

    def down(self) -> None:
        """Cut every connection, and reset each new one, until `up`."""
        with self._lock:
            self._down = True
            open_now = list(self._open)
        for sock in open_now:
            _hang_up(sock)

    def up(self) -> None:
        with self._lock:
            self._down = False

    def limit(self, bytes_per_second: float | None) -> None:
        """Let so many payload bytes a second pass in each direction; None: as many as can."""
        with self._lock:
            self._buckets = (
                {}
                if bytes_per_second is None
                else {"up": self._bucket(bytes_per_second), "down": self._bucket(bytes_per_second)}
            )

    def until_idle(self, within: float = 30.0) -> None:
        """Wait until every connection has ended; TimeoutError after `within` seconds.

        What a client had sent when it was killed still arrives afterwards, out of the buffers
        of its connections: count bytes before and after only when they are empty.
        """
        deadline = time.monotonic() + within
        while True:
            with self._lock:
                if not self._open:
                    return
                count = len(self._open)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count} connections are still open")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with self._lock:
            self._closed = True
            open_now = list(self._open)
        # Closing alone would leave the acceptor blocked on Linux, shutting down on macOS.
        _hang_up(self._listener)
        with contextlib.suppress(OSError):  # it may have seen the other one already
            socket.create_connection(self._listener.getsockname(), timeout=1).close()
        self._acceptor.join()
        self._listener.close()
        for sock in open_now:
            _hang_up(sock)

    # -- what its connections ask --------------------------------------------------------

    def passed(self, direction: Direction, size: int) -> None:
        """Count a block, and wait as long as the limit wants."""
        with self._lock:
            if direction == "up":
                self.bytes_up += size
            else:
                self.bytes_down += size
            bucket = self._buckets.get(direction)
        if bucket is not None:
            bucket.take(size)

    def fault_for(self, request: Request) -> Fault | None:
        """Note a request, and take the first plan that is for it."""
        with self._lock:
            self.requests.append((request.method, request.target))
            for plan in self._plans:
                if plan.times is not None and plan.hits >= plan.times:
                    continue
                if plan.match is None or plan.match(
                    request.method, request.target, request.headers
                ):
                    plan.hits += 1
                    return plan.fault
        return None

    def _refuses(self) -> bool:
        if self._down:
            return True
        for plan in self._plans:
            if plan.fault.kind == "refuse" and plan.match is None:
                if plan.times is not None and plan.hits >= plan.times:
                    continue
                plan.hits += 1
                return True
        return False

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                continue  # the client has gone already
            with self._lock:
                if self._closed:
                    client.close()
                    return
                self.connections += 1
                refused = self._refuses()
                if not refused:
                    self._open.add(client)
            if refused:
                _reset(client)
                continue
            threading.Thread(
                target=self._serve, args=(client,), name="fault-proxy", daemon=True
            ).start()

    def _serve(self, client: socket.socket) -> None:
        connection = _Connection(self, client)
        try:
            connection.run()
        except Broken:
            # One side hung up in the middle of something: `close` does it to the other.
            return
        except OSError:
            _linger_not(client)
        finally:
            with self._lock:
                self._open.discard(client)
            connection.close()


class _Reset(Exception):
    """The connection is to be reset now."""


class _Early(Exception):
    """The server answers although it has not got the whole request."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Connection:
    """One client's connection, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._proxy = proxy
        self._client = Stream(client)
        self._upstream: Stream | None = None

    def close(self) -> None:
        self._client.sock.close()
        if self._upstream is not None:
            self._upstream.sock.close()

    def run(self) -> None:
        while self._stays_open() and (request := self._client.request()) is not None:
            fault = self._proxy.fault_for(request)
            try:
                if not self._exchange(request, fault or Fault("none")):
                    return
            except _Reset:
                _sent(self._client.sock)
                _linger_not(self._client.sock)
                return

    def _stays_open(self) -> bool:
        """Wait for the next request. A server that hangs up meanwhile does it for both."""
        if self._upstream is None or self._client.buffered:
            return True
        readable, _, _ = select.select([self._client.sock, self._upstream.sock], [], [])
        return self._upstream.sock not in readable

    def _exchange(self, request: Request, fault: Fault) -> bool:
        """Serve one request; whether the connection can take another one."""
        if fault.kind == "refuse":
            raise _Reset
        if fault.kind in ("reset_before_reply", "status", "hang"):
            self._take_request(request)
            if fault.kind == "reset_before_reply":
                raise _Reset
            if fault.kind == "hang":
                self._be_silent(fault.seconds)
                return False
            self._answer(request, fault)
            return request.keeps_alive
        response, whole = self._send_request(request, fault)
        if fault.kind == "swallow_ack":
            for _ in self._response_body(request, response, []):
                continue
            return False
        complete = self._pass_response(request, response, fault)
        return whole and complete and request.keeps_alive and response.keeps_alive

    # -- the request ---------------------------------------------------------------------

    def _take_request(self, request: Request) -> None:
        """Read a request that never reaches the server."""
        if request.expects_continue:
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.has_body:
            for block in self._client.body(request.headers, []):
                self._proxy.passed("up", len(block))

    def _send_request(self, request: Request, fault: Fault) -> tuple[Response, bool]:
        """Pass a request on; the head of its response, and whether all of it was sent."""
        if self._upstream is None:
            sock = socket.create_connection(self._proxy.server)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._upstream = Stream(sock)
        server = self._upstream
        server.sock.sendall(request.raw)
        if request.has_body:
            try:
                self._send_body(request, fault, server)
            except _Early as early:
                return early.response, False
        self._until_server_answers(server)
        while (response := server.response()).interim:
            self._client.sock.sendall(response.raw)
        return response, True

    def _send_body(self, request: Request, fault: Fault, server: Stream) -> None:
        trailers: list[bytes] = []
        blocks = self._client.body(request.headers, trailers)
        left = _cut(fault, "up", request.headers.length)
        invert = fault.kind == "wrong_bytes" and fault.direction == "up"
        length, read = request.headers.length, 0
        # Not past the end: an answer to the whole request would look early there.
        while request.headers.chunked or length is None or read < length:
            self._until_client_sends(server)
            block = next(blocks, None)
            if block is None:
                break
            read += len(block)
            self._proxy.passed("up", len(block))
            if left is not None:
                if len(block) >= left:
                    server.sock.sendall(_framed(request, block[:left]))
                    raise _Reset
                left -= len(block)
            if invert:
                block = block.translate(_INVERTED)
            server.sock.sendall(_framed(request, block))
        if request.headers.chunked:
            if left is not None:
                raise _Reset
            server.sock.sendall(_last_chunk(trailers))

    def _until_client_sends(self, server: Stream) -> None:
        """Wait for more of the request; pass on what the server says before it has it all."""
        while not self._client.buffered:
            readable, _, _ = select.select([self._client.sock, server.sock], [], [])
            if server.sock not in readable:
                return
            response = server.response()
            if not response.interim:
                raise _Early(response)
            self._client.sock.sendall(response.raw)

    def _until_server_answers(self, server: Stream) -> None:
        """Wait for the response, but not for a client that has gone."""
        if server.buffered:
            return
        readable, _, _ = select.select([self._client.sock, server.sock], [], [])
        if server.sock not in readable and not self._client.sock.recv(1, socket.MSG_PEEK):
            raise Broken("the client hung up")

    # -- the response --------------------------------------------------------------------

    def _response_body(
        self, request: Request, response: Response, trailers: list[bytes]
    ) -> Iterator[bytes]:
        assert self._upstream is not None
        if not response.has_body(request.method):
            return iter(())
        return self._upstream.body(response.headers, trailers)

    def _pass_response(self, request: Request, response: Response, fault: Fault) -> bool:
        """Pass a response on; whether all of it was."""
        client = self._client.sock
        has_body = response.has_body(request.method)
        left = _cut(fault, "down", response.headers.length if has_body else 0)
        if left is not None and not has_body:
            raise _Reset
        if fault.kind == "short_body" and has_body:
            left = (response.headers.length or 0) // 2
        trailers: list[bytes] = []
        client.sendall(response.raw)
        for block in self._response_body(request, response, trailers):
            whole = left is None or len(block) < left
            if not whole:
                block = block[:left]
            elif left is not None:
                left -= len(block)
            if fault.kind == "wrong_bytes" and fault.direction == "down":
                block = block.translate(_INVERTED)
            self._proxy.passed("down", len(block))
            client.sendall(_framed(response, block))
            if not whole:
                break
        if fault.kind == "short_body" and has_body:
            return False
        if left is not None:
            raise _Reset
        if has_body and response.headers.chunked:
            client.sendall(_last_chunk(trailers))
        return True

    def _answer(self, request: Request, fault: Fault) -> None:
        try:
            reason = http.HTTPStatus(fault.code).phrase
        except ValueError:
            reason = "Planned"
        fields = {"Content-Length": str(len(fault.body)), **fault.headers}
        if fault.code in (204, 304):
            del fields["Content-Length"]
        lines = [f"HTTP/1.1 {fault.code} {reason}", *(f"{k}: {v}" for k, v in fields.items())]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        body = b"" if request.method == "HEAD" or fault.code in (204, 304) else fault.body
        self._proxy.passed("down", len(body))
        self._client.sock.sendall(head + body)

    def _be_silent(self, seconds: float) -> None:
        """Wait, but not for a client that has gone."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([self._client.sock], [], [], left)
            if readable:
                return


def _cut(fault: Fault, direction: Direction, length: int | None) -> int | None:
    """After how many bytes of a body the connection is to be reset; None: not in this one."""
    if fault.kind != "reset_mid_body":
        return None
    if fault.direction is None:
        # A body of unknown length may be long enough.
        # Not in this body of the request: then in that of the response. One of unknown length
        # may be long enough.
        if direction == "up" and length is not None and length <= fault.after:
            return None
    elif fault.direction != direction:
        return None
    return fault.after if length is None else max(0, min(fault.after, length - 1))


def _framed(message: Request | Response, payload: bytes) -> bytes:
    return chunk(payload) if message.headers.chunked else payload


def _last_chunk(trailers: list[bytes]) -> bytes:
    return b"0\r\n" + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"


def _sent(sock: socket.socket, within: float = 5.0) -> None:
    """Wait until the other side has got what was sent: a reset throws the rest away."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and _unsent(sock):
        time.sleep(0.001)


def _unsent(sock: socket.socket) -> int:
    if sys.platform == "darwin":
        return sock.getsockopt(socket.SOL_SOCKET, _SNDQ_DARWIN)
    waiting: int = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    return waiting


def _linger_not(sock: socket.socket) -> None:
    """Let closing the socket reset the connection."""
    with contextlib.suppress(OSError):  # it is closed already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _reset(sock: socket.socket) -> None:
    _linger_not(sock)
    sock.close()


def _hang_up(sock: socket.socket) -> None:
    """Close both directions, which wakes whoever waits for the socket."""
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)
