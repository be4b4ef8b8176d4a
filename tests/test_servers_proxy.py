"""Each fault of the proxy really happens, as its client sees it, and nothing else does."""

from __future__ import annotations

import http.client
import os
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from servers.process import free_port
from servers.proxy import (
    FaultProxy,
    hang,
    refuse,
    reset_before_reply,
    reset_mid_body,
    short_body,
    status,
    swallow_ack,
    wrong_bytes,
)
from servers.s3_server import S3Server

MIB = 1024 * 1024
MakeProxy = Callable[[str], FaultProxy]


@pytest.fixture(params=["moto_s3", "rclone_s3", "strict_s3"])
def s3(request: pytest.FixtureRequest) -> S3Server:
    server: S3Server = request.getfixturevalue(request.param)
    return server


class Echo(BaseHTTPRequestHandler):
    """Answers a GET with `content`, and any other method with what it was sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    content = bytes(range(256)) * 400
    got: list[tuple[str, bytes]]

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.reply(self.content)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.got.append((self.command, body))
        self.reply(body)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 1000):
                block = body[at : at + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            self.wfile.write(b"0\r\n\r\n")
            return
        if "endless" in self.path:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Connections that break are what the tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    handler = type("ThisEcho", (Echo,), {"got": []})
    server = Quiet(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    handler.port = server.server_port  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(echo: Any, fault_proxy: MakeProxy) -> FaultProxy:
    return fault_proxy(f"http://127.0.0.1:{echo.port}/base")


def connect(proxy: FaultProxy, timeout: float = 20) -> http.client.HTTPConnection:
    address = urlsplit(proxy.endpoint)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str = "/", body: Any = None
) -> tuple[int, bytes]:
    connection.request(method, path, body=body)
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_without_a_plan_everything_passes_on_one_connection(
    proxy: FaultProxy, echo: type[Echo]
) -> None:
    connection = connect(proxy)
    body = os.urandom(700_000)
    for _ in range(3):
        assert ask(connection, "GET", "/x?y=1") == (200, echo.content)
        assert ask(connection, "PUT", "/z", body) == (200, body)
        assert ask(connection, "GET", "/chunked") == (200, echo.content)
        assert ask(connection, "PUT", "/chunked", iter([b"one", b"two"])) == (200, b"onetwo")
        assert ask(connection, "HEAD", "/head") == (200, b"")
        assert ask(connection, "PUT", "/empty", b"") == (200, b"")
    assert proxy.connections == 1
    assert proxy.requests[:2] == [("GET", "/x?y=1"), ("PUT", "/z")]
    assert len(proxy.requests) == 18
    assert proxy.bytes_up == 3 * (len(body) + 6)
    assert proxy.bytes_down == 3 * (len(body) + 2 * len(echo.content) + 6)
    assert ask(connection, "GET", "/endless") == (200, echo.content)
    connection.close()
    proxy.until_idle()


def test_the_endpoint_keeps_the_path_of_the_server(proxy: FaultProxy) -> None:
    assert urlsplit(proxy.endpoint).path == "/base"


def test_a_client_that_waits_for_100_continue_gets_it(proxy: FaultProxy, echo: type[Echo]) -> None:
    for fault in (None, status(503)):
        if fault:
            proxy.plan(fault)
        with socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint).port or 0)) as raw:
            raw.settimeout(20)
            raw.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n")
            raw.sendall(b"Content-Length: 4\r\n\r\n")
            reader = raw.makefile("rb")
            assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert reader.readline() == b"\r\n"
            raw.sendall(b"data")
            assert reader.readline().split()[1] == (b"503" if fault else b"200")
    assert echo.got == [("PUT", b"data")]


def test_a_server_that_answers_before_the_body_is_heard(fault_proxy: MakeProxy) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse_early() -> None:
        server, _ = listener.accept()
        with server:
            while b"\r\n\r\n" not in server.recv(65536):
                continue
            server.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
            # Until the client is gone: closing with bytes unread would reset.
            while server.recv(65536):
                continue

    thread = threading.Thread(target=refuse_early)
    thread.start()
    proxy = fault_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint).port or 0)) as raw:
        raw.settimeout(20)
        raw.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 403")
    thread.join()
    listener.close()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_reset_before_the_reply_keeps_the_request_from_the_server(
    proxy: FaultProxy, echo: type[Echo], method: str
) -> None:
    proxy.plan(reset_before_reply)
    with pytest.raises(ConnectionResetError):
        ask(connect(proxy), method, body=b"data" if method == "PUT" else None)
    assert echo.got == []
    assert ask(connect(proxy), "PUT", body=b"data") == (200, b"data")


@pytest.mark.parametrize("path", ["/", "/chunked", "/endless"])
def test_a_reset_in_mid_body_comes_after_that_many_bytes(
    proxy: FaultProxy, echo: type[Echo], path: str
) -> None:
    proxy.plan(reset_mid_body(30_000))
    connection = connect(proxy)
    connection.request("GET", path)
    reply = connection.getresponse()
    got = bytearray()
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        while block := reply.read1(1000):
            got += block
    assert got == echo.content[:30_000]
    assert proxy.bytes_down == 30_000


def test_a_reset_takes_back_nothing_that_was_sent(proxy: FaultProxy, echo: type[Echo]) -> None:
    echo.content = os.urandom(8 * MIB)  # more than the buffers of a connection hold
    proxy.plan(reset_mid_body(6 * MIB))
    connection = connect(proxy)
    connection.request("GET", "/")
    reply = connection.getresponse()
    got = bytearray()
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        while block := reply.read1(65536):
            got += block
    assert got == echo.content[: 6 * MIB]


def test_a_reset_of_a_body_that_is_shorter_leaves_out_its_last_byte(
    proxy: FaultProxy, echo: type[Echo]
) -> None:
    proxy.plan(reset_mid_body(10**9))
    with pytest.raises(ConnectionResetError):
        ask(connect(proxy), "GET")
    assert proxy.bytes_down == len(echo.content) - 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_reset_in_mid_upload_is_seen_by_both_sides(
    proxy: FaultProxy, echo: type[Echo], chunked: bool
) -> None:
    body = os.urandom(3 * MIB)
    proxy.plan(reset_mid_body(MIB))
    blocks = (body[at : at + 65536] for at in range(0, len(body), 65536))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(connect(proxy), "PUT", body=blocks if chunked else body)
    proxy.until_idle()
    assert MIB <= proxy.bytes_up < len(body)
    assert all(len(got) < len(body) for _, got in echo.got)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_the_direction_of_a_reset_can_be_told(proxy: FaultProxy, direction: Any) -> None:
    proxy.plan(reset_mid_body(1000, direction))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask(connect(proxy), "PUT", body=b"x" * 5000)
    assert proxy.bytes_down == (1000 if direction == "down" else 0)


def test_a_status_is_the_answer_and_the_connection_lives(
    proxy: FaultProxy, echo: type[Echo]
) -> None:
    proxy.plan(status(503, b"<Error/>", {"Retry-After": "1"}), times=2)
    connection = connect(proxy)
    connection.request("PUT", "/", body=b"data")
    reply = connection.getresponse()
    assert (reply.status, reply.headers["Retry-After"], reply.read()) == (503, "1", b"<Error/>")
    assert ask(connection, "HEAD") == (503, b"")
    assert echo.got == []
    assert ask(connection, "PUT", body=b"data") == (200, b"data")
    assert proxy.connections == 1


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_wrong_bytes_are_as_many_and_all_wrong(
    proxy: FaultProxy, echo: type[Echo], path: str
) -> None:
    proxy.plan(wrong_bytes())
    connection = connect(proxy)
    code, got = ask(connection, "GET", path)
    assert (code, len(got)) == (200, len(echo.content))
    assert all(left != right for left, right in zip(got, echo.content, strict=True))
    assert ask(connection, "GET", path) == (200, echo.content)


def test_wrong_bytes_can_go_up(proxy: FaultProxy, echo: type[Echo]) -> None:
    proxy.plan(wrong_bytes("up"))
    ask(connect(proxy), "PUT", body=b"data")
    ((_, got),) = echo.got
    assert len(got) == 4
    assert got != b"data"


@pytest.mark.parametrize("path", ["/", "/chunked"])
def test_a_short_body_ends_with_a_clean_close(
    proxy: FaultProxy, echo: type[Echo], path: str
) -> None:
    proxy.plan(short_body())
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(connect(proxy), "GET", path)
    if path == "/":
        assert caught.value.partial == echo.content[: len(echo.content) // 2]


def test_a_swallowed_acknowledgement_means_the_server_has_it(
    proxy: FaultProxy, echo: type[Echo]
) -> None:
    proxy.plan(swallow_ack())
    with pytest.raises(http.client.RemoteDisconnected):
        ask(connect(proxy), "PUT", body=b"data")
    assert echo.got == [("PUT", b"data")]
    assert proxy.bytes_down == 0


def test_a_hang_is_silent_until_the_client_gives_up(proxy: FaultProxy, echo: type[Echo]) -> None:
    proxy.plan(hang(600))
    connection = connect(proxy, timeout=0.3)
    with pytest.raises(TimeoutError):
        ask(connection, "PUT", body=b"data")
    assert echo.got == []
    connection.close()
    proxy.until_idle()


def test_a_hang_ends_with_a_closed_connection(proxy: FaultProxy) -> None:
    proxy.plan(hang(0.05))
    with pytest.raises(http.client.RemoteDisconnected):
        ask(connect(proxy), "GET")


@pytest.mark.parametrize("match", [None, lambda *_: True])
def test_a_refused_connection_is_counted(proxy: FaultProxy, match: Any) -> None:
    proxy.plan(refuse(), times=3, match=match)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            ask(connect(proxy), "GET")
    assert ask(connect(proxy), "GET")[0] == 200
    assert proxy.connections == 4
    assert len(proxy.requests) == (1 if match is None else 4)


def test_down_cuts_what_is_open_and_up_lets_in_again(proxy: FaultProxy, echo: type[Echo]) -> None:
    connection = connect(proxy)
    assert ask(connection, "GET")[0] == 200
    proxy.down()
    for each in (connection, connect(proxy)):
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            ask(each, "GET")
    proxy.up()
    assert ask(connect(proxy), "GET") == (200, echo.content)


def test_plans_meet_their_requests_in_order_and_as_often_as_told(proxy: FaultProxy) -> None:
    first = proxy.plan(status(501), match=lambda _, path, __: path == "/a", times=2)
    second = proxy.plan(
        status(502), match=lambda *request: request[2].get("X-Y") == "z", times=None
    )
    connection = connect(proxy)
    seen = [ask(connection, "GET", path)[0] for path in ("/a", "/b", "/a", "/a")]
    assert seen == [501, 200, 501, 200]
    for _ in range(3):
        connection.request("GET", "/b", headers={"x-y": "z"})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 502
    assert (first.hits, second.hits) == (2, 3)
    proxy.clear()
    connection.request("GET", "/b", headers={"x-y": "z"})
    assert connection.getresponse().status == 200


class Clock:
    """Time that passes only while somebody sleeps."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_limit_lets_through_no_more_than_it_says(echo: Any, method: str) -> None:
    clock = Clock()
    proxy = FaultProxy(f"http://127.0.0.1:{echo.port}", clock=clock, sleep=clock.sleep)
    proxy.limit(1000)
    connection = connect(proxy)
    ask(connection, method, body=b"x" * 102_400 if method == "PUT" else None)
    # 50 ms are saved up, in each direction that is used.
    passed = proxy.bytes_up + proxy.bytes_down
    assert clock.now - 1000 >= max(proxy.bytes_up, proxy.bytes_down) / 1000 - 0.05
    assert clock.now - 1000 <= passed / 1000 + 0.001
    proxy.limit(None)
    before = clock.now
    ask(connection, "GET")
    assert clock.now == before
    proxy.close()


