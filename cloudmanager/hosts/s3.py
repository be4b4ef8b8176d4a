"""Amazon S3, and every provider that speaks its protocol, as a host."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cloudmanager.errors import (
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
)
from cloudmanager.hosts import s3_place
from cloudmanager.hosts.base import TIME_LIMIT, Host, OnBytes
from cloudmanager.hosts.disposition import content_disposition, content_type, filename_of
from cloudmanager.hosts.s3_access import Access
from cloudmanager.hosts.s3_body import WholeBody
from cloudmanager.hosts.s3_checksums import agrees, bare_etag, proven
from cloudmanager.hosts.s3_deletes import delete_keys
from cloudmanager.hosts.s3_errors import answer_of, mapped
from cloudmanager.hosts.s3_options import S3Options
from cloudmanager.hosts.s3_parts import PartedUpload, unfinished_uploads
from cloudmanager.hosts.s3_place import Place
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import BytesSource, HashedReader, Source

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["S3Host", "S3Options", "open_s3"]

log = logging.getLogger(__name__)

SMALL = 512 * 1024
"""Bytes of the largest object that obstore sends. Its one time limit covers the whole request,
so what it sends must fit through a slow line within that, next to a dozen others."""

ONE_REQUEST = 32 * 1024 * 1024
"""Bytes of the largest object that goes up in one request."""

_BLOCK = 1024 * 1024
_LONGEST_LINK = timedelta(days=7)
# obstore takes keys apart and refuses some; these every engine spells in the same way.
_PLAIN = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]+(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]+)*\Z")


def open_s3(name: str, url: str, options: Mapping[str, Any]) -> S3Host:
    """``s3://bucket/prefix`` or ``s3+https://endpoint/bucket/prefix``.

    The options are those of `S3Options`; whatever they leave open boto3 resolves in its own
    way: profiles, environment variables, instance roles. No network I/O.
    """
    return S3Host(name, url, S3Options.parse(name, options))


class S3Host(Host):
    """Objects below one prefix of one bucket.

    Small objects go up in one request by obstore, larger ones by boto3, those above
    `ONE_REQUEST` in parts that a later `put` takes up where an interrupted one ended. Whole
    objects come down by obstore, ranges by boto3.
    """

    capabilities = Capabilities(
        checksums=frozenset({"sha256", "md5", "sha256-composite", "md5-composite"}),
        signed_urls=True,
    )

    def __init__(
        self, name: str, url: str, options: S3Options, *, time_limit: float = TIME_LIMIT
    ) -> None:
        self.name = name
        self.options = options
        self._access = Access(name, url, options, time_limit)
        self._aliases = tuple(_alias(name, alias) for alias in options.aliases)

    # -- writing -----------------------------------------------------------------------------

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        location = self.location(key)
        whole = self._whole_key(key, "put", location)
        try:  # no with-block on the way of thousands of small files in a second
            if source.size <= SMALL and _PLAIN.match(whole):
                store = self._access.writer
                if store is not None:
                    return self._put_small(
                        store, whole, key, location, source, sha256, filename, on_bytes
                    )
        except Exception:
            with self._mapped("put", location):
                raise
        with self._mapped("put", location):
            if source.size <= ONE_REQUEST:
                return self._put_whole(whole, key, location, source, sha256, filename, on_bytes)
            return self._put_parts(whole, key, location, source, sha256, filename, on_bytes)

    def _put_small(
        self,
        store: S3Store,
        whole: str,
        key: str,
        location: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectInfo:
        import obstore

        if source.trusted:
            data = source.read()
        else:
            with HashedReader(source, sha256) as reader:
                data = reader.read()
        attributes: dict[str, str] = {}
        if filename is not None:
            attributes["Content-Disposition"] = content_disposition(filename)
            attributes["Content-Type"] = content_type(filename)
        if self.options.storage_class is not None:
            attributes["Storage-Class"] = self.options.storage_class
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        proofs = (Checksum("md5", md5), Checksum("sha256", sha256))
        try:
            answer = obstore.put(store, whole, data, attributes=attributes, use_multipart=False)
        except Exception:  # noqa: BLE001 - mapped, or raised again
            try:
                with self._mapped("put", location):
                    raise
            except HostError as exc:
                info = self._settled(exc, location, len(data), lambda: proofs)
        else:
            etag = answer.get("e_tag")
            info = self._stored(location, key, len(data), etag, proofs, filename)
        if on_bytes is not None:
            on_bytes(len(data))
        return info

    def _put_whole(
        self,
        whole: str,
        key: str,
        location: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectInfo:
        if source.size <= SMALL and not source.trusted:
            with HashedReader(source, sha256) as reader:
                source = BytesSource(reader.read())
        client = self._access.client
        arguments = self._new_object(filename)
        checked = self.options.checksum == "sha256"
        with WholeBody(source, None if source.trusted else sha256) as body:

            def proofs() -> tuple[Checksum, ...]:
                return Checksum("md5", body.md5().hex()), Checksum("sha256", sha256)

            if checked:
                arguments["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
            else:
                arguments["ContentMD5"] = base64.b64encode(body.md5()).decode()
            try:
                with body.its_errors(), self._mapped("put", location):
                    answer = client.put_object(
                        Bucket=self._place.bucket,
                        Key=whole,
                        Body=body,
                        ContentLength=source.size,
                        **arguments,
                    )
            except HostError as exc:
                info = self._settled(exc, location, source.size, proofs)
            else:
                if answer.get("ChecksumSHA256") == arguments.get("ChecksumSHA256", ""):
                    # Only a server that has computed it says it in the answer to a PUT.
                    info = ObjectInfo(
                        location,
                        key,
                        source.size,
                        Checksum("sha256", sha256),
                        etag=bare_etag(answer.get("ETag")),
                        filename=filename,
                    )
                else:
                    etag = answer.get("ETag")
                    info = self._stored(location, key, source.size, etag, proofs(), filename)
        if on_bytes is not None:
            on_bytes(source.size)
        return info

    def _put_parts(
        self,
        whole: str,
        key: str,
        location: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectInfo:
        upload = PartedUpload(
            self._access.client,
            self._place.bucket,
            whole,
            source,
            sha256=sha256,
            options=self.options,
            arguments=self._new_object(filename),
            on_bytes=on_bytes,
            mapped=lambda: self._mapped("put", location),
            fault=lambda kind, text: kind(text, host=self.name, operation="put", location=location),
        )
        try:
            etag, checksum = upload.run()
        except ObjectNotFound as exc:
            # NoSuchUpload: completed by somebody else, or aborted.
            ended = HostUnavailable(
                "the upload was ended by another process",
                host=self.name,
                operation="put",
                location=location,
            )
            ended.__cause__ = exc
            return self._settled(ended, location, source.size, upload.proofs)
        except HostUnavailable as exc:
            if not upload.completing:
                raise
            return self._settled(exc, location, source.size, upload.proofs)
        return ObjectInfo(location, key, source.size, checksum, etag=etag, filename=filename)

    def _new_object(self, filename: str | None) -> dict[str, Any]:
        """The arguments of boto3 that every new object gets."""
        arguments: dict[str, Any] = {}
        if filename is not None:
            arguments["ContentDisposition"] = content_disposition(filename)
            arguments["ContentType"] = content_type(filename)
        if self.options.storage_class is not None:
            arguments["StorageClass"] = self.options.storage_class
        if self.options.sse is not None:
            arguments["ServerSideEncryption"] = self.options.sse
        if self.options.sse_kms_key_id is not None:
            arguments["SSEKMSKeyId"] = self.options.sse_kms_key_id
        return arguments

    def _stored(
        self,
        location: str,
        key: str,
        size: int,
        etag: str | None,
        proofs: tuple[Checksum, ...],
        filename: str | None,
    ) -> ObjectInfo:
        """What was stored, as the ETag in the answer proves it; looked at when it does not.

        With SSE-KMS, also as the bucket's own default, the ETag is no MD5.
        """
        etag = bare_etag(etag)
        for proof in proofs:
            if proof.kind.startswith("md5") and proof.value == etag:
                return ObjectInfo(location, key, size, proof, etag=etag, filename=filename)
        info = self.stat(location)
        verdict = agrees(info, size, proofs)
        if verdict is False:
            raise IntegrityError(
                "the server stored other bytes than it was sent",
                host=self.name,
                operation="put",
                location=location,
            )
        return info

    def _settled(
        self,
        error: HostError,
        location: str,
        size: int,
        proofs: Callable[[], tuple[Checksum, ...]],
    ) -> ObjectInfo:
        """The object, when it is there in spite of `error`; else `error` is raised.

        An acknowledgement that never came, a conflict with another writer of the same key, an
        upload that somebody else has completed: only looking tells. What the server cannot
        prove does not count.
        """
        refused = answer_of(error.__cause__) if error.__cause__ is not None else None
        if not error.retryable and (refused is None or refused.status != 409):
            raise error
        try:
            info = self.stat(location)
        except HostError:
            info = None
        if info is None or info.size != size or agrees(info, size, proofs()) is not True:
            raise error
        log.info("%s; but it is there", error)
        return info

    # -- reading -----------------------------------------------------------------------------

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        key = self._key_of(location, "get")
        whole = self._whole_key(key, "get", location)
        if length == 0:
            return
        with self._mapped("get", location):
            store = self._access.reader
            if store is not None and offset == 0 and length is None and _PLAIN.match(whole):
                yield from _read_whole(store, whole)
            else:
                yield from self._read_range(whole, location, offset, length)

    def read(self, location: str, *, limit: int) -> bytes:
        # No generator and no with-block on the way that nearly all small files take: thousands
        # of them go through here in a second.
        try:
            whole = self._whole_key(self._key_of(location, "get"), "get", location)
            store = self._access.reader
            if store is None or not _PLAIN.match(whole):
                return super().read(location, limit=limit)
            import obstore

            answer = obstore.get(store, whole)
            if answer.meta["size"] > limit:
                raise self._too_long(location, limit)
            return answer.bytes().to_bytes()
        except Exception:
            with self._mapped("get", location):
                raise

    def _read_range(
        self, whole: str, location: str, offset: int, length: int | None
    ) -> Iterator[bytes]:
        from botocore.exceptions import ClientError

        arguments: dict[str, Any] = {}
        if offset or length is not None:
            end = "" if length is None else offset + length - 1
            arguments["Range"] = f"bytes={offset}-{end}"
        try:
            answer = self._access.client.get_object(
                Bucket=self._place.bucket, Key=whole, **arguments
            )
        except ClientError as exc:
            if exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416:
                return  # the range starts at the end or past it
            raise
        with answer["Body"] as body:
            skip, left = self._judge(answer, location, offset, length)
            while left > 0:
                # One read too many would be needed to see that the server sends more than it
                # said; less than it said is an error of urllib3's.
                block = _as_it_came(body, min(_BLOCK, skip or left))
                if not block:
                    raise HostUnavailable(
                        f"the answer ended {skip + left} bytes too early",
                        host=self.name,
                        operation="get",
                        location=location,
                    )
                if skip:
                    skip -= len(block)
                    continue
                left -= len(block)
                yield block

    def _judge(
        self, answer: Mapping[str, Any], location: str, offset: int, length: int | None
    ) -> tuple[int, int]:
        """How many bytes of an answer to skip, and how many to hand over after that.

        Content-Range says what came, whatever the status; without one it is the whole object,
        from a server that ignores ranges.
        """
        size: int = answer["ContentLength"]
        shown = answer.get("ContentRange")
        if not shown:
            if offset >= size:
                return 0, 0
            return offset, size - offset if length is None else min(length, size - offset)
        match = re.fullmatch(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)\s*", shown)
        first, last = (int(match.group(1)), int(match.group(2))) if match else (-1, -1)
        total = int(match.group(3)) if match and match.group(3) != "*" else None
        wanted = last - first + 1 if length is None else length
        if total is not None:
            wanted = min(wanted, total - offset)
            if length is None:
                wanted = total - offset
        if first != offset or last - first + 1 != size or size != wanted:
            raise HostUnavailable(
                f"the answer is not the range that was asked for: {shown[:60]!r}, {size} bytes",
                host=self.name,
                operation="get",
                location=location,
            )
        return 0, size

    def stat(self, location: str) -> ObjectInfo:
        key = self._key_of(location, "stat")
        whole = self._whole_key(key, "stat", location)
        client, bucket = None, self._place.bucket
        try:
            with self._mapped("stat", location):
                client = self._access.client
                answer: Any = client.head_object(Bucket=bucket, Key=whole, ChecksumMode="ENABLED")
                checksum = proven(client, bucket, whole, answer, self.options)
        except ObjectNotFound:
            # A HEAD has no body to say which of the two is missing.
            if client is not None and self._bucket_is_missing(client):
                raise ContainerNotFound(
                    "there is no such bucket; create it or correct the URL",
                    host=self.name,
                    operation="stat",
                    location=location,
                ) from None
            raise
        return ObjectInfo(
            self._place.location(key),
            key,
            answer["ContentLength"],
            checksum,
            modified=_utc(answer.get("LastModified")),
            etag=bare_etag(answer.get("ETag")),
            filename=filename_of(answer.get("ContentDisposition")),
        )

    def _bucket_is_missing(self, client: Any) -> bool:
        try:
            with self._mapped("stat"):
                client.head_bucket(Bucket=self._place.bucket)
        except ObjectNotFound:
            return True
        except HostError:
            return False  # not allowed to ask: then the object is what was not found
        return False

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        place = self._place
        whole = place.prefix + prefix
        arguments: dict[str, Any] = {"Prefix": whole}
        if after:
            arguments["StartAfter"] = place.prefix + after
        passed, floor = b"", _order(after)
        with self._mapped("list", place.location(prefix)):
            pages = self._access.client.get_paginator("list_objects_v2").paginate(
                Bucket=place.bucket, **arguments
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"][len(place.prefix) :]
                    order = _order(key)
                    if not found["Key"].startswith(whole) or (passed and order <= passed):
                        raise HostError(
                            f"the server lists {key!r} out of order",
                            host=self.name,
                            operation="list",
                            location=place.location(prefix),
                        )
                    passed = order
                    # Some servers ignore StartAfter. An empty key is the "folder" itself.
                    if key and order > floor:
                        yield ObjectInfo(
                            place.location(key),
                            key,
                            found["Size"],
                            modified=_utc(found.get("LastModified")),
                            etag=bare_etag(found.get("ETag")),
                        )

    # -- care --------------------------------------------------------------------------------

    def delete(self, locations: Iterable[str]) -> None:
        wanted = {}
        for location in locations:
            key = self._key_of(location, "delete")
            wanted[self._whole_key(key, "delete", location)] = location
        if not wanted:
            return
        first = next(iter(wanted.values()))
        with self._mapped("delete", first if len(wanted) == 1 else self._place.url):
            client = self._access.client
            delete_keys(client, self._place.bucket, wanted, self.name, self._mapped)

    def owns(self, location: str) -> bool:
        return self._key(location) is not None

    def location(self, key: str) -> str:
        return self._place.location(key)

    def check(self) -> None:
        place = self._place
        with self._mapped("check", place.url):
            # Not HeadBucket: its refusal has no body, and so no reason.
            self._access.client.list_objects_v2(Bucket=place.bucket, Prefix=place.prefix, MaxKeys=1)

    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        key = self._key_of(location, "signed_url")
        whole = self._whole_key(key, "signed_url", location)
        if not timedelta(0) < expires <= _LONGEST_LINK:
            raise ConfigurationError("a signed link to S3 is valid for 1 second to 7 days")
        arguments: dict[str, Any] = {"Bucket": self._place.bucket, "Key": whole}
        if filename is not None:
            arguments["ResponseContentDisposition"] = content_disposition(filename)
            arguments["ResponseContentType"] = content_type(filename)
        with self._mapped("signed_url", location):
            link: str = self._access.client.generate_presigned_url(
                "get_object", Params=arguments, ExpiresIn=max(1, int(expires.total_seconds()))
            )
        return link

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Abort the multipart uploads below the prefix that were begun and not finished."""
        place = self._place
        limit = datetime.now(UTC) - older_than
        try:
            with self._mapped("clean", place.url):
                client = self._access.client
                # Listed to the end before anything is aborted: pages move when uploads vanish.
                found = unfinished_uploads(client, place.bucket, place.prefix)
        except ObjectNotFound:
            return  # rclone's way to say that there is none
        for each in found:
            begun = _utc(each.get("Initiated"))
            if len(each["Key"]) == len(place.prefix) or begun is None or begun > limit:
                continue
            location = place.location(each["Key"][len(place.prefix) :])
            try:
                with self._mapped("clean", location):
                    client.abort_multipart_upload(
                        Bucket=place.bucket, Key=each["Key"], UploadId=each["UploadId"]
                    )
            except ObjectNotFound:
                continue  # finished or aborted by somebody else meanwhile
            yield f"{location} (upload begun {begun:%Y-%m-%d %H:%M} UTC)"

    def close(self) -> None:
        self._access.close()

    # -- names -------------------------------------------------------------------------------

    @property
    def _place(self) -> Place:
        return self._access.place

    def _mapped(self, operation: str, location: str = "") -> AbstractContextManager[None]:
        return mapped(self.name, operation, location, looked=self._access.looked)

    def _key(self, location: str) -> str | None:
        for place in (self._place, *self._aliases):
            if (key := place.key(location)) is not None:
                return key
        return None

    def _key_of(self, location: str, operation: str) -> str:
        key = self._key(location)
        if key is None:
            raise HostError(
                f"this location does not lie below {self._place.url}",
                host=self.name,
                operation=operation,
                location=location,
            )
        return key

    def _whole_key(self, key: str, operation: str, location: str) -> str:
        """The key in the bucket, checked before any I/O."""
        whole = self._place.prefix + key
        try:
            too_long = len(whole.encode()) > s3_place.LONGEST_KEY
        except UnicodeEncodeError:
            reason = "a key must be text that can be written as UTF-8"
        else:
            if key and not too_long:
                return whole
            reason = f"a key has 1 to {s3_place.LONGEST_KEY} bytes, the prefix included"
        raise HostError(reason, host=self.name, operation=operation, location=location)


def _alias(name: str, url: str) -> Place:
    try:
        return Place.make(*s3_place.parse_url(url))
    except ValueError as exc:
        raise ConfigurationError(f"host {name}: alias: {exc}") from exc


def _read_whole(store: S3Store, whole: str) -> Iterator[bytes]:
    import obstore

    answer = obstore.get(store, whole)
    if answer.meta["size"] <= _BLOCK:
        yield answer.bytes().to_bytes()
        return
    for block in answer.stream(min_chunk_size=_BLOCK):
        yield bytes(block)


def _as_it_came(body: Any, size: int) -> bytes:
    """Up to `size` bytes of an answer's body.

    Past botocore, which has urllib3 look for a Content-Encoding to undo and pass every byte
    through two more buffers: that is half of the CPU of a download. An object is what it is,
    whatever encoding its metadata claim.
    """
    raw = getattr(body, "_raw_stream", None)
    data: bytes = body.read(size) if raw is None else raw.read(size, decode_content=False)
    return data


def _order(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _utc(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)
