"""The S3 host behind a proxy that breaks what passes: no wrong byte, and the right error."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from cloudmanager.errors import (
    AccessDenied,
    HostError,
    HostFull,
    HostUnavailable,
    ObjectNotFound,
)
from cloudmanager.hosts.base import Host
from cloudmanager.hosts.s3 import S3Host
from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.model import Checksum
from cloudmanager.source import BytesSource
from servers import proxy as faults

MIB = 1024 * 1024
SIZES = [9, 2 * MIB, 33 * MIB]
SMALL_AND_MIDDLE = SIZES[:2]


class Behind:
    """A host that reaches its server through a proxy, and one that reaches it directly."""

    def __init__(self, server: Any, proxy: Any, time_limit: float = 20.0) -> None:
        self.proxy = proxy
        self.bucket = server.make_bucket()
        self.raw = server.client()
        options = {
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "region": "us-east-1",
        }

        def open_at(endpoint: str) -> S3Host:
            parsed = S3Options.parse("store", {**options, "endpoint_url": endpoint})
            return S3Host("store", f"s3://{self.bucket}/pool", parsed, time_limit=time_limit)

        self.host = open_at(proxy.endpoint)
        self.direct = open_at(server.endpoint)

    def put(self, key: str, data: bytes) -> Any:
        return self.host.put(key, BytesSource(data), sha256=hashlib.sha256(data).hexdigest())

    def arrange(self, key: str, data: bytes) -> str:
        self.raw.put_object(Bucket=self.bucket, Key=f"pool/{key}", Body=data)
        return self.host.location(key)

    def content(self, key: str) -> bytes:
        return read(self.direct, self.direct.location(key))

    def exists(self, key: str) -> bool:
        try:
            self.direct.stat(self.direct.location(key))
        except ObjectNotFound:
            return False
        return True


@pytest.fixture
def behind(moto_s3: Any, fault_proxy: Any) -> Behind:
    return Behind(moto_s3, fault_proxy(moto_s3.endpoint))


@pytest.fixture
def behind_strict(strict_s3: Any, fault_proxy: Any) -> Behind:
    return Behind(strict_s3, fault_proxy(strict_s3.endpoint))


@pytest.fixture
def impatient(moto_s3: Any, fault_proxy: Any) -> Behind:
    return Behind(moto_s3, fault_proxy(moto_s3.endpoint), time_limit=1.0)


def read(host: Host, location: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(host.get(location, offset=offset, length=length))


def xml(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


def method(wanted: str, containing: str = "") -> Callable[[str, str, Any], bool]:
    return lambda name, path, _headers: name == wanted and containing in path


def every_call(behind: Behind) -> list[Callable[[], object]]:
    location = behind.arrange("k", b"0123456789")
    host = behind.host
    return [
        host.check,
        lambda: host.stat(location),
        lambda: read(host, location),
        lambda: read(host, location, 2, 3),
        lambda: list(host.list()),
        lambda: behind.put("new", b"x"),
        lambda: behind.put("new name", b"x"),
        lambda: behind.put("new", bytes(2 * MIB)),
        lambda: behind.put("new", bytes(33 * MIB)),
        lambda: host.delete([location]),
        lambda: host.delete([location, host.location("other")]),
        lambda: list(host.clean(older_than=timedelta(0))),
    ]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.status(503, xml("SlowDown")), HostUnavailable),
        (faults.status(503), HostUnavailable),
        (faults.status(429, xml("TooManyRequests")), HostUnavailable),
        (faults.status(429), HostUnavailable),
        (faults.status(500, xml("InternalError")), HostUnavailable),
        (faults.status(502), HostUnavailable),
        (faults.status(400, xml("RequestTimeout")), HostUnavailable),
        (faults.status(403, xml("AccessDenied")), AccessDenied),
        (faults.status(403), AccessDenied),
        (faults.status(401), AccessDenied),
        (faults.status(400, xml("ExpiredToken")), AccessDenied),
        (faults.status(507), HostFull),
        (faults.status(418), HostError),
        (faults.reset_before_reply(), HostUnavailable),
        (faults.refuse(), HostUnavailable),
    ],
)
def test_every_call_maps_a_fault_to_its_error(
    behind: Behind, fault: Any, expected: type[HostError]
) -> None:
    for number, call in enumerate(every_call(behind)):
        plan = behind.proxy.plan(fault, times=None)
        bodiless = number == 1 and fault.code == 400  # a HEAD has no body to say why
        with pytest.raises(HostError if bodiless else expected) as caught:
            call()
        error = caught.value
        if not bodiless:
            assert type(error) is expected
            assert error.retryable == (expected is HostUnavailable)
        assert error.host == "store"
        assert error.operation
        assert "\n" not in str(error)
        assert error.__cause__ is not None
        assert plan.hits
        behind.proxy.clear()


def test_a_server_that_is_down_is_unavailable(behind: Behind) -> None:
    calls = every_call(behind)
    behind.proxy.down()
    for call in calls:
        with pytest.raises(HostUnavailable):
            call()
    behind.proxy.up()
    behind.host.check()


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        options = S3Options.parse(
            "store",
            {
                "endpoint_url": f"http://127.0.0.1:{closed.getsockname()[1]}",
                "access_key_id": "a",
                "secret_access_key": "b",
            },
        )
        host = S3Host("store", "s3://bucket", options)
        for call in (host.check, lambda: read(host, host.location("k"))):
            with pytest.raises(HostUnavailable, match="cannot connect"):
                call()


def test_a_name_that_cannot_be_resolved_is_unavailable() -> None:
    options = S3Options.parse("store", {"access_key_id": "a", "secret_access_key": "b"})
    host = S3Host("store", "s3+http://no-such-host.invalid/bucket", options)
    for call in (host.check, lambda: read(host, host.location("k"))):
        with pytest.raises(HostUnavailable, match="resolve"):
            call()


def test_a_hang_ends_with_the_time_limit(impatient: Behind) -> None:
    location = impatient.arrange("k", b"0123456789")
    host = impatient.host
    impatient.proxy.plan(faults.hang(60), times=None)
    for call in (
        host.check,
        lambda: host.stat(location),
        lambda: read(host, location),
        lambda: read(host, location, 2, 3),
        lambda: impatient.put("new", b"x"),
        lambda: impatient.put("new", bytes(2 * MIB)),
        lambda: impatient.put("new", bytes(33 * MIB)),
    ):
        with pytest.raises(HostUnavailable, match="in time"):
            call()


def test_a_slow_download_is_not_a_hang(moto_s3: Any, fault_proxy: Any) -> None:
    slow = Behind(moto_s3, fault_proxy(moto_s3.endpoint), time_limit=3.0)
    data = os.urandom(5 * MIB)
    location = slow.arrange("k", data)
    slow.proxy.limit(MIB)
    assert read(slow.host, location) == data


def test_a_slow_upload_is_not_a_hang(moto_s3: Any, fault_proxy: Any) -> None:
    slow = Behind(moto_s3, fault_proxy(moto_s3.endpoint), time_limit=5.0)
    data = os.urandom(30 * MIB)  # several times what the buffers of the loopback take
    slow.proxy.limit(4 * MIB)
    assert slow.put("k", data).size == len(data)


@pytest.mark.parametrize("size", [700, 3 * MIB])
@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize(
    "fault", [faults.reset_mid_body(500, "down"), faults.short_body()], ids=["reset", "short"]
)
def test_a_download_that_breaks_raises_and_never_ends_early(
    behind: Behind, size: int, ranged: bool, fault: Any
) -> None:
    data = os.urandom(size)
    location = behind.arrange("k", data)
    behind.proxy.plan(fault, match=method("GET"))
    got = bytearray()
    blocks = behind.host.get(location, length=size if ranged else None)
    with pytest.raises(HostUnavailable):
        for block in blocks:
            got += block
    assert data.startswith(bytes(got))
    assert read(behind.host, location) == data


@pytest.mark.parametrize("size", SIZES)
def test_an_upload_that_breaks_in_the_middle_leaves_nothing_visible(
    behind: Behind, size: int
) -> None:
    data = os.urandom(size)
    behind.proxy.plan(faults.reset_mid_body(size // 50, "up"), match=method("PUT"))
    with pytest.raises(HostUnavailable):
        behind.put("k", data)
    assert not behind.exists("k")
    behind.put("k", data)
    assert behind.content("k") == data


@pytest.mark.parametrize("size", SMALL_AND_MIDDLE)
def test_a_lost_acknowledgement_of_a_put_is_settled_by_looking(behind: Behind, size: int) -> None:
    data = os.urandom(size)
    plan = behind.proxy.plan(faults.swallow_ack(), match=method("PUT"))
    info = behind.put("k", data)
    assert plan.hits == 1
    assert info.size == size
    assert info.checksum is not None
    assert behind.content("k") == data


@pytest.mark.parametrize("size", SMALL_AND_MIDDLE)
def test_what_was_there_before_does_not_stand_in_for_a_failed_put(
    behind: Behind, size: int
) -> None:
    behind.arrange("k", os.urandom(size))
    behind.proxy.plan(faults.reset_before_reply(), match=method("PUT"))
    with pytest.raises(HostUnavailable):
        behind.put("k", os.urandom(size))


@pytest.mark.parametrize("size", SMALL_AND_MIDDLE)
def test_a_conflict_is_settled_by_looking(behind: Behind, size: int) -> None:
    data = os.urandom(size)
    for code in ("ConditionalRequestConflict", "OperationAborted", "SomethingElse"):
        behind.arrange("there", data)
        behind.arrange("other", bytes(size))
        behind.proxy.plan(faults.status(409, xml(code)), match=method("PUT"), times=3)
        assert behind.put("there", data).size == size
        for key in ("other", "missing"):
            with pytest.raises(HostError):
                behind.put(key, data)
        behind.proxy.clear()


@pytest.mark.parametrize("size", SIZES)
def test_bytes_that_change_on_the_way_up_are_refused(behind_strict: Behind, size: int) -> None:
    plan = behind_strict.proxy.plan(faults.wrong_bytes("up"), match=method("PUT"))
    with pytest.raises(HostUnavailable):
        behind_strict.put("k", os.urandom(size))
    assert plan.hits == 1
    assert not behind_strict.exists("k")


def test_an_answer_that_is_garbled_is_an_error_and_no_empty_list(behind: Behind) -> None:
    behind.arrange("k", b"x")
    behind.proxy.plan(faults.wrong_bytes("down"), match=method("GET"), times=1)
    with pytest.raises(HostError):
        list(behind.host.list())
    behind.proxy.plan(faults.short_body(), match=method("GET"), times=1)
    with pytest.raises(HostError):
        list(behind.host.list())
    assert [info.key for info in behind.host.list()] == ["k"]


def test_a_listing_that_breaks_on_its_second_page_raises(behind_strict: Behind) -> None:
    for number in range(1005):
        behind_strict.put(f"{number:04}", b"")
    behind_strict.proxy.plan(
        faults.status(503),
        match=method("GET", "continuation-token"),
    )
    listed = []
    with pytest.raises(HostUnavailable):
        for info in behind_strict.host.list():
            listed.append(info.key)
    assert len(listed) == 1000


def listing(*keys: str) -> bytes:
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>0</Size></Contents>"
        for key in keys
    )
    return (
        "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
    ).encode()


def test_a_listing_out_of_order_raises(behind: Behind) -> None:
    for keys in (("pool/b", "pool/a"), ("pool/a", "pool/a"), ("elsewhere/a",)):
        behind.proxy.plan(faults.status(200, listing(*keys)), match=method("GET"))
        with pytest.raises(HostError, match="out of order"):
            list(behind.host.list())


def test_a_listing_that_ignores_its_start_is_cut(behind: Behind) -> None:
    keys = ("pool/a", "pool/b", "pool/c")
    behind.proxy.plan(faults.status(200, listing(*keys)), match=method("GET"))
    assert [info.key for info in behind.host.list(after="b")] == ["c"]


def test_a_server_that_ignores_ranges_still_gives_the_range(behind: Behind) -> None:
    location = behind.host.location("k")
    whole = faults.status(200, b"0123456789", {"ETag": '"x"'})
    for offset, length in ((2, 3), (2, None), (0, 4), (8, 9), (10, 1), (99, 1)):
        behind.proxy.plan(whole, match=method("GET"))
        end = None if length is None else offset + length
        assert read(behind.host, location, offset, length) == b"0123456789"[offset:end]


def test_a_range_in_a_plain_answer_is_recognized(behind: Behind) -> None:
    location = behind.host.location("k")
    behind.proxy.plan(
        faults.status(200, b"234", {"Content-Range": "bytes 2-4/10"}), match=method("GET")
    )
    assert read(behind.host, location, 2, 3) == b"234"


@pytest.mark.parametrize(
    ("shown", "body"),
    [
        ("bytes 0-2/10", b"012"),
        ("bytes 2-5/10", b"2345"),
        ("bytes 2-3/10", b"23"),
        ("bytes 2-4/10", b"23"),
        ("bytes */10", b"234"),
        ("nonsense", b"234"),
    ],
)
def test_another_range_than_the_one_asked_for_raises(
    behind: Behind, shown: str, body: bytes
) -> None:
    behind.proxy.plan(faults.status(206, body, {"Content-Range": shown}), match=method("GET"))
    with pytest.raises(HostUnavailable, match="range"):
        read(behind.host, behind.host.location("k"), 2, 3)


@pytest.mark.parametrize("code", [501, 405, 400])
def test_a_provider_without_batches_of_deletes_gets_single_ones(behind: Behind, code: int) -> None:
    locations = [behind.arrange(f"k{number}", b"x") for number in range(20)]
    plan = behind.proxy.plan(faults.status(code, xml("NotImplemented")), match=method("POST"))
    behind.host.delete(locations)
    assert plan.hits == 1
    assert list(behind.direct.list()) == []


def test_each_key_that_was_not_deleted_counts(behind: Behind) -> None:
    locations = [behind.arrange(key, b"x") for key in ("a", "b", "c")]
    body = (
        b"<?xml version='1.0'?><DeleteResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        b"<Error><Key>pool/a</Key><Code>InternalError</Code><Message>m</Message></Error>"
        b"<Error><Key>pool/b</Key><Code>AccessDenied</Code><Message>m</Message></Error>"
        b"<Error><Key>pool/c</Key><Code>NoSuchKey</Code><Message>m</Message></Error>"
        b"</DeleteResult>"
    )
    behind.proxy.plan(faults.status(200, body), match=method("POST"))
    with pytest.raises(AccessDenied, match="1 more of 3") as caught:
        behind.host.delete(locations)
    assert caught.value.location == locations[1]


def test_a_single_delete_that_fails_does_not_stop_the_others(behind: Behind) -> None:
    locations = [behind.arrange(f"k{number}", b"x") for number in range(5)]
    behind.proxy.plan(faults.status(501), match=method("POST"))
    behind.proxy.plan(faults.status(503), match=method("DELETE", "k3"))
    with pytest.raises(HostUnavailable) as caught:
        behind.host.delete(locations)
    assert caught.value.location == locations[3]
    assert [info.key for info in behind.direct.list()] == ["k3"]


def test_no_secret_and_no_signed_text_is_in_an_error(behind: Behind) -> None:
    told = (
        b"<Error><Code>SignatureDoesNotMatch</Code><Message>m</Message>"
        b"<StringToSign>TOSIGN</StringToSign></Error>"
    )
    for call in every_call(behind)[:7]:
        behind.proxy.plan(faults.status(403, told), times=None)
        with pytest.raises(AccessDenied) as caught:
            call()
        behind.proxy.clear()
        assert "TOSIGN" not in str(caught.value)
        assert behind.host.options.secret_access_key not in str(caught.value)


def test_a_header_that_a_server_only_repeats_is_no_proof(behind: Behind) -> None:
    sha256 = hashlib.sha256(b"right").digest()
    repeated = {
        "Content-Length": "5",
        "ETag": f'"{hashlib.md5(b"wrong").hexdigest()}"',
        "x-amz-checksum-sha256": base64.b64encode(sha256).decode(),
    }
    location = behind.host.location("k")
    behind.proxy.plan(faults.status(200, b"", repeated), match=method("HEAD"))
    assert behind.host.stat(location).checksum == Checksum("md5", hashlib.md5(b"wrong").hexdigest())
    computed = {**repeated, "x-amz-checksum-type": "FULL_OBJECT"}
    behind.proxy.plan(faults.status(200, b"", computed), match=method("HEAD"))
    assert behind.host.stat(location).checksum == Checksum("sha256", sha256.hex())


def test_an_etag_under_kms_encryption_is_no_proof(behind: Behind) -> None:
    answer = {
        "Content-Length": "5",
        "ETag": f'"{hashlib.md5(b"other").hexdigest()}"',
        "x-amz-server-side-encryption": "aws:kms",
    }
    behind.proxy.plan(faults.status(200, b"", answer), match=method("HEAD"))
    assert behind.host.stat(behind.host.location("k")).checksum is None
