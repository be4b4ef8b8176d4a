"""The S3 host against real servers, arranged and inspected behind its back."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    ObjectArchived,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hosts import open_host
from cloudmanager.hosts.base import Host
from cloudmanager.model import Checksum
from cloudmanager.source import BytesSource, FileSource, Source, StreamSource

MIB = 1024 * 1024


@pytest.fixture(params=["moto_s3", "rclone_s3", "strict_s3"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def options_for(server: Any, **more: Any) -> dict[str, Any]:
    return {
        "endpoint_url": server.endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        **more,
    }


def host_on(server: Any, bucket: str, prefix: str = "pool", **more: Any) -> Host:
    return open_host(f"s3://{bucket}/{prefix}", options_for(server, **more), name="store")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def store(host: Host, key: str, data: bytes, **more: Any) -> Any:
    return host.put(key, BytesSource(data), sha256=sha256(data), **more)


def read(host: Host, location: str, offset: int = 0, length: int | None = None) -> bytes:
    return b"".join(host.get(location, offset=offset, length=length))


def sources(data: bytes, path: Path) -> list[Source]:
    path.write_bytes(data)
    return [
        BytesSource(data),
        FileSource(path),
        FileSource(path, trusted=True),
        StreamSource(lambda offset: iter([data[offset:]]), size=len(data), label="a stream"),
    ]


@pytest.mark.parametrize("size", [0, 1, 4096, 512 * 1024, 512 * 1024 + 1, 5_000_000])
def test_what_was_put_lies_in_the_bucket_and_comes_back(
    server: Any, tmp_path: Path, size: int
) -> None:
    bucket = server.make_bucket()
    host = host_on(server, bucket)
    data = os.urandom(size)
    for number, source in enumerate(sources(data, tmp_path / "file")):
        sent: list[int] = []
        info = host.put(
            f"k/{number}", source, sha256=sha256(data), filename="n.txt", on_bytes=sent.append
        )
        assert sum(sent) == size
        assert info.location == host.location(f"k/{number}")
        stored = server.client().get_object(Bucket=bucket, Key=f"pool/k/{number}")
        assert stored["Body"].read() == data
        found = host.stat(info.location)
        assert (found.key, found.size, found.filename) == (f"k/{number}", size, "n.txt")
        assert read(host, info.location) == data
        for checksum in (info.checksum, found.checksum):
            assert checksum is not None
            assert checksum.value == hashlib.new(checksum.kind, data).hexdigest()


def test_objects_that_others_have_written_are_read(server: Any) -> None:
    bucket = server.make_bucket()
    server.client().put_object(Bucket=bucket, Key="pool/a/b", Body=b"theirs")
    host = host_on(server, bucket)
    assert read(host, host.location("a/b")) == b"theirs"
    assert host.stat(host.location("a/b")).size == 6
    assert [info.key for info in host.list()] == ["a/b"]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, None), (3, None), (3, 4), (9, 1), (9, 5), (10, 1), (11, None), (4, 0), (0, 99)],
)
def test_a_range_is_exactly_what_was_asked_for(
    server: Any, offset: int, length: int | None
) -> None:
    host = host_on(server, server.make_bucket())
    location = store(host, "k", b"0123456789").location
    end = None if length is None else offset + length
    assert read(host, location, offset, length) == b"0123456789"[offset:end]


@pytest.mark.parametrize(
    "key",
    ["ä b/ü.txt", "a?b#c%20d", "a+b&c=d;e", "a~b'c(d)!*", "日本/語", "a\\b", 'a"b<c>', "a..b"],
)
def test_a_key_may_hold_any_character(server: Any, key: str) -> None:
    bucket = server.make_bucket()
    host = host_on(server, bucket)
    location = store(host, key, b"x").location
    assert host.stat(location).key == key
    assert read(host, location) == b"x"
    assert [info.location for info in host.list()] == [location]
    assert server.client().get_object(Bucket=bucket, Key=f"pool/{key}")["Body"].read() == b"x"
    host.delete([location])
    assert list(host.list()) == []


@pytest.mark.parametrize(
    "name",
    ["plain.txt", 'Übel\n".txt', "not-utf8-\udcff.bin", "semi;colon, %41.tar.gz", "日本.pdf"],
)
@pytest.mark.parametrize("size", [5, 600_000])
@pytest.mark.parametrize("signed_by", ["rclone_s3", "strict_s3"])
def test_a_signed_link_downloads_under_the_original_name(
    request: pytest.FixtureRequest, signed_by: str, name: str, size: int
) -> None:
    server = request.getfixturevalue(signed_by)
    host = host_on(server, server.make_bucket())
    data = os.urandom(size)
    location = store(host, "k", data, filename=name).location
    assert host.stat(location).filename == name
    link = host.signed_url(location, expires=timedelta(minutes=5))
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == data
        assert answer.headers["Content-Disposition"].startswith("attachment")


def test_a_signed_link_is_bound_to_its_signature_and_its_time(moto_s3: Any) -> None:
    host = host_on(moto_s3, moto_s3.make_bucket())
    location = store(host, "k", b"x").location
    link = host.signed_url(location, expires=timedelta(minutes=5), filename="other.txt")
    assert "other.txt" in link
    for wrong in (timedelta(0), timedelta(days=8)):
        with pytest.raises(ConfigurationError, match="7 days"):
            host.signed_url(location, expires=wrong)


def test_an_object_is_replaced_by_the_next_put(server: Any) -> None:
    host = host_on(server, server.make_bucket())
    store(host, "k", b"damaged")
    location = store(host, "k", b"right").location
    assert read(host, location) == b"right"


@pytest.mark.parametrize("size", [7, 700_000, 33 * MIB])
def test_a_source_that_changed_is_never_stored(server: Any, tmp_path: Path, size: int) -> None:
    bucket = server.make_bucket()
    host = host_on(server, bucket)
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    for change in (b"other" + bytes(size - 5), bytes(size - 1), bytes(size + 1)):
        source = FileSource(path, size=size)
        path.write_bytes(change)
        with pytest.raises(SourceChanged):
            host.put("k", source, sha256=sha256(bytes(size)))
        with pytest.raises(ObjectNotFound):
            host.stat(host.location("k"))
    assert list(host.clean(older_than=timedelta(days=-1))) == []


def test_listing_is_ascending_by_bytes_below_the_prefix_only(server: Any) -> None:
    bucket = server.make_bucket()
    raw = server.client()
    keys = ["B", "a/b", "ab", "z", "ä", "日", "\uffee", "\U0001f600"]
    for key in keys:
        raw.put_object(Bucket=bucket, Key=f"pool/{key}", Body=b"x")
    raw.put_object(Bucket=bucket, Key="poolside", Body=b"x")
    raw.put_object(Bucket=bucket, Key="other/x", Body=b"x")
    host = host_on(server, bucket)
    ordered = sorted(keys, key=lambda key: key.encode())
    assert [info.key for info in host.list()] == ordered
    for after in [*ordered, "", "a!", "\U0010ffff"]:
        expected = [key for key in ordered if key.encode() > after.encode()]
        assert [info.key for info in host.list(after=after)] == expected
    assert [info.key for info in host.list("a")] == [k for k in ordered if k.startswith("a")]
    assert list(host.list("nothing")) == []


def test_listing_goes_on_over_many_pages(moto_s3: Any, strict_s3: Any) -> None:
    for server in (moto_s3, strict_s3):
        bucket = server.make_bucket()
        host = host_on(server, bucket)
        keys = [f"{number:04}" for number in range(1234)]
        for key in keys:
            store(host, key, b"")
        assert [info.key for info in host.list()] == keys
        host.delete(host.location(key) for key in [*keys, "never-there"])
        assert list(host.list()) == []


def test_what_is_missing_can_be_deleted(server: Any) -> None:
    host = host_on(server, server.make_bucket())
    store(host, "a", b"x")
    host.delete([host.location("b")])
    host.delete([host.location("a"), host.location("b"), host.location("a")])
    host.delete([])
    assert list(host.list()) == []


def test_a_missing_object_is_not_found(server: Any) -> None:
    host = host_on(server, server.make_bucket())
    location = host.location("6f/missing")
    for call in (
        lambda: host.stat(location),
        lambda: read(host, location),
        lambda: read(host, location, 1, 2),
    ):
        with pytest.raises(ObjectNotFound) as caught:
            call()
        assert caught.value.location == location
        assert not caught.value.retryable


def test_a_missing_bucket_is_told_from_a_missing_object(server: Any) -> None:
    host = host_on(server, "no-such-bucket-here")
    location = host.location("a/b")
    large = bytes(33 * MIB)
    for call in (
        host.check,
        lambda: host.stat(location),
        lambda: read(host, location),
        lambda: read(host, location, 1, 2),
        lambda: list(host.list()),
        lambda: store(host, "a/b", b"x"),
        lambda: store(host, "a b", bytes(MIB)),
        lambda: store(host, "a/b", large),
        lambda: host.delete([location]),
        lambda: host.delete([location, host.location("c")]),
        lambda: list(host.clean(older_than=timedelta(0))),
    ):
        with pytest.raises(ContainerNotFound) as caught:
            call()
        assert not caught.value.retryable
        assert caught.value.host == "store"


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_wrong_credentials_are_denied_by_every_call(server: Any, wrong: str) -> None:
    bucket = server.make_bucket()
    right = host_on(server, bucket)
    location = store(right, "k", b"x").location
    host = host_on(server, bucket, **{wrong: "AKWRONGEXAMPLE"})
    for call in (
        host.check,
        lambda: host.stat(location),
        lambda: read(host, location),
        lambda: read(host, location, 0, 1),
        lambda: list(host.list()),
        lambda: store(host, "k", b"y"),
        lambda: store(host, "k", bytes(MIB)),
        lambda: store(host, "k", bytes(33 * MIB)),
        lambda: host.delete([location]),
    ):
        with pytest.raises(AccessDenied) as caught:
            call()
        assert "options access_key_id" in str(caught.value)
        assert "AKWRONGEXAMPLE" not in str(caught.value)
        assert not caught.value.retryable
        assert caught.value.__cause__ is not None
    assert read(right, location) == b"x"


def test_checking_a_reachable_bucket_is_quiet(server: Any) -> None:
    host_on(server, server.make_bucket()).check()


def test_an_archived_object_says_how_to_restore_it(moto_s3: Any) -> None:
    bucket = moto_s3.make_bucket()
    host = host_on(moto_s3, bucket, storage_class="GLACIER")
    info = store(host, "6f/k", b"cold")
    raw = moto_s3.client().head_object(Bucket=bucket, Key="pool/6f/k")
    assert raw["StorageClass"] == "GLACIER"
    for call in (lambda: read(host, info.location), lambda: read(host, info.location, 1, 2)):
        with pytest.raises(ObjectArchived, match="restore"):
            call()
    assert host.stat(info.location).size == 4


@pytest.mark.parametrize("size", [9, MIB, 33 * MIB])
def test_storage_class_and_encryption_are_passed_on(moto_s3: Any, size: int) -> None:
    bucket = moto_s3.make_bucket()
    more = {"storage_class": "STANDARD_IA", "sse": "aws:kms", "sse_kms_key_id": "a-key"}
    host = host_on(moto_s3, bucket, **more)
    store(host, "k", bytes(size), filename="x.pdf")
    raw = moto_s3.client().head_object(Bucket=bucket, Key="pool/k")
    assert raw["StorageClass"] == "STANDARD_IA"
    assert raw["ServerSideEncryption"] == "aws:kms"
    assert "a-key" in raw["SSEKMSKeyId"]
    assert raw["ContentType"] == "application/pdf"


def test_without_the_checksum_headers_everything_still_works(server: Any) -> None:
    host = host_on(server, server.make_bucket(), checksum="none")
    for size in (5, MIB, 33 * MIB):
        data = os.urandom(size)
        info = store(host, f"k{size}", data)
        assert info.checksum is not None
        assert info.checksum.kind.startswith("md5")
        assert read(host, info.location) == data


def test_a_strict_server_proves_the_sha256(strict_s3: Any) -> None:
    host = host_on(strict_s3, strict_s3.make_bucket())
    for size in (5, MIB):
        data = os.urandom(size)
        assert host.stat(store(host, f"k{size}", data).location).checksum == Checksum(
            "sha256", sha256(data)
        )


def test_bytes_that_rot_at_the_server_are_seen(rclone_s3: Any) -> None:
    bucket = rclone_s3.make_bucket()
    host = host_on(rclone_s3, bucket)
    info = store(host, "k", b"right")
    (rclone_s3.directory / bucket / "pool" / "k").write_bytes(b"wrong")
    assert host.stat(info.location).checksum != info.checksum


def test_a_fork_after_use_is_refused(moto_s3: Any) -> None:
    host = host_on(moto_s3, moto_s3.make_bucket())
    host.check()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            host.check()
        except HostError as exc:
            os.write(writer, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as told:
        assert "forked" in told.read()
    host.check()


def test_a_closed_host_can_be_closed_again(moto_s3: Any) -> None:
    host = host_on(moto_s3, moto_s3.make_bucket())
    host.close()
    host.check()
    host.close()
    host.close()
