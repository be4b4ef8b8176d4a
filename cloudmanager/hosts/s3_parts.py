"""A large object goes up in parts, and an interrupted upload is taken up where it ended.

The state lies at the server: the unfinished upload of exactly this key and its parts. Before
a part is sent, the one that is there is compared by size and checksum; so it does not matter
which process, on which machine, has sent it, and nothing has to be kept on the disk.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cloudmanager.errors import (
    CloudManagerError,
    ContainerNotFound,
    HostError,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
    SourceChanged,
)
from cloudmanager.hosts.base import OnBytes
from cloudmanager.hosts.s3_body import PartBody
from cloudmanager.hosts.s3_errors import answer_of
from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.model import Checksum
from cloudmanager.source import HashedReader, Source

__all__ = ["PartedUpload", "unfinished_uploads"]

log = logging.getLogger(__name__)

_MOST_CANDIDATES = 4
_MD5 = re.compile(r"[0-9a-f]{32}\Z")
Mapped = Callable[[], AbstractContextManager[None]]
Fault = Callable[[type[HostError], str], HostError]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part at the server. `sha256` is base64 as S3 writes it, `etag` without quotes."""

    size: int
    etag: str
    sha256: str | None = None


class PartedUpload:
    """One pass over one upload. Used once, from one thread, which does the reading.

    At most ``concurrency + 1`` parts are in memory. A failure leaves the finished parts at the
    server, so that the next pass sends only what is missing; `SourceChanged` aborts the upload.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        key: str,
        source: Source,
        *,
        sha256: str,
        options: S3Options,
        arguments: dict[str, Any],
        on_bytes: OnBytes | None,
        mapped: Mapped,
        fault: Fault,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._key = key
        self._source = source
        self._sha256 = sha256
        self._options = options
        self._arguments = arguments
        self._on_bytes = on_bytes
        self._mapped = mapped
        self._fault = fault
        self._size = options.size_of_parts(source.size)
        self._count = -(-source.size // self._size)
        self.completing = False
        """Whether all parts were sent, so that the object may be there in spite of an error."""
        self._reset()

    def _reset(self) -> None:
        self._upload_id = ""
        # Which checksum the parts carry is decided when the upload is begun.
        self._with_sha256 = self._options.checksum == "sha256"
        self._there: dict[int, _Part] = {}
        self._sha256s: list[bytes | None] = [None] * self._count
        self._md5s: list[bytes | None] = [None] * self._count
        self._etags: list[str] = [""] * self._count
        # Unknown until the first answer: whether the server itself tells the SHA-256.
        self._tells_sha256: bool | None = None
        self._stopped = threading.Event()  # begin no other part
        self._cut = threading.Event()  # break off those that are on their way

    def run(self) -> tuple[str, Checksum | None]:
        """Send what is missing, complete the upload; the ETag and checksum of the object.

        Raises
        ------
        ObjectNotFound
            When the upload has been ended by somebody else.
        SourceChanged
            When the source does not have the hash; the upload has been aborted.
        HostError
            Whatever the server says; the finished parts are kept.
        """
        if self._find():
            try:
                return self._pass()
            except HostError as exc:
                if type(exc) is not HostError:
                    raise
                # It was begun in another way than ours, or holds a wrong part that this
                # provider (rclone is one) does not let us replace.
                log.warning("the unfinished upload cannot be taken up, starting anew: %s", exc)
                self._abort()
                self._reset()
        self._begin()
        return self._pass()

    def _pass(self) -> tuple[str, Checksum | None]:
        try:
            with ThreadPoolExecutor(self._options.concurrency, "s3-part") as pool:
                self._send_all(pool)
            return self._complete()
        except SourceChanged:
            self._abort()
            raise

    def proofs(self) -> tuple[Checksum, ...]:
        """What the object's checksum must be, in each form a server may have it.

        Reads the whole source once more: it is only needed when an answer was lost.
        """
        whole, sha256s, md5s = _new_md5(b""), [], []
        with HashedReader(self._source, self._sha256) as reader:
            for index in range(self._count):
                data = reader.read(self._length(index))
                whole.update(data)
                sha256s.append(hashlib.sha256(data).digest())
                md5s.append(_md5(data))
        sha256, md5 = hashlib.sha256(b"".join(sha256s)), _new_md5(b"".join(md5s))
        return (
            Checksum("sha256-composite", f"{sha256.hexdigest()}-{self._count}", self._size),
            Checksum("md5-composite", f"{md5.hexdigest()}-{self._count}", self._size),
            Checksum("sha256", self._sha256),
            Checksum("md5", whole.hexdigest()),
        )

    # -- the upload at the server ------------------------------------------------------------

    def _find(self) -> bool:
        """Look for an unfinished upload of this key, and take up the fullest one."""
        candidates: list[tuple[int, str, bool, dict[int, _Part]]] = []
        try:
            with self._mapped():
                uploads = self._unfinished()
            for upload in uploads:
                try:
                    with self._mapped():
                        parts, algorithm = self._list_parts(upload["UploadId"])
                except ObjectNotFound:
                    continue  # completed or aborted since
                # Amazon says it in both listings, others in one or none.
                algorithm = upload.get("ChecksumAlgorithm") or algorithm
                if algorithm not in (None, "SHA256"):
                    continue  # begun by another program
                right = sum(
                    part.size
                    for number, part in parts.items()
                    if number <= self._count and part.size == self._length(number - 1)
                )
                hashed = algorithm == "SHA256"
                candidates.append((right, upload["UploadId"], hashed, parts))
        except HostError as exc:
            if exc.retryable or isinstance(exc, ContainerNotFound):
                raise
            # Not allowed, or not offered by this provider: then there is nothing to take up.
            log.debug("unfinished uploads cannot be listed: %s", exc)
        if not candidates:
            return False
        _, self._upload_id, hashed, self._there = max(candidates, key=lambda each: each[:2])
        self._with_sha256 = self._with_sha256 and hashed
        log.info("taking up the upload of %s: %d parts are there", self._key, len(self._there))
        return True

    def _unfinished(self) -> list[Any]:
        below = unfinished_uploads(self._client, self._bucket, self._key)
        found = [upload for upload in below if upload["Key"] == self._key]
        found.sort(key=lambda upload: upload["Initiated"], reverse=True)
        return found[:_MOST_CANDIDATES]

    def _list_parts(self, upload_id: str) -> tuple[dict[int, _Part], str | None]:
        """The parts by number, and the algorithm of their checksums where it is said."""
        parts: dict[int, _Part] = {}
        algorithm: str | None = None
        pages = self._client.get_paginator("list_parts").paginate(
            Bucket=self._bucket, Key=self._key, UploadId=upload_id
        )
        for page in pages:
            algorithm = algorithm or page.get("ChecksumAlgorithm")
            for part in page.get("Parts", ()):
                parts[part["PartNumber"]] = _Part(
                    part["Size"], part["ETag"].strip('"').lower(), part.get("ChecksumSHA256")
                )
        return parts, algorithm

    def _begin(self) -> None:
        arguments = dict(self._arguments)
        if self._with_sha256:
            arguments["ChecksumAlgorithm"] = "SHA256"
        with self._mapped():
            answer = self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._key, **arguments
            )
        self._upload_id = answer["UploadId"]

    def _abort(self) -> None:
        try:
            with self._mapped():
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key, UploadId=self._upload_id
                )
        except HostError as exc:
            # What matters is SourceChanged; `clean` takes care of what stays behind.
            log.warning("an unfinished upload stays behind: %s", exc)

    def _complete(self) -> tuple[str, Checksum | None]:
        parts: list[Any] = []
        for index in range(self._count):
            part: dict[str, Any] = {"PartNumber": index + 1, "ETag": f'"{self._etags[index]}"'}
            digest = self._sha256s[index]
            if self._with_sha256 and digest is not None:
                part["ChecksumSHA256"] = base64.b64encode(digest).decode()
            parts.append(part)
        self.completing = True
        try:
            with self._mapped():
                answer = self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=self._key,
                    UploadId=self._upload_id,
                    MultipartUpload={"Parts": parts},
                )
        except HostError as exc:
            refused = answer_of(exc.__cause__) if exc.__cause__ is not None else None
            if refused is not None and refused.code == "InvalidPart":
                # Another process has sent one of the parts again, under another ETag: the
                # next pass lists them afresh.
                raise self._fault(HostUnavailable, "InvalidPart: a part was replaced") from exc
            raise
        etag = str(answer.get("ETag") or "").strip('"').lower()
        told = str(answer.get("ChecksumSHA256") or "")
        if told and self._tells_sha256:
            hashed, _, count = told.rpartition("-")
            value = f"{base64.b64decode(hashed).hex()}-{count}"
            known = hashlib.sha256(b"".join(d for d in self._sha256s if d is not None))
            return etag, self._agreed(
                Checksum("sha256-composite", value, self._size),
                f"{known.hexdigest()}-{self._count}",
            )
        if all(digest is not None for digest in self._md5s) and re.match(
            r"[0-9a-f]{32}-\d+\Z", etag
        ):
            known = _new_md5(b"".join(d for d in self._md5s if d is not None))
            return etag, self._agreed(
                Checksum("md5-composite", etag, self._size), f"{known.hexdigest()}-{self._count}"
            )
        return etag, None

    def _agreed(self, checksum: Checksum, known: str) -> Checksum:
        if checksum.value == known:
            return checksum
        raise self._fault(IntegrityError, "the server put other bytes together than it was sent")

    # -- parts -------------------------------------------------------------------------------

    def _length(self, index: int) -> int:
        return min(self._size, self._source.size - index * self._size)

    def _send_all(self, pool: ThreadPoolExecutor) -> None:
        pending: set[Future[int]] = set()
        try:
            for index, data in self._read():
                while len(pending) >= self._options.concurrency:
                    pending = self._collect(pending)
                pending.add(pool.submit(self._send, index, data))
            while pending:
                pending = self._collect(pending)
        except BaseException as exc:
            self._stopped.set()
            if not isinstance(exc, CloudManagerError):
                self._cut.set()  # Ctrl-C, or `on_bytes` ends the transfer
            # Else the other parts end first: what they have sent stays of use.
            wait(pending)
            raise

    def _read(self) -> Iterator[tuple[int, bytes | None]]:
        """The parts in order; None for one that its sender reads by itself.

        What is not trusted is read once, in order, and hashed on the way.
        """
        if self._source.trusted:
            for index in range(self._count):
                yield index, None
            return
        with HashedReader(self._source, self._sha256) as reader:
            for index in range(self._count):
                yield index, reader.read(self._length(index))

    def _collect(self, pending: set[Future[int]]) -> set[Future[int]]:
        done, rest = wait(pending, return_when=FIRST_COMPLETED)
        failed: BaseException | None = None
        for future in done:
            error = future.exception()
            if error is not None:
                # What a later pass can cure gives way to what it cannot.
                if failed is None or getattr(failed, "retryable", False):
                    failed = error
            elif self._on_bytes is not None and future.result():
                self._on_bytes(future.result())
        if failed is not None:
            self._stopped.set()
            raise failed
        return rest

    def _send(self, index: int, data: bytes | None) -> int:
        """Send one part unless it is there; how many bytes went out."""
        if self._stopped.is_set():
            return 0
        if data is None:
            data = self._source.read(index * self._size, self._length(index))
        if self._with_sha256:
            self._sha256s[index] = hashlib.sha256(data).digest()
        if self._is_there(index, data):
            return 0
        arguments: dict[str, Any] = {}
        if self._with_sha256:
            arguments["ChecksumSHA256"] = self._b64(index)
        else:
            self._md5s[index] = _md5(data)
            arguments["ContentMD5"] = base64.b64encode(self._md5s[index] or b"").decode()
        with self._mapped():
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload_id,
                PartNumber=index + 1,
                Body=PartBody(data, self._cut),
                ContentLength=len(data),
                **arguments,
            )
        self._etags[index] = answer["ETag"].strip('"').lower()
        self._believe(index, data, answer)
        return len(data)

    def _believe(self, index: int, data: bytes, answer: Any) -> None:
        """Check what the server says it got. Most servers outside Amazon tell no SHA-256."""
        if self._with_sha256:
            told = answer.get("ChecksumSHA256")
            self._tells_sha256 = told is not None
            if told is not None:
                if told != self._b64(index):
                    raise self._damaged(index)
                return
        if str(answer.get("ServerSideEncryption") or "").startswith("aws:kms"):
            return  # then the ETag is no MD5
        md5 = self._md5s[index] = self._md5s[index] or _md5(data)
        if _MD5.match(self._etags[index]) and self._etags[index] != md5.hex():
            raise self._damaged(index)

    def _damaged(self, index: int) -> HostError:
        return self._fault(HostUnavailable, f"part {index + 1} did not arrive as it was sent")

    def _is_there(self, index: int, data: bytes) -> bool:
        part = self._there.get(index + 1)
        if part is None or part.size != len(data):
            return False
        if part.sha256 is not None and self._with_sha256:
            if part.sha256 != self._b64(index):
                return False
            self._tells_sha256 = True
        else:
            md5 = self._md5s[index] = _md5(data)
            if part.etag != md5.hex():
                return False
        self._etags[index] = part.etag
        return True

    def _b64(self, index: int) -> str:
        return base64.b64encode(self._sha256s[index] or b"").decode()


def unfinished_uploads(client: Any, bucket: str, prefix: str) -> list[Any]:
    """The multipart uploads of keys that start with `prefix`, as boto3 describes them."""
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    uploads = (upload for page in pages for upload in page.get("Uploads", ()))
    # Not every server filters by the prefix.
    return [upload for upload in uploads if upload["Key"].startswith(prefix)]


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _new_md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
