"""Signed bodies of S3 uploads: hashed once, and the hash is that of the body."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import pytest

from cloudmanager.hosts import open_host
from cloudmanager.source import BytesSource, Source
from servers.proxy import reset_before_reply

MIB = 1024 * 1024
Seen = list[tuple[str, str, str]]


class CountedSource(Source):
    """Trusted bytes; `read_bytes` counts how many were handed out."""

    trusted = True

    def __init__(self, data: bytes) -> None:
        self._inner = BytesSource(data)
        self.size = len(data)
        self.read_bytes = 0

    def open(self, offset: int = 0) -> BinaryIO:
        file = self._inner.open(offset)
        plain = file.read

        def read(size: int = -1) -> bytes:
            data = plain(size)
            self.read_bytes += len(data)
            return data

        file.read = read  # type: ignore[method-assign]
        return file


@pytest.fixture
def seen() -> Seen:
    """Method, target and signed body hash of each request."""
    return []


@pytest.fixture
def store(strict_s3: Any, fault_proxy: Callable[[str], Any], seen: Seen) -> Callable[..., Any]:
    """Puts bytes through a proxy that looks at the requests; the server checks every signature."""
    proxy = fault_proxy(strict_s3.endpoint)

    def look(method: str, target: str, headers: Mapping[str, str]) -> bool:
        seen.append((method, target, headers.get("x-amz-content-sha256", "")))
        return False

    proxy.plan(reset_before_reply, match=look, times=None)
    bucket = strict_s3.make_bucket()

    def put(source: Source, data: bytes, **more: Any) -> bytes:
        options = {
            "endpoint_url": proxy.endpoint,
            "access_key_id": strict_s3.access_key,
            "secret_access_key": strict_s3.secret_key,
            "region": "us-east-1",
            **more,
        }
        host = open_host(f"s3://{bucket}/pool", options, name="store")
        host.put("a/b", source, sha256=hashlib.sha256(data).hexdigest())
        host.close()
        stored = strict_s3.client().get_object(Bucket=bucket, Key="pool/a/b")["Body"].read()
        assert isinstance(stored, bytes)
        return stored

    return put


def test_the_signature_covers_the_hash_of_a_body_that_is_read_once(
    store: Callable[..., bytes], seen: Seen
) -> None:
    data = bytes(range(256)) * 12 * 1024
    source = CountedSource(data)
    assert store(source, data) == data
    assert [signed for method, _, signed in seen if method == "PUT"] == [
        hashlib.sha256(data).hexdigest()
    ]
    assert source.read_bytes == len(data)


def test_the_signature_of_each_part_covers_the_hash_of_that_part(
    store: Callable[..., bytes], seen: Seen
) -> None:
    data = bytes(range(256)) * 4 * 40 * 1024 + b"end"
    assert store(BytesSource(data), data) == data
    signed = sorted(signed for method, _, signed in seen if method == "PUT")
    parts = [data[start : start + 16 * MIB] for start in range(0, len(data), 16 * MIB)]
    assert len(parts) == 3
    assert signed == sorted(hashlib.sha256(part).hexdigest() for part in parts)


def test_without_a_sha256_in_the_request_the_body_is_hashed_for_the_signature(
    store: Callable[..., bytes], seen: Seen
) -> None:
    data = b"0123456789abcdef" * 64 * 1024
    source = CountedSource(data)
    assert store(source, data, checksum="none") == data
    assert hashlib.sha256(data).hexdigest() in [signed for _, _, signed in seen]
    assert source.read_bytes > len(data)


def test_links_are_signed_as_ever(strict_s3: Any) -> None:
    import urllib.request
    from datetime import timedelta

    bucket = strict_s3.make_bucket()
    options = {
        "endpoint_url": strict_s3.endpoint,
        "access_key_id": strict_s3.access_key,
        "secret_access_key": strict_s3.secret_key,
        "region": "us-east-1",
    }
    host = open_host(f"s3://{bucket}/pool", options, name="store")
    info = host.put("a/b", BytesSource(b"x"), sha256=hashlib.sha256(b"x").hexdigest())
    link = host.signed_url(info.location, expires=timedelta(minutes=1))
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"x"
