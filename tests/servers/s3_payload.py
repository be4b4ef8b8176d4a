"""What a request says about its own bytes, and whether it is true.

Payload hashes, Content-MD5, the x-amz-checksum headers and the aws-chunked encoding with
its trailers, after the S3 user guide, "Checking object integrity".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Mapping

from servers.s3_errors import S3Error

__all__ = ["ALGORITHMS", "checksum_of", "composite", "verified_payload"]

_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


def _table(polynomial: int) -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _table(0x82F63B78)
_CRC64NVME = _table(0x9A6C9329AC4BC9B5)


def _reflected(table: list[int], bits: int, data: bytes) -> bytes:
    ones = (1 << bits) - 1
    value = ones
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return (value ^ ones).to_bytes(bits // 8, "big")


ALGORITHMS: dict[str, Callable[[bytes], bytes]] = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    # Pure Python, a few MB/s: for the small objects of a test.
    "crc32c": lambda data: _reflected(_CRC32C, 32, data),
    "crc64nvme": lambda data: _reflected(_CRC64NVME, 64, data),
}


def checksum_of(algorithm: str, data: bytes) -> str:
    """The checksum as S3 writes it, in Base64."""
    return base64.b64encode(ALGORITHMS[algorithm](data)).decode()


def composite(algorithm: str, parts: list[str]) -> str:
    """The checksum of an object in parts: that of the checksums, with their number."""
    joined = b"".join(base64.b64decode(part) for part in parts)
    return f"{checksum_of(algorithm, joined)}-{len(parts)}"


def verified_payload(
    headers: Mapping[str, str], body: bytes, signed: str
) -> tuple[bytes, tuple[str, str] | None]:
    """The payload, decoded, and the algorithm and value of the checksum that came with it.

    `signed` is the payload hash out of the signature. Raises `S3Error` for every claim about
    the bytes that is not true.
    """
    claims = {
        name.removeprefix("x-amz-checksum-"): value
        for name, value in headers.items()
        if name.removeprefix("x-amz-checksum-") in ALGORITHMS
    }
    if signed == _TRAILER:
        body = _unchunked(headers, body, claims)
    elif signed != "UNSIGNED-PAYLOAD":
        if signed.startswith("STREAMING-"):
            raise S3Error("NotImplemented", f"payloads signed as {signed} are not implemented")
        if hashlib.sha256(body).hexdigest() != signed:
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                "The provided 'x-amz-content-sha256' header does not match what was computed.",
            )
    _check_md5(headers, body)
    if len(claims) > 1:
        raise S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header")
    announced = headers.get("x-amz-sdk-checksum-algorithm", "").lower()
    if announced and announced not in claims:
        raise S3Error(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or "
            "x-amz-trailer headers were found.",
        )
    for algorithm, value in claims.items():
        true = checksum_of(algorithm, body)
        if _decoded(value) is None or len(value) != len(true):
            raise S3Error(
                "InvalidRequest", f"Value for x-amz-checksum-{algorithm} header is invalid."
            )
        if value != true:
            raise S3Error(
                "BadDigest",
                f"The {algorithm.upper()} you specified did not match the calculated checksum.",
            )
        return body, (algorithm, value)
    return body, None


def _check_md5(headers: Mapping[str, str], body: bytes) -> None:
    value = headers.get("content-md5")
    if value is None:
        return
    digest = _decoded(value)
    if digest is None or len(digest) != 16:
        raise S3Error("InvalidDigest", "The Content-MD5 you specified was invalid.")
    if digest != hashlib.md5(body, usedforsecurity=False).digest():
        raise S3Error("BadDigest", "The Content-MD5 you specified did not match what we received.")


def _decoded(value: str) -> bytes | None:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        return None


def _unchunked(headers: Mapping[str, str], body: bytes, claims: dict[str, str]) -> bytes:
    """Decode aws-chunked; the checksums of its trailer go to `claims`."""
    if "aws-chunked" not in headers.get("content-encoding", ""):
        raise S3Error("InvalidRequest", "a trailer needs the content encoding aws-chunked")
    blocks = []
    at = 0
    try:
        while True:
            end = body.index(b"\r\n", at)
            size = int(body[at:end].split(b";")[0], 16)
            at = end + 2
            if size == 0:
                break
            blocks.append(body[at : at + size])
            at += size
            if body[at : at + 2] != b"\r\n":
                raise S3Error("IncompleteBody", "a chunk is not as long as it says")
            at += 2
        lines = body[at:].decode("ascii").split("\r\n")
    except ValueError as exc:
        raise S3Error("IncompleteBody", "the chunks of the body are malformed") from exc
    payload = b"".join(blocks)
    if headers.get("x-amz-decoded-content-length") != str(len(payload)):
        raise S3Error("IncompleteBody", "the body is not as long as x-amz-decoded-content-length")
    trailer = dict(line.split(":", 1) for line in lines if ":" in line)
    for name in filter(None, headers.get("x-amz-trailer", "").split(",")):
        if name not in trailer:
            raise S3Error("InvalidRequest", f"the trailer {name} is missing")
        claims[name.removeprefix("x-amz-checksum-")] = trailer[name].strip()
    return payload
