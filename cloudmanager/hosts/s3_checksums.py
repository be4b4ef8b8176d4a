"""What an S3 server proves about an object, and whether that is what was sent."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.model import Checksum, ObjectInfo

__all__ = ["agrees", "bare_etag", "proven"]

_MD5 = re.compile(r"[0-9a-f]{32}\Z")
_COMPOSITE = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,4})\Z")


def bare_etag(etag: str | None) -> str | None:
    """An ETag without its quotes."""
    return etag.strip('"').lower() if etag else None


def agrees(info: ObjectInfo, size: int, proofs: Iterable[Checksum]) -> bool | None:
    """Whether an object is what was sent; None when the server cannot prove either."""
    if info.size != size:
        return False
    for proof in proofs:
        if info.checksum is not None and proof.kind == info.checksum.kind:
            return proof.value == info.checksum.value
    return None


def proven(
    client: Any, bucket: str, key: str, answer: Mapping[str, Any], options: S3Options
) -> Checksum | None:
    """The checksum in the `answer` to a HEAD; asks again for the size of the parts.

    A SHA-256 counts only together with its type: some servers repeat every header that came
    with the PUT, and that would be our own word. An ETag is no MD5 under SSE-KMS.
    """
    sha256, kind = answer.get("ChecksumSHA256"), answer.get("ChecksumType")
    etag = bare_etag(answer.get("ETag")) or ""
    if sha256 and kind == "FULL_OBJECT":
        return Checksum("sha256", base64.b64decode(sha256).hex())
    if sha256 and kind == "COMPOSITE" and "-" in sha256:
        digest, _, count = sha256.rpartition("-")
        part_size = _part_size(client, bucket, key, answer, options, int(count))
        if part_size is not None:
            value = f"{base64.b64decode(digest).hex()}-{count}"
            return Checksum("sha256-composite", value, part_size)
    encrypted = str(answer.get("ServerSideEncryption") or "").startswith("aws:kms")
    if encrypted or answer.get("SSECustomerAlgorithm"):
        return None
    if _MD5.match(etag):
        return Checksum("md5", etag)
    if match := _COMPOSITE.match(etag):
        part_size = _part_size(client, bucket, key, answer, options, int(match.group(2)))
        if part_size is not None:
            return Checksum("md5-composite", etag, part_size)
    return None


def _part_size(
    client: Any,
    bucket: str,
    key: str,
    answer: Mapping[str, Any],
    options: S3Options,
    count: int,
) -> int | None:
    """Bytes of the first part; None when that cannot be known."""
    size: int = answer["ContentLength"]
    if count == 1:
        return size
    first: Any = client.head_object(Bucket=bucket, Key=key, PartNumber=1)
    length: int = first["ContentLength"]
    if length < size and -(-size // length) == count:
        return length
    # A server that ignores partNumber: the way we cut objects of this size, if that fits.
    ours = options.size_of_parts(size)
    return ours if length == size and -(-size // ours) == count else None
