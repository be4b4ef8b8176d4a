"""Buckets, objects and uploads in parts of the strict S3 server, in memory."""

from __future__ import annotations

import hashlib
import itertools
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from servers.s3_errors import S3Error
from servers.s3_payload import checksum_of, composite

__all__ = ["MIB", "Checksum", "CompletedPart", "S3Store", "Stored", "Upload"]

MIB = 1024 * 1024
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_CLASSES = (
    *("STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "REDUCED_REDUNDANCY"),
    *("GLACIER_IR", *_ARCHIVES),
)


@dataclass(frozen=True)
class Checksum:
    algorithm: str  # "sha256"
    value: str  # Base64; of an object in parts with "-N" after it, unless full
    full_object: bool = True


@dataclass(frozen=True)
class Stored:
    """An object. `headers` are those of the upload that come back with it."""

    data: bytes
    etag: str
    headers: dict[str, str]
    checksum: Checksum | None
    modified: datetime
    parts: int = 0

    @property
    def storage_class(self) -> str:
        return self.headers.get("x-amz-storage-class", "STANDARD")


@dataclass(frozen=True)
class Part:
    data: bytes
    etag: str
    checksum: tuple[str, str] | None
    modified: datetime


@dataclass
class Upload:
    """An upload in parts that is not complete."""

    key: str
    headers: dict[str, str]
    algorithm: str | None
    full_object: bool
    started: datetime
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class CompletedPart:
    """One part as the request that completes an upload names it."""

    number: int
    etag: str
    checksums: dict[str, str]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _quoted(etag: str) -> str:
    return f'"{etag.strip(chr(34))}"'


class S3Store:
    """Everything that the server holds. Thread-safe.

    `minimum_part` (bytes) is how large every part but the last must be. `conflicts` is the
    number of next writes of whole objects that fail with ConditionalRequestConflict.
    """

    def __init__(self) -> None:
        self.minimum_part = 5 * MIB
        self.conflicts = 0
        self.lock = threading.RLock()
        self._buckets: dict[str, dict[str, Stored]] = {}
        self._uploads: dict[str, dict[str, Upload]] = {}

    # -- buckets -------------------------------------------------------------------------

    def bucket_names(self) -> list[str]:
        with self.lock:
            return sorted(self._buckets)

    def create_bucket(self, name: str) -> None:
        with self.lock:
            if name in self._buckets:
                raise S3Error("BucketAlreadyOwnedByYou", "The bucket exists, and it is yours.")
            self._buckets[name], self._uploads[name] = {}, {}

    def delete_bucket(self, name: str) -> None:
        with self.lock:
            if self.objects(name):
                raise S3Error("BucketNotEmpty", "The bucket you tried to delete is not empty.")
            del self._buckets[name], self._uploads[name]

    def objects(self, bucket: str) -> dict[str, Stored]:
        """The objects of a bucket by key, as they are now."""
        with self.lock:
            if bucket not in self._buckets:
                raise S3Error("NoSuchBucket", "The specified bucket does not exist")
            return dict(self._buckets[bucket])

    def uploads(self, bucket: str) -> dict[str, Upload]:
        """The uploads in parts of a bucket by id, as they are now."""
        with self.lock:
            self.objects(bucket)
            return dict(self._uploads[bucket])

    # -- objects -------------------------------------------------------------------------

    def get(self, bucket: str, key: str) -> Stored:
        found = self.objects(bucket).get(key)
        if found is None:
            raise S3Error("NoSuchKey", "The specified key does not exist.")
        return found

    def readable(self, bucket: str, key: str) -> Stored:
        """The same, unless the object lies in an archive."""
        found = self.get(bucket, key)
        if found.storage_class in _ARCHIVES:
            raise S3Error(
                "InvalidObjectState",
                "The operation is not valid for the object's storage class",
            )
        return found

    def put(
        self,
        bucket: str,
        key: str,
        data: bytes,
        headers: dict[str, str],
        checksum: tuple[str, str] | None,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Stored:
        # S3 gives every object at least a CRC64NVME; here only what the client sent is known.
        made = Stored(
            data,
            _quoted(_md5(data).hex()),
            headers,
            Checksum(*checksum) if checksum else None,
            datetime.now(UTC),
        )
        with self.lock:
            self._check_conditions(bucket, key, if_match, if_none_match)
            self._check_class(headers)
            self._buckets[bucket][key] = made
        return made

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        with self.lock:
            self.objects(bucket)
            for key in keys:
                self._buckets[bucket].pop(key, None)

    def archive(self, bucket: str, key: str) -> None:
        """Move an object to the archive: it can be seen, but not read."""
        with self.lock:
            old = self.get(bucket, key)
            headers = {**old.headers, "x-amz-storage-class": "GLACIER"}
            self._buckets[bucket][key] = Stored(
                old.data, old.etag, headers, old.checksum, old.modified, old.parts
            )

    def _check_conditions(
        self, bucket: str, key: str, if_match: str | None, if_none_match: str | None
    ) -> None:
        there = self.objects(bucket).get(key)
        if self.conflicts > 0:
            self.conflicts -= 1
            raise S3Error(
                "ConditionalRequestConflict",
                "The conditional request cannot succeed due to a conflicting operation.",
            )
        if if_none_match is not None:
            if if_none_match != "*":
                raise S3Error("NotImplemented", "If-None-Match of a write can only be *")
            if there is not None:
                raise S3Error("PreconditionFailed", "At least one precondition did not hold")
        if if_match is not None:
            if there is None:
                raise S3Error("NoSuchKey", "The specified key does not exist.")
            if _quoted(if_match) != there.etag:
                raise S3Error("PreconditionFailed", "At least one precondition did not hold")

    @staticmethod
    def _check_class(headers: dict[str, str]) -> None:
        if headers.get("x-amz-storage-class", "STANDARD") not in _CLASSES:
            raise S3Error("InvalidStorageClass", "The storage class you specified is not valid")

    # -- uploads in parts ----------------------------------------------------------------

    def create_upload(
        self,
        bucket: str,
        key: str,
        headers: dict[str, str],
        algorithm: str | None,
        *,
        full_object: bool,
    ) -> str:
        self._check_class(headers)
        identity = uuid.uuid4().hex
        with self.lock:
            self.uploads(bucket)
            self._uploads[bucket][identity] = Upload(
                key, headers, algorithm, full_object, datetime.now(UTC)
            )
        return identity

    def upload(self, bucket: str, key: str, identity: str) -> Upload:
        found = self.uploads(bucket).get(identity)
        if found is None or found.key != key:
            raise S3Error("NoSuchUpload", "The specified multipart upload does not exist.")
        return found

    def put_part(
        self,
        bucket: str,
        key: str,
        identity: str,
        number: int,
        data: bytes,
        checksum: tuple[str, str] | None,
    ) -> Part:
        if not 1 <= number <= 10000:
            raise S3Error("InvalidArgument", "Part number must be between 1 and 10000")
        part = Part(data, _quoted(_md5(data).hex()), checksum, datetime.now(UTC))
        with self.lock:
            upload = self.upload(bucket, key, identity)
            given = checksum[0] if checksum else None
            if upload.algorithm and not upload.full_object and given != upload.algorithm:
                raise S3Error(
                    "InvalidRequest",
                    f"Checksum Type mismatch occurred, expected checksum Type: "
                    f"{upload.algorithm}, actual checksum Type: {given}",
                )
            upload.parts[number] = part
        return part

    def abort(self, bucket: str, key: str, identity: str) -> None:
        with self.lock:
            self.upload(bucket, key, identity)
            del self._uploads[bucket][identity]

    def complete(
        self,
        bucket: str,
        key: str,
        identity: str,
        named: list[CompletedPart],
        *,
        size: str | None = None,
        checksums: dict[str, str] | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Stored:
        """Make an object of the parts that are named; the upload is gone afterwards."""
        with self.lock:
            upload = self.upload(bucket, key, identity)
            self._check_conditions(bucket, key, if_match, if_none_match)
            parts = self._named_parts(upload, named)
            data = b"".join(part.data for part in parts)
            checksum = self._whole_checksum(upload, parts, data)
            for algorithm, value in (checksums or {}).items():
                if checksum is None or (algorithm, value) != (checksum.algorithm, checksum.value):
                    raise S3Error("BadDigest", f"The {algorithm} you specified did not match.")
            if size is not None and size != str(len(data)):
                raise S3Error("InvalidRequest", "x-amz-mp-object-size is not the object's size")
            digest = _md5(b"".join(_md5(part.data) for part in parts)).hex()
            etag = _quoted(f"{digest}-{len(parts)}")
            made = Stored(data, etag, upload.headers, checksum, datetime.now(UTC), len(parts))
            self._buckets[bucket][key] = made
            del self._uploads[bucket][identity]
        return made

    def _named_parts(self, upload: Upload, named: list[CompletedPart]) -> list[Part]:
        if not named:
            raise S3Error("MalformedXML", "You must specify at least one part")
        numbers = [each.number for each in named]
        if any(left >= right for left, right in itertools.pairwise(numbers)):
            raise S3Error("InvalidPartOrder", "The list of parts was not in ascending order.")
        parts = []
        for each in named:
            part = upload.parts.get(each.number)
            if part is None or part.etag != _quoted(each.etag):
                raise S3Error("InvalidPart", f"Part {each.number} could not be found.")
            if upload.algorithm and not upload.full_object and not each.checksums:
                raise S3Error(
                    "InvalidRequest",
                    f"The upload was created using a {upload.algorithm} checksum. The complete "
                    f"request must include the checksum for each part. It was missing for part "
                    f"{each.number} in the request.",
                )
            for algorithm, value in each.checksums.items():
                if part.checksum != (algorithm, value):
                    raise S3Error("InvalidPart", f"The checksum of part {each.number} is wrong.")
            parts.append(part)
        for number, part in zip(numbers[:-1], parts[:-1], strict=True):
            if len(part.data) < self.minimum_part:
                raise S3Error(
                    "EntityTooSmall",
                    f"Part {number} is smaller than the minimum allowed size",
                )
        return parts

    @staticmethod
    def _whole_checksum(upload: Upload, parts: list[Part], data: bytes) -> Checksum | None:
        if upload.algorithm is None:
            return None
        if upload.full_object:
            return Checksum(upload.algorithm, checksum_of(upload.algorithm, data))
        values = [part.checksum[1] for part in parts if part.checksum is not None]
        return Checksum(upload.algorithm, composite(upload.algorithm, values), full_object=False)
