"""The WebDAV host when the network fails, and when the server is broken or hostile."""

from __future__ import annotations

import http.server
import random
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import test_http
from hosts.test_webdav import CREDENTIALS, DATA, files, make_host, put, read, seen
from manager.world import sha

from cloudmanager.errors import (
    AccessDenied,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.http_answers import WrongAnswer
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.hosts.webdav import WebdavHost
from cloudmanager.hosts.webdav_answers import members
from cloudmanager.hosts.webdav_place import TEMPORARY
from cloudmanager.model import Checksum
from cloudmanager.retry import Backoff, Policy, Retrier
from cloudmanager.source import BytesSource
from servers.proxy import (
    Fault,
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
from servers.webdav import PASSWORD, WebdavServer, host_url

TRANSIENT: dict[str, Callable[[], Fault]] = {
    "a reset before the reply": reset_before_reply,
    "a refused connection": refuse,
    "503": lambda: status(503),
    "500": lambda: status(500),
    "502": lambda: status(502),
    "429": lambda: status(429),
    "423": lambda: status(423),
}
LASTING: dict[int, type[HostError]] = {
    401: AccessDenied,
    403: AccessDenied,
    507: HostFull,
    501: HostError,
    400: HostError,
    302: HostError,
}


def is_(*methods: str) -> Callable[[str, str, Any], bool]:
    return lambda method, _path, _headers: method in methods


@pytest.fixture(params=["rclone_webdav", "wsgidav"])
def server(request: pytest.FixtureRequest) -> WebdavServer:
    found: WebdavServer = request.getfixturevalue(request.param)
    return found


class Behind:
    """A host whose requests go through a proxy, and the folder that the server serves."""

    def __init__(self, server: WebdavServer, proxy: FaultProxy) -> None:
        self.collection = server.make_collection()
        self.folder = server.directory / self.collection
        self.proxy = proxy
        self.direct = make_host(server, self.collection)
        seen(self.direct.check)
        self.host = self.new()

    def new(self, **options: Any) -> WebdavHost:
        url = host_url(self.proxy.endpoint, self.collection)
        made = open_host(url, {**CREDENTIALS, **options}, name="dav")
        assert isinstance(made, WebdavHost)
        return made

    def count(self, method: str) -> int:
        return sum(1 for each, _ in self.proxy.requests if each == method)


@pytest.fixture
def behind(server: WebdavServer, fault_proxy: Callable[[str], FaultProxy]) -> Iterator[Behind]:
    made = Behind(server, fault_proxy(server.endpoint))
    yield made
    made.host.close()
    made.direct.close()


@pytest.mark.parametrize("method", ["MKCOL", "PUT", "PROPFIND", "MOVE"])
@pytest.mark.parametrize("fault", list(TRANSIENT))
def test_a_put_that_fails_in_passing_is_retryable_and_leaves_nothing(
    behind: Behind, fault: str, method: str
) -> None:
    plan = behind.proxy.plan(TRANSIENT[fault](), match=is_(method))
    with pytest.raises(HostUnavailable) as caught:
        put(behind.host, "6f/x", DATA)
    assert caught.value.retryable
    assert plan.hits == 1
    assert files(behind.folder) == {}
    assert read(behind.host, put(behind.host, "6f/x", DATA)) == DATA


@pytest.mark.parametrize("fault", list(TRANSIENT))
def test_looking_and_deleting_that_fail_in_passing_are_retryable(
    behind: Behind, fault: str
) -> None:
    location = put(behind.host, "6f/x", DATA)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("PROPFIND", lambda: behind.host.stat(location)),
        ("PROPFIND", lambda: list(behind.host.list())),
        ("PROPFIND", behind.host.check),
        ("GET", lambda: next(behind.host.get(location))),
        ("DELETE", lambda: behind.host.delete([location])),
    ]
    for method, call in calls:
        behind.proxy.plan(TRANSIENT[fault](), match=is_(method))
        with pytest.raises(HostUnavailable) as caught:
            call()
        assert caught.value.retryable
    assert files(behind.folder) == {"6f/x": DATA}


@pytest.mark.parametrize("code", list(LASTING))
@pytest.mark.parametrize("method", ["PUT", "MOVE", "MKCOL"])
def test_what_lasts_is_not_retryable(behind: Behind, code: int, method: str) -> None:
    behind.proxy.plan(
        status(code, headers={"Location": "http://elsewhere.example/x"} if code == 302 else None),
        match=is_(method),
    )
    with pytest.raises(LASTING[code]) as caught:
        put(behind.host, "6f/x", DATA)
    assert not caught.value.retryable
    assert PASSWORD not in str(caught.value)
    assert files(behind.folder) == {}


@pytest.mark.parametrize("method", ["PUT", "MOVE", "PROPFIND", "GET"])
def test_a_server_that_says_nothing_is_unavailable_after_the_time_limit(
    behind: Behind, method: str
) -> None:
    host = behind.new(time_limit=0.5)
    put(behind.direct, "6f/there", DATA)
    behind.proxy.plan(hang(60), match=is_(method), times=None)
    with pytest.raises(HostUnavailable, match="no answer in time"):
        put(host, "6f/x", DATA) if method != "GET" else read(host, host.location("6f/there"))
    host.close()


def test_a_file_whose_sending_breaks_off_is_not_stored(behind: Behind) -> None:
    behind.proxy.plan(reset_mid_body(300_000, "up"), match=is_("PUT"))
    with pytest.raises(HostUnavailable):
        put(behind.host, "6f/x", DATA * 10)
    # Not all of it was sent: there is nothing to settle.
    assert behind.count("MOVE") == behind.count("PROPFIND") == 0
    with pytest.raises(ObjectNotFound):
        behind.direct.stat(behind.direct.location("6f/x"))
    assert list(behind.direct.list()) == []


def test_a_lost_acknowledgement_of_the_upload_is_settled_by_looking(behind: Behind) -> None:
    plan = behind.proxy.plan(swallow_ack(), match=is_("PUT"))
    location = put(behind.host, "6f/x", DATA)
    assert plan.hits == 1
    assert behind.count("PUT") == 1
    assert files(behind.folder) == {"6f/x": DATA}
    # Read back only where the server's own checksum does not say it all.
    told = behind.host.stat(location).checksum
    assert behind.count("GET") == (1 if told is None else 0)


def test_an_unacknowledged_upload_of_the_right_size_and_wrong_bytes_is_not_stored(
    wsgidav: WebdavServer, fault_proxy: Callable[[str], FaultProxy]
) -> None:
    behind = Behind(wsgidav, fault_proxy(wsgidav.endpoint))
    spoiled: list[Path] = []

    def spoil(method: str, path: str, _: Any) -> bool:
        if method == "PROPFIND" and TEMPORARY in path:
            spoiled.extend(behind.folder.rglob(f"{TEMPORARY}*"))
            for each in spoiled:
                each.write_bytes(bytes(255 - byte for byte in DATA))
        return False

    behind.proxy.plan(swallow_ack(), match=is_("PUT"))
    behind.proxy.plan(refuse(), match=spoil, times=None)
    with pytest.raises(HostUnavailable):
        put(behind.host, "6f/x", DATA)
    assert len(spoiled) == 1
    assert files(behind.folder) == {}


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_lost_acknowledgement_of_the_move_is_settled_by_looking(
    behind: Behind, there: bool
) -> None:
    if there:
        put(behind.direct, "6f/x", b"damaged")
    behind.proxy.plan(
        swallow_ack(),
        match=lambda method, _path, headers: (
            method == "MOVE" and headers.get("Overwrite") == ("T" if there else "F")
        ),
    )
    put(behind.host, "6f/x", DATA)
    assert behind.count("PUT") == 1
    assert files(behind.folder) == {"6f/x": DATA}


def test_a_move_that_never_arrived_is_not_taken_for_done(behind: Behind) -> None:
    damaged = bytes(len(DATA))
    put(behind.direct, "6f/x", damaged)
    behind.proxy.plan(
        reset_before_reply(),
        match=lambda method, _path, headers: method == "MOVE" and headers.get("Overwrite") == "T",
    )
    with pytest.raises(HostUnavailable):
        put(behind.host, "6f/x", DATA)
    assert files(behind.folder) == {"6f/x": damaged}


def test_a_lost_acknowledgement_that_cannot_be_settled_stays_retryable(behind: Behind) -> None:
    behind.proxy.plan(swallow_ack(), match=is_("MOVE"))
    propfinds = iter([False, True])
    behind.proxy.plan(
        status(403), match=lambda method, *_: method == "PROPFIND" and next(propfinds)
    )
    with pytest.raises(HostUnavailable):
        put(behind.host, "6f/x", DATA)
    assert behind.count("PUT") == 1


@pytest.mark.parametrize("method", ["MKCOL", "DELETE"])
def test_lost_acknowledgements_of_the_rest_go_well_the_second_time(
    behind: Behind, method: str
) -> None:
    policy = Policy(Backoff(initial=0.01, factor=1.0, maximum=0.01), max_retries=2)
    host = RetryingHost(behind.host, Retrier(policy))
    behind.proxy.plan(swallow_ack(), match=is_(method))
    location = put(host, "6f/x", DATA)
    assert files(behind.folder) == {"6f/x": DATA}
    host.delete([location])
    assert files(behind.folder) == {}


def test_bytes_that_change_on_the_way_up_are_found_where_the_server_hashes(
    rclone_webdav: WebdavServer, fault_proxy: Callable[[str], FaultProxy]
) -> None:
    behind = Behind(rclone_webdav, fault_proxy(rclone_webdav.endpoint))
    behind.proxy.plan(wrong_bytes("up"), match=is_("PUT"))
    with pytest.raises(IntegrityError, match="SHA-256"):
        put(behind.host, "6f/x", DATA)
    assert files(behind.folder) == {}


@pytest.mark.parametrize("part", [{}, {"offset": 10}, {"offset": 5, "length": 600_000}], ids=str)
@pytest.mark.parametrize(
    "fault", [short_body, lambda: reset_mid_body(200_000, "down")], ids=["short", "reset"]
)
def test_an_answer_that_ends_early_is_never_taken_for_whole(
    behind: Behind, fault: Callable[[], Fault], part: dict[str, int]
) -> None:
    location = put(behind.host, "6f/x", DATA)
    behind.proxy.plan(fault(), match=is_("GET"))
    with pytest.raises(HostUnavailable) as caught:
        read(behind.host, location, **part)
    assert caught.value.retryable
    assert (caught.value.operation, caught.value.location) == ("get", location)


@pytest.mark.parametrize("fault", [short_body, lambda: reset_mid_body(300, "down")])
def test_a_listing_that_ends_early_is_never_a_short_one(
    behind: Behind, fault: Callable[[], Fault]
) -> None:
    for name in range(5):
        put(behind.host, f"6f/{name}", b"x")
    for skipped in (0, 1):  # of the collection itself, and of the one below it
        left = iter([False] * skipped + [True] + [False] * 9)
        behind.proxy.plan(fault(), match=lambda *_, left=left: next(left))
        with pytest.raises(HostUnavailable):
            list(behind.host.list())
        behind.proxy.clear()


@pytest.mark.parametrize("code", [403, 500, 404, 200])
def test_a_listing_is_never_short_where_one_collection_fails(behind: Behind, code: int) -> None:
    put(behind.host, "6f/x", b"x")
    put(behind.host, "7a/x", b"x")
    behind.proxy.plan(status(code), match=lambda _method, path, _headers: path.endswith("/7a/"))
    listing = behind.host.list()
    assert next(listing).key == "6f/x"
    with pytest.raises(HostError):
        next(listing)


# -- servers that are broken or hostile ----------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says: `answers` by method, a function of the handler."""

    protocol_version = "HTTP/1.1"
    server: Fake

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def _any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        code, headers, body = self.server.answers[self.command](self)
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_PROPFIND = do_MOVE = do_MKCOL = do_DELETE = _any


class Fake(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[Any], tuple[int, dict[str, str], bytes]]] = {}
        self.netloc = f"127.0.0.1:{self.server_port}"
        self.host = open_host(f"webdav+http://{self.netloc}/dav", CREDENTIALS, name="dav")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def say(self, method: str, code: int, body: bytes = b"", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[method] = lambda _: (code, named, body)


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.host.close()
    made.shutdown()
    made.server_close()


def multistatus(*responses: str, head: str = "") -> bytes:
    return (
        f'<?xml version="1.0"?>{head}<D:multistatus xmlns:D="DAV:" '
        f'xmlns:oc="http://owncloud.org/ns">{"".join(responses)}</D:multistatus>'
    ).encode()


def resource(href: str, properties: str = "", code: str = "200 OK") -> str:
    return (
        f"<D:response><D:href>{href}</D:href><D:propstat><D:prop>{properties}</D:prop>"
        f"<D:status>HTTP/1.1 {code}</D:status></D:propstat></D:response>"
    )


COLLECTION = "<D:resourcetype><D:collection/></D:resourcetype>"
FILE = "<D:resourcetype/><D:getcontentlength>3</D:getcontentlength>"
ROOT = resource("/dav/", COLLECTION)


def test_addresses_of_another_place_are_left_out_and_each_key_comes_once(fake: Fake) -> None:
    fake.say(
        "PROPFIND",
        207,
        multistatus(
            resource("/dav/b", FILE),
            resource(f"http://{fake.netloc}/dav/a%20a", FILE),
            ROOT,
            resource("/dav/b", FILE),
            *(
                resource(href, FILE)
                for href in ("/dav/../x", "/etc/passwd", "http://elsewhere/dav/c", "/dav/c%2Fd")
            ),
            resource("/dav/deep/er", FILE),
            "<D:response><D:href>/dav/gone</D:href><D:status>HTTP/1.1 404 Gone</D:status>"
            "</D:response>",
        ),
    )
    assert [info.key for info in fake.host.list()] == ["a a", "b"]


@pytest.mark.parametrize(
    ("body", "message", "retryable"),
    [
        (multistatus(ROOT, head='<!DOCTYPE x [<!ENTITY e "&#47;">]>'), "document type", False),
        (
            multistatus(ROOT, head='<!DOCTYPE x SYSTEM "file:///etc/passwd">'),
            "document type",
            False,
        ),
        (b"<html>It works!</html>", "not the XML of a WebDAV", False),
        (b"Hello", "not the XML of a WebDAV", False),
        (multistatus(ROOT)[:-5], "ended early", True),
        (b"", "ended early", True),
        (multistatus(), "other paths than the one asked for", False),
        (multistatus(resource("/other/", COLLECTION)), "other paths", False),
        (multistatus(ROOT, resource("/dav/x", FILE, "403 Forbidden")), "not allow", False),
        (multistatus(ROOT, resource("/dav/x", FILE, "500 Oh")), "status 500", True),
        (multistatus(ROOT, resource("/dav/x", "<D:resourcetype/>")), "tell the size", False),
        (multistatus(ROOT, resource("/dav/x", FILE.replace("3", "-3"))), "tell the size", False),
        (multistatus(ROOT, resource("/dav/x", FILE, "nonsense")), "cannot be read", False),
        (multistatus(ROOT, "<D:response/>"), "without its address", False),
        (multistatus(ROOT, "<D:x>" * 100 + "</D:x>" * 100), "nested too deeply", False),
        (multistatus(resource("/dav/" + "x" * 70_000)), "too long", False),
        (multistatus(ROOT) * 2, "not the XML", False),
        (multistatus(ROOT, "&unknown;"), "not the XML", False),
    ],
)
def test_an_answer_that_is_no_good_is_an_error_and_no_empty_listing(
    fake: Fake, body: bytes, message: str, retryable: bool
) -> None:
    fake.say("PROPFIND", 207, body)
    with pytest.raises(HostError, match=message) as caught:
        list(fake.host.list())
    assert caught.value.retryable is retryable
    assert "\n" not in str(caught.value)


def test_an_answer_without_end_is_cut_off() -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield multistatus(ROOT)[: -len("</D:multistatus>")]
        while True:
            taken += 1
            yield b" " * 1000

    with pytest.raises(WrongAnswer, match="more than 10000 bytes"):
        list(members(endless(), limit=10_000))
    assert taken < 20


def test_answers_are_read_the_same_however_they_are_cut() -> None:
    body = multistatus(
        ROOT,
        resource(
            "/dav/&#252;&amp;<![CDATA[<]]>",
            FILE
            + "<D:getetag>W/&quot;e&quot;</D:getetag><oc:checksums><oc:checksum>MD5:"
            + "0a" * 16
            + " ADLER32:1234</oc:checksum><oc:checksum>SHA1:"
            + "AB" * 20
            + "</oc:checksum></oc:checksums>"
            "<D:getlastmodified>Wed, 21 Oct 2015 07:28:00 GMT</D:getlastmodified>",
        ),
        "<D:response><D:href>/dav/n</D:href><D:propstat><D:prop>"
        + COLLECTION
        + "<D:x><D:href>/dav/no</D:href></D:x></D:prop><D:status>HTTP/1.1 200 OK</D:status>"
        "</D:propstat><D:propstat><D:prop><D:getetag>x</D:getetag></D:prop>"
        "<D:status>HTTP/1.1 404 Not Found</D:status></D:propstat></D:response>",
    )
    whole = list(members([body], limit=10**6))
    assert [each.href for each in whole] == ["/dav/", "/dav/ü&<", "/dav/n"]
    assert [each.collection for each in whole] == [True, False, True]
    assert (whole[1].etag, whole[1].size) == ("e", 3)
    assert whole[1].checksum == Checksum("sha1", "ab" * 20)
    assert whole[1].modified is not None
    assert whole[1].modified.isoformat() == "2015-10-21T07:28:00+00:00"
    assert whole[2].etag is None
    generator = random.Random(3)
    for _ in range(50):
        cuts = sorted(generator.sample(range(len(body)), 6))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert list(members(pieces, limit=10**6)) == whole


def test_a_server_that_ignores_ranges_still_gives_the_right_bytes(fake: Fake) -> None:
    fake.say("GET", 200, DATA)
    location = fake.host.location("x")
    got = b"".join(fake.host.get(location, offset=300_000, length=1000))
    assert got == DATA[300_000:301_000]
    assert b"".join(fake.host.get(location, offset=699_999)) == DATA[699_999:]
    assert b"".join(fake.host.get(location, offset=700_000)) == b""


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"Content_Range": "bytes 6-15/700000"}, IntegrityError),
        ({"Content_Range": "bytes 5-20/700000"}, IntegrityError),
        ({"Content_Range": "bytes 5-9/700000"}, HostUnavailable),
        ({}, IntegrityError),
        ({"Content_Range": "bytes 5-14/700000", "Content_Encoding": "gzip"}, HostError),
    ],
)
def test_a_part_that_was_not_asked_for_is_refused(
    fake: Fake, headers: dict[str, str], kind: type[HostError]
) -> None:
    fake.say("GET", 206, DATA[5:15], **headers)
    with pytest.raises(kind):
        b"".join(fake.host.get(fake.host.location("x"), offset=5, length=10))


