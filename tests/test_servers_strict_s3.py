"""The strict S3 server takes what the SDKs send, and refuses whatever is not true."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any, Self
from urllib.parse import urlsplit

import obstore
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from obstore.store import S3Store as ObstoreS3

from servers.s3_payload import checksum_of
from servers.s3_signature import REGION
from servers.strict_s3 import StrictS3

MIB = 1024 * 1024


@pytest.fixture
def bucket(strict_s3: StrictS3) -> str:
    return strict_s3.make_bucket()


@pytest.fixture(scope="module")
def client(strict_s3: StrictS3) -> Any:
    return strict_s3.client()


class Signed:
    """Requests as somebody would send them who signs by himself."""

    def __init__(self, server: StrictS3, bucket: str) -> None:
        self._server = server
        self._bucket = bucket

    def __call__(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        after: Callable[[dict[str, str]], object] = lambda _: None,
        sent: bytes | None = None,
        **headers: Any,
    ) -> tuple[int, bytes]:
        """Status and body of the answer.

        Underscores in header names become hyphens. `after` may change the headers when they
        are signed; `sent` goes up instead of the `body` that was signed.
        """
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self._server.endpoint}/{self._bucket}{target}"
        request = AWSRequest(method, url, headers=given, data=body)
        if "x-amz-content-sha256" in given:
            request.context["payload_signing_enabled"] = False
        keys = Credentials(self._server.access_key, self._server.secret_key)
        S3SigV4Auth(keys, "s3", REGION).add_auth(request)
        final = dict(request.headers.items())
        if "x-amz-content-sha256" in given:
            final = self._signed_as(given, method, url, body)
        after(final)
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, path, body=body if sent is None else sent, headers=final)
        reply = connection.getresponse()
        answer = reply.status, reply.read()
        connection.close()
        return answer

    def _signed_as(
        self, given: dict[str, str], method: str, url: str, body: bytes
    ) -> dict[str, str]:
        """Headers signed with the payload hash that is given, true or not."""

        class Claims(S3SigV4Auth):
            def payload(self, request: Any) -> str:
                return given["x-amz-content-sha256"]

        request = AWSRequest(method, url, headers=given, data=body)
        keys = Credentials(self._server.access_key, self._server.secret_key)
        Claims(keys, "s3", REGION).add_auth(request)
        return dict(request.headers.items())


@pytest.fixture
def signed(strict_s3: StrictS3, bucket: str) -> Signed:
    return Signed(strict_s3, bucket)


def code_in(answer: tuple[int, bytes]) -> str:
    return answer[1].partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as caught:
        call()
    return str(caught.value.response["Error"]["Code"])


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def md5_of(data: bytes) -> str:
    return base64_of(hashlib.md5(data, usedforsecurity=False).digest())


# -- signatures --------------------------------------------------------------------------


def test_a_request_that_is_signed_by_hand_is_taken(signed: Signed) -> None:
    assert signed("PUT", "/k%20%C3%A4", b"data")[0] == 200
    assert signed("GET", "/k%20%C3%A4?response-content-type=a%2Fb%20c") == (200, b"data")


def change(headers: dict[str, str], name: str, value: str) -> None:
    headers[name] = value


SPOILT: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "no signature": (lambda h: h.pop("Authorization"), "AccessDenied"),
    "another signature": (
        lambda h: change(h, "Authorization", h["Authorization"][:-4] + "0000"),
        "SignatureDoesNotMatch",
    ),
    "another region": (
        lambda h: change(h, "Authorization", h["Authorization"].replace(REGION, "eu-west-1")),
        "AuthorizationHeaderMalformed",
    ),
    "another account": (
        lambda h: change(h, "Authorization", h["Authorization"].replace("STRICT", "OTHER")),
        "InvalidAccessKeyId",
    ),
    "nonsense": (lambda h: change(h, "Authorization", "Basic abc"), "AuthorizationHeaderMalformed"),
    "a header that was changed": (
        lambda h: change(h, "x-amz-meta-a", "2"),
        "SignatureDoesNotMatch",
    ),
    "a header that was added": (lambda h: change(h, "x-amz-meta-b", "1"), "AccessDenied"),
    "a token nobody gave out": (lambda h: change(h, "x-amz-security-token", "t"), "InvalidToken"),
    "no payload hash": (lambda h: h.pop("X-Amz-Content-SHA256"), "InvalidRequest"),
    "another payload hash": (
        lambda h: change(h, "X-Amz-Content-SHA256", hashlib.sha256(b"other").hexdigest()),
        "SignatureDoesNotMatch",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_request_that_is_not_signed_as_it_must_be_is_refused(
    strict_s3: StrictS3, bucket: str, signed: Signed, how: str
) -> None:
    spoil, code = SPOILT[how]
    answer = signed("PUT", "/k", b"data", after=spoil, x_amz_meta_a="1")
    assert code_in(answer) == code
    assert strict_s3.store.objects(bucket) == {}


def test_a_request_of_yesterday_is_refused(signed: Signed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.s3_signature._SKEW", timedelta(seconds=-1))
    assert code_in(signed("GET", "/k")) == "RequestTimeTooSkewed"


def fetch(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request("GET", f"{parts.path}?{parts.query}")
    reply = connection.getresponse()
    answer = reply.status, reply.read()
    connection.close()
    return answer


def test_a_signed_link_opens_its_object_and_no_other(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"data")
    client.put_object(Bucket=bucket, Key="l", Body=b"secret")
    params = {"Bucket": bucket, "Key": "k", "ResponseContentDisposition": 'attachment; a="ü b"'}
    url = client.generate_presigned_url("get_object", Params=params, ExpiresIn=60)
    assert "X-Amz-Signature" in url
    assert fetch(url) == (200, b"data")
    assert code_in(fetch(url.replace("/k?", "/l?"))) == "SignatureDoesNotMatch"
    assert code_in(fetch(url.replace("Expires=60", "Expires=61"))) == "SignatureDoesNotMatch"
    assert code_in(fetch(url.split("?")[0] + "?a=b")) == "AccessDenied"


def test_a_signed_link_ends_in_time(
    client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InTwoMinutes(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(minutes=2)

    client.put_object(Bucket=bucket, Key="k", Body=b"data")
    params = {"Bucket": bucket, "Key": "k"}
    short, long = (
        client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)
        for seconds in (60, 600)
    )
    monkeypatch.setattr("servers.s3_signature.datetime", InTwoMinutes)
    assert fetch(long) == (200, b"data")
    answer = fetch(short)
    assert code_in(answer) == "AccessDenied"
    assert b"Request has expired" in answer[1]


# -- what a request says about its bytes -------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "crc32", "crc32c", "crc64nvme"])
def test_a_checksum_must_be_true(
    strict_s3: StrictS3, bucket: str, signed: Signed, algorithm: str
) -> None:
    def named(value: str) -> dict[str, Any]:
        return {f"x_amz_checksum_{algorithm}": value}

    true, false = checksum_of(algorithm, b"data"), checksum_of(algorithm, b"Data")
    assert code_in(signed("PUT", "/k", b"data", **named(false))) == "BadDigest"
    assert code_in(signed("PUT", "/k", b"data", **named("YWJj"))) == "InvalidRequest"
    assert strict_s3.store.objects(bucket) == {}
    assert signed("PUT", "/k", b"data", **named(true))[0] == 200


def test_the_checksums_are_those_of_their_standards() -> None:
    # The check values of the catalogue of CRC algorithms, for the digits 1 to 9.
    expected = {"crc32": "cbf43926", "crc32c": "e3069283", "crc64nvme": "ae8b14860a799888"}
    for algorithm, value in expected.items():
        assert checksum_of(algorithm, b"123456789") == base64_of(bytes.fromhex(value))


def test_content_md5_must_be_true(signed: Signed) -> None:
    assert code_in(signed("PUT", "/k", b"data", Content_MD5=md5_of(b"Data"))) == "BadDigest"
    assert code_in(signed("PUT", "/k", b"data", Content_MD5="abc")) == "InvalidDigest"
    assert signed("PUT", "/k", b"data", Content_MD5=md5_of(b"data"))[0] == 200


def test_the_payload_must_be_the_one_that_was_signed(
    strict_s3: StrictS3, bucket: str, signed: Signed
) -> None:
    answer = signed("PUT", "/k", b"data", sent=b"Data")
    assert code_in(answer) == "XAmzContentSHA256Mismatch"
    assert strict_s3.store.objects(bucket) == {}
    unsigned: dict[str, Any] = {"x_amz_content_sha256": "UNSIGNED-PAYLOAD"}
    assert signed("PUT", "/k", b"data", sent=b"Data", **unsigned)[0] == 200


def test_a_checksum_in_the_trailer_must_be_true(signed: Signed) -> None:
    def put(payload: bytes, value: str, **more: Any) -> tuple[int, bytes]:
        body = b"%x\r\n%s\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n"
        headers: dict[str, Any] = {
            "x_amz_content_sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "x_amz_trailer": "x-amz-checksum-crc32",
            "x_amz_decoded_content_length": str(len(payload)),
            "Content_Encoding": "aws-chunked",
        }
        framed = body % (len(payload), payload, value.encode())
        return signed("PUT", "/k", framed, **{**headers, **more})

    true = checksum_of("crc32", b"data")
    assert code_in(put(b"Data", true)) == "BadDigest"
    assert code_in(put(b"data", true, x_amz_decoded_content_length="5")) == "IncompleteBody"
    assert code_in(put(b"data", true, x_amz_trailer="x-amz-checksum-sha256")) == "InvalidRequest"
    assert put(b"data", true)[0] == 200
    assert signed("GET", "/k") == (200, b"data")


def test_only_one_checksum_may_come(signed: Signed) -> None:
    both: dict[str, Any] = {
        f"x_amz_checksum_{name}": checksum_of(name, b"data") for name in ("crc32", "sha256")
    }
    assert code_in(signed("PUT", "/k", b"data", **both)) == "InvalidRequest"


def test_a_checksum_that_is_announced_must_come(signed: Signed) -> None:
    answer = signed("PUT", "/k", b"data", x_amz_sdk_checksum_algorithm="SHA256")
    assert code_in(answer) == "InvalidRequest"


def test_a_delete_of_many_needs_a_checksum(signed: Signed, client: Any, bucket: str) -> None:
    body = b"<Delete><Object><Key>a</Key></Object></Delete>"
    client.put_object(Bucket=bucket, Key="a", Body=b"")
    assert code_in(signed("POST", "?delete=", body)) == "InvalidRequest"
    assert signed("POST", "?delete=", body, Content_MD5=md5_of(body))[0] == 200
    assert code_of(lambda: client.get_object(Bucket=bucket, Key="a")) == "NoSuchKey"


# -- objects -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256", "SHA1"])
def test_boto3_stores_and_reads_with_checksums(client: Any, bucket: str, algorithm: str) -> None:
    data = os.urandom(100_000)
    client.put_object(
        Bucket=bucket,
        Key="k",
        Body=data,
        ChecksumAlgorithm=algorithm,
        ContentDisposition="attachment; filename=a",
        Metadata={"who": "me"},
    )
    found = client.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == data
    assert found[f"Checksum{algorithm}"] == checksum_of(algorithm.lower(), data)
    assert found["ContentDisposition"] == "attachment; filename=a"
    assert found["Metadata"] == {"who": "me"}
    assert "ContentEncoding" not in found


def test_obstore_stores_reads_lists_and_deletes(strict_s3: StrictS3, bucket: str) -> None:
    store = ObstoreS3(
        bucket,
        endpoint=strict_s3.endpoint,
        access_key_id=strict_s3.access_key,
        secret_access_key=strict_s3.secret_key,
        region=REGION,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
        checksum_algorithm="SHA256",
    )
    data = os.urandom(12 * MIB)
    obstore.put(store, "small", b"data")
    obstore.put(store, "large", data, use_multipart=True, chunk_size=5 * MIB)
    assert bytes(obstore.get(store, "large").bytes()) == data
    assert bytes(obstore.get_range(store, "large", start=5, length=10)) == data[5:15]
    assert strict_s3.store.objects(bucket)["large"].parts == 3
    assert [each["path"] for each in obstore.list(store).collect()] == ["large", "small"]
    obstore.delete(store, ["large", "small"])
    assert strict_s3.store.objects(bucket) == {}


def test_ranges_are_answered_as_they_are_asked(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"0123456789")

    def get(text: str) -> tuple[bytes, str]:
        found = client.get_object(Bucket=bucket, Key="k", Range=text)
        return found["Body"].read(), found["ContentRange"]

    assert get("bytes=2-4") == (b"234", "bytes 2-4/10")
    assert get("bytes=7-") == (b"789", "bytes 7-9/10")
    assert get("bytes=-2") == (b"89", "bytes 8-9/10")
    assert get("bytes=0-99") == (b"0123456789", "bytes 0-9/10")
    assert code_of(lambda: get("bytes=10-")) == "InvalidRange"


def test_conditions_of_writes_and_reads_hold(client: Any, bucket: str) -> None:
    def put(**condition: str) -> str:
        etag: str = client.put_object(Bucket=bucket, Key="k", Body=b"x", **condition)["ETag"]
        return etag

    etag = put(IfNoneMatch="*")
    assert code_of(lambda: put(IfNoneMatch="*")) == "PreconditionFailed"
    assert put(IfMatch=etag) == etag
    assert code_of(lambda: put(IfMatch='"other"')) == "PreconditionFailed"
    get = client.get_object
    assert get(Bucket=bucket, Key="k", IfMatch=etag)["ETag"] == etag
    assert code_of(lambda: get(Bucket=bucket, Key="k", IfNoneMatch=etag)) == "304"
    assert code_of(lambda: get(Bucket=bucket, Key="k", IfMatch='"x"')) == "PreconditionFailed"


def test_what_is_not_there_is_named(client: Any, bucket: str) -> None:
    for call in (client.get_object, client.put_object, client.delete_object):
        assert code_of(functools.partial(call, Bucket="no-such", Key="k")) == "NoSuchBucket"
    assert code_of(lambda: client.list_objects_v2(Bucket="no-such")) == "NoSuchBucket"
    assert code_of(lambda: client.head_bucket(Bucket="no-such")) == "404"
    assert code_of(lambda: client.get_object(Bucket=bucket, Key="k")) == "NoSuchKey"
    assert code_of(lambda: client.head_object(Bucket=bucket, Key="k")) == "404"
    client.delete_object(Bucket=bucket, Key="k")


def test_a_conflict_comes_as_often_as_it_is_asked_for(
    strict_s3: StrictS3, client: Any, bucket: str
) -> None:
    strict_s3.store.conflicts = 1
    put = {"Bucket": bucket, "Key": "k", "Body": b"data"}
    assert code_of(lambda: client.put_object(**put)) == "ConditionalRequestConflict"
    assert strict_s3.store.objects(bucket) == {}
    client.put_object(**put)


def test_what_is_archived_is_seen_and_not_read(
    strict_s3: StrictS3, client: Any, bucket: str
) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"data")
    client.put_object(Bucket=bucket, Key="l", Body=b"data", StorageClass="DEEP_ARCHIVE")
    strict_s3.archive(bucket, "k")
    for key, storage_class in (("k", "GLACIER"), ("l", "DEEP_ARCHIVE")):
        head = client.head_object(Bucket=bucket, Key=key)
        assert (head["StorageClass"], head["ContentLength"]) == (storage_class, 4)
        read = {"Bucket": bucket, "Key": key}
        assert code_of(functools.partial(client.get_object, **read)) == "InvalidObjectState"


def test_an_unknown_storage_class_is_refused(client: Any, bucket: str) -> None:
    put = {"Bucket": bucket, "Key": "k", "StorageClass": "CELLAR"}
    assert code_of(lambda: client.put_object(**put)) == "InvalidStorageClass"


# -- listings ----------------------------------------------------------------------------


def test_listings_come_in_pages_in_the_order_of_their_bytes(
    strict_s3: StrictS3, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_s3, "page", 2)
    keys = sorted(
        ["a", "a/b", "a/c", "a b", "ä", "\U0001f600", "b+c", "b%c", "b&<c"], key=str.encode
    )
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())

    def listed(**more: str) -> Iterator[str]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, **more):
            assert page["KeyCount"] <= 2
            for each in page.get("CommonPrefixes", []):
                yield each["Prefix"]
            for each in page.get("Contents", []):
                assert each["Size"] == len(each["Key"].encode())
                yield each["Key"]

    assert list(listed()) == keys
    assert list(listed(Prefix="a/")) == ["a/b", "a/c"]
    assert list(listed(StartAfter="a/b")) == keys[keys.index("a/b") + 1 :]
    grouped = [key for key in keys if not key.startswith("a/")]
    assert sorted(listed(Delimiter="/")) == sorted([*grouped, "a/"])


def test_buckets_can_be_listed_and_only_empty_ones_deleted(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="k", Body=b"")
    assert bucket in [each["Name"] for each in client.list_buckets()["Buckets"]]
    assert code_of(lambda: client.delete_bucket(Bucket=bucket)) == "BucketNotEmpty"
    client.delete_object(Bucket=bucket, Key="k")
    client.delete_bucket(Bucket=bucket)
    assert code_of(lambda: client.head_bucket(Bucket=bucket)) == "404"


# -- uploads in parts --------------------------------------------------------------------


class InParts:
    """An upload in parts, step by step."""

    def __init__(self, client: Any, bucket: str, **options: str) -> None:
        self.client = client
        self.of = {"Bucket": bucket, "Key": "k"}
        self.of["UploadId"] = client.create_multipart_upload(**self.of, **options)["UploadId"]
        self.parts: list[dict[str, Any]] = []

    def send(self, number: int, data: bytes, **options: str) -> None:
        sent = self.client.upload_part(**self.of, PartNumber=number, Body=data, **options)
        kept = {name: value for name, value in sent.items() if name.startswith("Checksum")}
        self.parts.append({"PartNumber": number, "ETag": sent["ETag"], **kept})

    def complete(self, parts: list[dict[str, Any]] | None = None, **options: Any) -> Any:
        named = {"Parts": self.parts if parts is None else parts}
        return self.client.complete_multipart_upload(**self.of, MultipartUpload=named, **options)


def test_boto3_uploads_in_parts_with_composite_checksums(client: Any, bucket: str) -> None:
    upload = InParts(client, bucket, ChecksumAlgorithm="SHA256", ContentType="video/mp4")
    data = [os.urandom(5 * MIB), os.urandom(1000)]
    for number, each in enumerate(data, 1):
        upload.send(number, each, ChecksumAlgorithm="SHA256")
    listed = client.list_parts(**upload.of)
    assert [part["ChecksumSHA256"] for part in listed["Parts"]] == [
        checksum_of("sha256", each) for each in data
    ]
    digests = b"".join(hashlib.sha256(each).digest() for each in data)
    expected = f"{checksum_of('sha256', digests)}-2"
    assert upload.complete()["ChecksumSHA256"] == expected
    head = client.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head["ChecksumSHA256"], head["ContentType"]) == (expected, "video/mp4")
    assert head["ETag"].endswith('-2"')
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"".join(data)
    assert code_of(upload.complete) == "NoSuchUpload"


def test_the_transfer_manager_of_boto3_gets_through(
    client: Any, bucket: str, tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(11 * MIB))
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    client.upload_file(str(path), bucket, "k", Config=config)
    client.download_file(bucket, "k", str(tmp_path / "back"), Config=config)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_every_part_but_the_last_must_be_large_enough(
    strict_s3: StrictS3, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = InParts(client, bucket)
    upload.send(1, b"x" * (5 * MIB - 1))
    upload.send(2, b"x")
    assert code_of(upload.complete) == "EntityTooSmall"
    monkeypatch.setattr(strict_s3.store, "minimum_part", 1)
    upload.complete()


def test_parts_must_be_named_in_order_as_they_were_sent(client: Any, bucket: str) -> None:
    upload = InParts(client, bucket)
    for number in (1, 2):
        upload.send(number, b"x" * 5 * MIB)
    first, second = upload.parts
    assert code_of(lambda: upload.complete([second, first])) == "InvalidPartOrder"
    assert code_of(lambda: upload.complete([{**first, "ETag": '"x"'}])) == "InvalidPart"
    assert code_of(lambda: upload.complete([{**first, "PartNumber": 3}])) == "InvalidPart"
    assert code_of(lambda: upload.complete(MpuObjectSize=5)) == "InvalidRequest"
    upload.complete(MpuObjectSize=10 * MIB)


def test_the_checksums_of_parts_are_needed_where_they_were_promised(
    client: Any, bucket: str
) -> None:
    upload = InParts(client, bucket, ChecksumAlgorithm="SHA256")
    assert code_of(lambda: upload.send(1, b"a", ChecksumAlgorithm="SHA1")) == "InvalidRequest"
    upload.send(1, b"a", ChecksumAlgorithm="SHA256")
    (part,) = upload.parts
    bare = {"PartNumber": 1, "ETag": part["ETag"]}
    assert code_of(lambda: upload.complete([bare])) == "InvalidRequest"
    wrong = {**bare, "ChecksumSHA256": checksum_of("sha256", b"b")}
    assert code_of(lambda: upload.complete([wrong])) == "InvalidPart"
    of_whole: dict[str, Any] = {"ChecksumSHA256": f"{checksum_of('sha256', b'a')}-1"}
    assert code_of(lambda: upload.complete(**of_whole)) == "BadDigest"
    of_digests = checksum_of("sha256", hashlib.sha256(b"a").digest())
    upload.complete(ChecksumSHA256=f"{of_digests}-1")


def test_an_upload_that_is_aborted_is_gone(client: Any, bucket: str) -> None:
    upload = InParts(client, bucket)
    upload.send(1, b"a")
    listed = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [each["UploadId"] for each in listed] == [upload.of["UploadId"]]
    client.abort_multipart_upload(**upload.of)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
    assert code_of(lambda: upload.send(2, b"b")) == "NoSuchUpload"
    assert code_of(lambda: client.list_parts(**upload.of)) == "NoSuchUpload"


def test_parts_and_uploads_are_listed_in_pages(
    strict_s3: StrictS3, client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_s3, "page", 2)
    uploads = [InParts(client, bucket) for _ in range(5)]
    for number in range(1, 6):
        uploads[0].send(number, b"x")
    pages = client.get_paginator("list_parts").paginate(**uploads[0].of)
    assert [part["PartNumber"] for page in pages for part in page["Parts"]] == [1, 2, 3, 4, 5]
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket)
    found = [each["UploadId"] for page in pages for each in page["Uploads"]]
    assert sorted(found) == sorted(each.of["UploadId"] for each in uploads)


def test_a_conditional_completion_does_not_overwrite(client: Any, bucket: str) -> None:
    upload = InParts(client, bucket)
    upload.send(1, b"new")
    client.put_object(Bucket=bucket, Key="k", Body=b"old")
    assert code_of(lambda: upload.complete(IfNoneMatch="*")) == "PreconditionFailed"
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"old"
