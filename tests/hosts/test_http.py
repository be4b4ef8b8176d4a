"""The read-only http host against real servers on the loopback, well behaved and not."""

from __future__ import annotations

import gzip
import http.server
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    HostError,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
    Unsupported,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.http import HttpHost
from cloudmanager.source import BytesSource

DATA = random.Random(1).randbytes(700_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA under /files/data; the first segment of other paths says how to misbehave."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        _, kind, *rest = self.path.split("?")[0].split("/")
        getattr(self, f"serve_{kind.replace('-', '_')}")("/".join(rest))

    def reply(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        sent: int = -1,
    ) -> None:
        headers = dict(headers or {})
        self.send_response(status)
        if headers.pop("no-length", None) is None:
            headers.setdefault("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent < 0 else body[:sent])
        if sent >= 0:
            self.close_connection = True

    def part(self) -> tuple[int, int] | None:
        value = self.headers.get("Range")
        if value is None:
            return None
        first, _, last = value.removeprefix("bytes=").partition("-")
        return int(first), min(int(last or len(DATA) - 1), len(DATA) - 1)

    def serve_files(self, name: str) -> None:
        if name != "data":
            return self.reply(404)
        headers = {
            "ETag": '"abc"',
            "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
            "Content-Disposition": "attachment; filename*=UTF-8''n%C3%A4me.bin",
        }
        part = self.part()
        if part is None:
            return self.reply(200, DATA, headers)
        first, last = part
        if first >= len(DATA):
            return self.reply(416, headers={"Content-Range": f"bytes */{len(DATA)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(DATA)}"
        return self.reply(206, DATA[first : last + 1], headers)

    def serve_no_ranges(self, name: str) -> None:
        self.reply(200, DATA)

    def serve_part_as_200(self, name: str) -> None:
        first, last = self.part() or (0, len(DATA) - 1)
        self.reply(
            200,
            DATA[first : last + 1],
            {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"},
        )

    def serve_wrong_part(self, name: str) -> None:
        self.reply(206, DATA[5:9], {"Content-Range": f"bytes 5-8/{len(DATA)}"})

    def serve_part_without_range(self, name: str) -> None:
        self.reply(206, DATA[:10])

    def serve_smaller_part(self, name: str) -> None:
        first, last = self.part() or (0, len(DATA) - 1)
        last = min(last, first + 9)
        self.reply(
            206, DATA[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"}
        )

    def serve_short(self, name: str) -> None:
        self.reply(200, DATA, sent=400_000)

    def serve_short_part(self, name: str) -> None:
        first, last = self.part() or (0, len(DATA) - 1)
        body = DATA[first : last + 1]
        self.reply(
            206, body, {"Content-Range": f"bytes {first}-{last}/{len(DATA)}"}, sent=len(body) - 1
        )

    def serve_lying_length(self, name: str) -> None:
        """The length of the body is right, but not that of the range it claims to be."""
        self.reply(206, DATA[:90], {"Content-Range": f"bytes 0-99/{len(DATA)}"})

    def serve_no_head(self, name: str) -> None:
        if self.command == "HEAD":
            return self.reply(int(name))
        return self.serve_files("data")

    def serve_no_head_no_ranges(self, name: str) -> None:
        self.reply(405 if self.command == "HEAD" else 200, DATA)

    def serve_no_size(self, name: str) -> None:
        self.reply(200, DATA, {"no-length": ""})

    def serve_empty(self, name: str) -> None:
        if self.command == "HEAD":
            return self.reply(405)
        if self.headers.get("Range"):
            return self.reply(416, headers={"Content-Range": "bytes */0"})
        return self.reply(200)

    def serve_status(self, name: str) -> None:
        self.reply(int(name), b"an explanation")

    def serve_gzip(self, name: str) -> None:
        self.reply(200, gzip.compress(DATA), {"Content-Encoding": "gzip"})

    def serve_hang(self, name: str) -> None:
        self.server.released.wait(30)

    def serve_hang_in_body(self, name: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA[:1000])
        self.wfile.flush()
        self.server.released.wait(30)
        self.close_connection = True

    def serve_reset(self, name: str) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def serve_to(self, target: str) -> None:
        self.reply(302, headers={"Location": self.server.targets[target]})

    def serve_steps(self, count: str) -> None:
        left = int(count)
        self.reply(302, headers={"Location": f"/steps/{left - 1}" if left > 1 else "/files/data"})

    def serve_cookie(self, name: str) -> None:
        self.reply(200, DATA, {"Set-Cookie": "session=secret; Path=/"})


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.released = threading.Event()
        self.targets: dict[str, str] = {}
        scheme = "http"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self.server_address[1]}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what these tests are about."""

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.stop()


Opener = Callable[..., HttpHost]


@pytest.fixture
def host_at() -> Iterator[Opener]:
    made: list[HttpHost] = []

    def open_at(url: str, **options: object) -> HttpHost:
        host = open_host(url, options)
        assert isinstance(host, HttpHost)
        made.append(host)
        return host

    yield open_at
    for host in made:
        host.close()


def read(host: HttpHost, path: str, **part: int) -> bytes:
    return b"".join(host.get(host.location(path), **part))


def test_a_file_is_read_whole(server: Server, host_at: Opener) -> None:
    assert read(host_at(server.url), "files/data") == DATA
    assert "Range" not in server.seen[0][2]
    assert server.seen[0][2]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("kind", ["files", "no-ranges", "part-as-200"])
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10), (5, 300_000), (699_990, 100), (10, None), (0, None), (7, 0)]
)
def test_a_range_is_right_however_the_server_answers_it(
    server: Server, host_at: Opener, kind: str, offset: int, length: int | None
) -> None:
    part = {"offset": offset} if length is None else {"offset": offset, "length": length}
    expected = DATA[offset:] if length is None else DATA[offset : offset + length]
    assert read(host_at(server.url), f"{kind}/data", **part) == expected


@pytest.mark.parametrize("kind", ["files", "no-ranges"])
def test_a_range_past_the_end_is_empty(server: Server, host_at: Opener, kind: str) -> None:
    assert read(host_at(server.url), f"{kind}/data", offset=len(DATA) + 5, length=3) == b""


@pytest.mark.parametrize("kind", ["wrong-part", "part-without-range"])
def test_another_part_than_asked_for_is_refused(server: Server, host_at: Opener, kind: str) -> None:
    with pytest.raises(IntegrityError):
        read(host_at(server.url), f"{kind}/data", offset=100, length=50)


@pytest.mark.parametrize("kind", ["short", "short-part", "smaller-part"])
def test_a_body_that_ends_early_is_an_error_worth_a_retry(
    server: Server, host_at: Opener, kind: str
) -> None:
    host = host_at(server.url)
    got = bytearray()
    with pytest.raises(HostUnavailable) as caught:
        for block in host.get(host.location(f"{kind}/data"), offset=10):
            got += block
    assert caught.value.retryable
    assert caught.value.operation == "get"
    assert DATA[10:].startswith(bytes(got))


def test_a_range_whose_body_has_another_length_is_an_error(server: Server, host_at: Opener) -> None:
    with pytest.raises(HostUnavailable, match="90 bytes instead of 100"):
        read(host_at(server.url), "lying-length/data", offset=0, length=100)


def test_stat_tells_size_date_tag_and_name(server: Server, host_at: Opener) -> None:
    host = host_at(f"{server.url}/files")
    info = host.stat(host.location("data"))
    assert (info.key, info.size, info.etag, info.filename) == ("data", len(DATA), "abc", "näme.bin")
    assert info.modified == datetime(2015, 10, 21, 7, 28, tzinfo=UTC)
    assert info.checksum is None
    assert [command for command, _, _ in server.seen] == ["HEAD"]


@pytest.mark.parametrize("status", [400, 401, 403, 405, 501])
def test_stat_asks_for_one_byte_where_head_is_refused(
    server: Server, host_at: Opener, status: int
) -> None:
    host = host_at(server.url)
    assert host.stat(host.location(f"no-head/{status}")).size == len(DATA)
    assert server.seen[-1][2]["Range"] == "bytes=0-0"


def test_stat_works_without_head_and_without_ranges(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    assert host.stat(host.location("no-head-no-ranges/x")).size == len(DATA)


def test_an_empty_file_is_a_file(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    assert host.stat(host.location("empty/x")).size == 0
    assert read(host, "empty/x") == b""
    assert read(host, "empty/x", offset=0, length=5) == b""


def test_stat_of_a_file_without_a_size_is_an_error(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    with pytest.raises(HostError, match="does not tell the size"):
        host.stat(host.location("no-size/x"))
    assert read(host, "no-size/x") == DATA


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (401, AccessDenied, False),
        (403, AccessDenied, False),
        (404, ObjectNotFound, False),
        (410, ObjectNotFound, False),
        (408, HostUnavailable, True),
        (429, HostUnavailable, True),
        (500, HostUnavailable, True),
        (503, HostUnavailable, True),
        (418, HostError, False),
        (204, HostError, False),
    ],
)
def test_every_status_has_its_error(
    server: Server, host_at: Opener, status: int, kind: type[HostError], retryable: bool
) -> None:
    host = host_at(server.url)
    location = host.location(f"status/{status}")
    for call in (lambda: list(host.get(location)), lambda: host.stat(location)):
        with pytest.raises(HostError) as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.retryable is retryable
        assert caught.value.location == location


def test_an_encoded_body_is_refused(server: Server, host_at: Opener) -> None:
    with pytest.raises(HostError, match="encoded") as caught:
        read(host_at(server.url), "gzip/x")
    assert not caught.value.retryable


@pytest.mark.parametrize("kind", ["hang", "hang-in-body"])
def test_silence_past_the_limit_is_an_error_worth_a_retry(
    server: Server, host_at: Opener, kind: str
) -> None:
    host = host_at(server.url)
    host.time_limit = 0.3
    with pytest.raises(HostUnavailable, match="no answer in time"):
        read(host, f"{kind}/x")


def test_a_reset_is_an_error_worth_a_retry(server: Server, host_at: Opener) -> None:
    with pytest.raises(HostUnavailable) as caught:
        read(host_at(server.url), "reset/x")
    assert caught.value.__cause__ is not None


def test_a_refused_connection_and_an_unknown_name_are_worth_a_retry(host_at: Opener) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = host_at(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(HostUnavailable, match="refused"):
            read(host, "x")
    with pytest.raises(HostUnavailable, match="cannot be resolved"):
        read(host_at("http://does-not-exist.invalid"), "x")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, key and certificate in one file."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture
def secure_server(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    made = Server(context)
    yield made
    made.stop()


def test_an_unknown_certificate_is_refused_for_good_and_a_ca_bundle_accepts_it(
    secure_server: Server, certificate: Path, host_at: Opener
) -> None:
    with pytest.raises(HostError, match="certificate") as caught:
        read(host_at(secure_server.url), "files/data")
    assert not caught.value.retryable
    assert read(host_at(secure_server.url, ca_bundle=str(certificate)), "files/data") == DATA


def test_a_redirect_from_https_to_http_is_not_followed(
    server: Server, secure_server: Server, certificate: Path, host_at: Opener
) -> None:
    secure_server.targets["plain"] = f"{server.url}/files/data"
    with pytest.raises(HostError, match="https to http"):
        read(host_at(secure_server.url, ca_bundle=str(certificate)), "to/plain")
    assert server.seen == []


def test_five_redirects_are_followed_and_not_six(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    assert read(host, "steps/5", offset=3, length=4) == DATA[3:7]
    with pytest.raises(HostError, match="redirects"):
        read(host, "steps/6")


def test_secret_headers_go_to_the_configured_server_only(server: Server, host_at: Opener) -> None:
    other = Server()
    try:
        server.targets["other"] = f"{other.url}/files/data"
        host = host_at(server.url, headers={"Authorization": "Bearer secret"})
        assert read(host, "to/other") == DATA
        assert server.seen[0][2]["Authorization"] == "Bearer secret"
        assert "Authorization" not in other.seen[0][2]
        assert "secret" not in repr(host.options)
    finally:
        other.stop()


def test_a_redirect_to_another_private_host_is_followed_only_when_allowed(
    server: Server, host_at: Opener
) -> None:
    server.targets["inside"] = server.url.replace("127.0.0.1", "localhost") + "/files/data"
    with pytest.raises(HostError, match="private address"):
        read(host_at(server.url), "to/inside")
    assert read(host_at(server.url, allow_private=True), "to/inside") == DATA


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/"]
)
def test_a_redirect_to_another_kind_of_url_is_not_followed(
    server: Server, host_at: Opener, target: str
) -> None:
    server.targets["odd"] = target
    with pytest.raises(HostError, match="redirect"):
        read(host_at(server.url), "to/odd")


def test_cookies_are_not_kept(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    read(host, "cookie/x")
    read(host, "cookie/x")
    assert "Cookie" not in server.seen[-1][2]


def test_a_password_in_netrc_is_not_sent(
    server: Server, host_at: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    read(host_at(server.url), "files/data")
    assert "Authorization" not in server.seen[0][2]


def test_the_query_of_a_signed_link_is_sent_but_shown_in_no_error(
    server: Server, host_at: Opener
) -> None:
    host = host_at(server.url)
    with pytest.raises(ObjectNotFound) as caught:
        host.stat(f"{server.url}/status/404?signature=hush")
    assert server.seen[0][1].endswith("?signature=hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "owned"),
    [
        ("http://example.org/base/a", True),
        ("http://EXAMPLE.org:80/base/a/b", True),
        ("http://example.org/b%61se/a%20b", True),
        ("http://example.org/base/a?x=1", True),
        ("http://example.org/base", False),
        ("http://example.org/base/", False),
        ("http://example.org/basement/a", False),
        ("http://example.org/base/../secret", False),
        ("http://example.org/base/%2e%2e/secret", False),
        ("http://example.org/base/./a", False),
        ("https://example.org/base/a", False),
        ("http://example.org:8080/base/a", False),
        ("http://example.com/base/a", False),
        ("http://user@example.org/base/a", False),
        ("http://example.org/base/a#part", False),
        ("http://example.org:port/base/a", False),
        ("s3://example.org/base/a", False),
        ("", False),
    ],
)
def test_it_owns_the_urls_below_its_base(host_at: Opener, location: str, owned: bool) -> None:
    host = host_at("http://example.org/base")
    assert host.owns(location) is owned
    if not owned:
        with pytest.raises(HostError, match="not on this host"):
            host.stat(location)


def test_a_key_of_any_characters_makes_a_location_that_is_owned(
    server: Server, host_at: Opener
) -> None:
    host = host_at(server.url)
    location = host.location("files/a b#?%é.txt")
    assert host.owns(location)
    with pytest.raises(ObjectNotFound):
        host.stat(location)
    assert server.seen[0][1] == "/files/a%20b%23%3F%25%C3%A9.txt"


def test_what_it_cannot_do_is_refused_before_any_io(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    calls: list[Callable[[], object]] = [
        lambda: host.put("k", BytesSource(b"x"), sha256="0" * 64),
        lambda: host.list(),
        lambda: host.delete([host.location("k")]),
        lambda: host.signed_url(host.location("k"), expires=timedelta(hours=1)),
    ]
    for call in calls:
        with pytest.raises(Unsupported):
            call()
    assert server.seen == []
    can = host.capabilities
    assert (can.put, can.list, can.delete) == (False, False, False)


def test_check_is_content_with_any_answer_but_a_refusal(server: Server, host_at: Opener) -> None:
    host_at(f"{server.url}/files").check()
    host_at(f"{server.url}/status/405").check()
    with pytest.raises(AccessDenied):
        host_at(f"{server.url}/status/403").check()
    with pytest.raises(HostUnavailable):
        host_at(f"{server.url}/status/503").check()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://user:password@example.org/", {}),
        ("http://example.org/?query=1", {}),
        ("http://example.org/#part", {}),
        ("http://", {}),
        ("http://example.org:port/", {}),
        ("http://example.org/", {"unknown": 1}),
        ("http://example.org/", {"ca_bundle": "/does/not/exist"}),
        ("http://example.org/", {"headers": "Authorization: x"}),
        ("http://example.org/", {"headers": {"A": "b\r\nC: d"}}),
    ],
)
def test_a_url_or_option_that_does_not_fit_is_refused(url: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_host(url, options)
    assert "password@" not in str(caught.value)


def test_many_threads_can_read_at_once(server: Server, host_at: Opener) -> None:
    from concurrent.futures import ThreadPoolExecutor

    host = host_at(server.url)
    with ThreadPoolExecutor(8) as pool:
        bodies = list(
            pool.map(lambda n: read(host, "files/data", offset=n, length=50_000), range(64))
        )
    assert bodies == [DATA[n : n + 50_000] for n in range(64)]


def test_a_reader_that_stops_early_lets_the_connection_go(server: Server, host_at: Opener) -> None:
    host = host_at(server.url)
    blocks = host.get(host.location("files/data"))
    assert next(blocks)
    blocks.close()  # type: ignore[attr-defined]
    assert read(host, "files/data", length=3) == DATA[:3]