@pytest.mark.parametrize("method", ["GET", "PROPFIND"])
def test_credentials_are_never_sent_to_where_a_redirect_leads(fake: Fake, method: str) -> None:
    other = Fake()
    try:
        other.say(method, 200, b"secret of another server")
        fake.say(method, 302, Location=f"http://{other.netloc}/dav/x")
        with pytest.raises(HostError, match=r"redirects .* was not followed") as caught:
            if method == "GET":
                next(fake.host.get(fake.host.location("x")))
            else:
                fake.host.stat(fake.host.location("x"))
        assert not caught.value.retryable
        assert other.netloc in str(caught.value)
        assert other.seen == []
    finally:
        other.host.close()
        other.shutdown()
        other.server_close()


certificate = test_http.certificate


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_an_unknown_certificate_is_refused_for_good_unless_the_options_say_otherwise(
    certificate: Path,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Fake(context)
    try:
        server.say("PROPFIND", 207, multistatus(ROOT))
        url = f"webdav+https://{server.netloc}/dav"
        strict = open_host(url, CREDENTIALS)
        with pytest.raises(HostError, match="certificate") as caught:
            strict.check()
        assert not caught.value.retryable
        assert server.seen == []
        for options in ({"ca_bundle": str(certificate)}, {"verify_tls": False}):
            host = open_host(url, {**CREDENTIALS, **options})
            host.check()
            host.close()
        strict.close()
    finally:
        server.shutdown()
        server.server_close()


def test_a_redirect_on_the_same_server_is_followed_but_not_for_ever(fake: Fake) -> None:
    fake.answers["GET"] = lambda handler: (
        (200, {}, b"abc")
        if handler.path == "/elsewhere"
        else (307, {"Location": "/elsewhere"}, b"")
    )
    assert b"".join(fake.host.get(fake.host.location("x"))) == b"abc"
    assert all("Authorization" in headers for _, _, headers in fake.seen)
    fake.say("GET", 302, Location="/dav/x")
    with pytest.raises(HostError, match="more than 5 redirects"):
        next(fake.host.get(fake.host.location("x")))


@pytest.mark.parametrize("method", ["PUT", "MOVE", "DELETE", "MKCOL"])
def test_what_writes_is_never_redirected(fake: Fake, method: str) -> None:
    fake.say("PROPFIND", 404)
    fake.say("PUT", 201)
    fake.say("MKCOL", 201)
    fake.say("DELETE", 204)
    fake.answers["PROPFIND"] = lambda handler: (
        207,
        {},
        multistatus(resource(handler.path, FILE if method != "MKCOL" else "")),
    )
    fake.say(method, 307, Location="/dav/elsewhere")
    with pytest.raises(HostError, match=r"redirects|status 307"):
        if method == "DELETE":
            fake.host.delete([fake.host.location("a/x")])
        else:
            fake.host.put("a/x", BytesSource(b"abc"), sha256=sha(b"abc"))
    assert all("elsewhere" not in path for _, path, _ in fake.seen)


def test_an_upload_that_the_server_cut_short_is_never_moved_to_its_name(fake: Fake) -> None:
    fake.say("PUT", 201)
    fake.say("DELETE", 204)
    fake.answers["PROPFIND"] = lambda handler: (207, {}, multistatus(resource(handler.path, FILE)))
    with pytest.raises(IntegrityError, match="3 bytes instead of the 4 sent"):
        fake.host.put("x", BytesSource(b"four"), sha256=sha(b"four"))
    assert [method for method, _, _ in fake.seen] == ["PUT", "PROPFIND", "DELETE"]


@pytest.mark.parametrize(
    ("properties", "kind", "message"),
    [
        (FILE, ContainerNotFound, "no collection"),
        (
            f"{COLLECTION}<D:current-user-privilege-set><D:privilege><D:read/></D:privilege>"
            "</D:current-user-privilege-set>",
            AccessDenied,
            "only read",
        ),
    ],
)
def test_a_check_says_what_is_wrong(
    fake: Fake, properties: str, kind: type[HostError], message: str
) -> None:
    fake.say("PROPFIND", 207, multistatus(resource("/dav/", properties)))
    with pytest.raises(kind, match=message):
        fake.host.check()


@pytest.mark.parametrize(
    "rights",
    [
        "",
        "<D:privilege><D:all/></D:privilege>",
        "<D:privilege><D:read/></D:privilege><D:privilege><D:bind/></D:privilege>",
    ],
)
def test_a_check_is_content_with_a_collection_that_may_be_written(fake: Fake, rights: str) -> None:
    given = f"<D:current-user-privilege-set>{rights}</D:current-user-privilege-set>"
    fake.say("PROPFIND", 207, multistatus(resource("/dav/", COLLECTION + given)))
    fake.host.check()
    assert fake.seen[0][2]["Depth"] == "0"


@pytest.mark.parametrize("code", [405, 501, 200])
def test_a_server_without_webdav_is_said_to_be_that(fake: Fake, code: int) -> None:
    fake.say("PROPFIND", code, b"<html/>")
    with pytest.raises(HostError, match="is the URL that of a WebDAV collection") as caught:
        fake.host.check()
    assert not caught.value.retryable


def test_no_request_ever_asks_for_more_than_one_level(behind: Behind) -> None:
    put(behind.host, "6f/x/y", b"x")
    depths: set[str | None] = set()

    def note(method: str, _path: str, headers: Any) -> bool:
        if method == "PROPFIND":
            depths.add(headers.get("Depth"))
        return False

    behind.proxy.plan(refuse(), match=note, times=None)
    assert [info.key for info in behind.host.list()] == ["6f/x/y"]
    behind.host.check()
    assert depths == {"0", "1"}