def test_a_server_that_closes_an_idle_connection_closes_it_for_the_client(
    fault_proxy: MakeProxy,
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = fault_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint).port or 0)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        server, _ = listener.accept()
        server.recv(65536)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200")
        server.close()
        assert select.select([raw], [], [], 20)[0] == [raw]
        assert raw.recv(1) == b""
    listener.close()


def test_a_client_that_goes_takes_its_upload_with_it(fault_proxy: MakeProxy) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = fault_proxy(f"http://127.0.0.1:{listener.getsockname()[1]}")
    with socket.create_connection(("127.0.0.1", urlsplit(proxy.endpoint).port or 0)) as raw:
        raw.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf of it")
        server, _ = listener.accept()
    server.settimeout(20)
    got = b""
    while block := server.recv(65536):
        got += block
    assert got.endswith(b"half of it")
    server.close()
    listener.close()
    proxy.until_idle()


def test_without_a_server_the_connection_is_cut(fault_proxy: MakeProxy) -> None:
    proxy = fault_proxy(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConnectionError):
        ask(connect(proxy), "GET")


def test_boto3_and_its_signatures_get_through(s3: S3Server, fault_proxy: MakeProxy) -> None:
    proxy = fault_proxy(s3.endpoint)
    client = S3Server(proxy.endpoint, s3.access_key, s3.secret_key).client()
    bucket = s3.make_bucket()
    body = os.urandom(100_000)
    client.put_object(Bucket=bucket, Key="k", Body=body)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    assert [method for method, _ in proxy.requests] == ["PUT", "GET"]
    assert proxy.bytes_up >= len(body)
    assert proxy.bytes_down == len(body)
