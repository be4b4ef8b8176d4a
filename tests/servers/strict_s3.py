"""An S3 server that believes nothing: it verifies what no server to be installed verifies.

Signatures (headers and presigned), payload hashes, Content-MD5, checksums in headers and
trailers, the size, order and checksums of parts. It answers with S3's own error codes. The
network's faults are those of the proxy; only what S3 itself would say is here: conflicts on
demand (`conflicts`) and objects in an archive (`archive`). Path-style addresses only.
"""

from __future__ import annotations

import http
import re
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote
from xml.sax.saxutils import escape

from servers.process import free_port
from servers.s3_errors import S3Error
from servers.s3_payload import ALGORITHMS, verified_payload
from servers.s3_server import S3Server
from servers.s3_signature import REGION, Signer, query_pairs
from servers.s3_store import CompletedPart, S3Store, Stored

__all__ = ["StrictS3"]

ACCESS_KEY = "STRICTTESTACCESSKEY"
SECRET_KEY = "strict/test+secret/key"

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_KEPT = (
    *("content-type", "content-disposition", "content-encoding", "content-language"),
    *("cache-control", "expires", "x-amz-storage-class", "x-amz-server-side-encryption"),
    *("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-website-redirect-location"),
)


class StrictS3(S3Server):
    """A running strict server, in a thread of this process; other processes reach it too.

    `store` is what it holds, for a look behind a host's back. `page` is how many entries a
    listing has at most.
    """

    def __init__(self) -> None:
        self.store = S3Store()
        self.page = 1000
        self.signer = Signer(ACCESS_KEY, SECRET_KEY)
        self._server = _Server(("127.0.0.1", free_port()), _Handler)
        self._server.owner = self
        super().__init__(f"http://127.0.0.1:{self._server.server_port}", ACCESS_KEY, SECRET_KEY)
        # Asked every 50 ms whether to stop: the default is half a second of waiting at the end.
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="strict-s3", daemon=True
        )
        self._thread.start()

    def archive(self, bucket: str, key: str) -> None:
        """Move an object to the archive: it can be seen, but not read."""
        self.store.archive(bucket, key)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    owner: StrictS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up is what many a test is about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "StrictS3"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: what a test wants to know it asks the proxy."""

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def handle_expect_100(self) -> bool:
        # Without the flush the client would wait a second before it sends its body.
        proceed = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    # -- every request -------------------------------------------------------------------

    def _handle(self) -> None:
        self._store = self.server.owner.store
        self._path, _, query = self.path.partition("?")
        self._query = dict(query_pairs(query))
        self._fields: dict[str, str] = {}
        for name, value in self.headers.items():
            old = self._fields.get(name.lower())
            self._fields[name.lower()] = value if old is None else f"{old},{value}"
        try:
            body = self._read_body()
            signed = self.server.owner.signer.verify(self.command, self._path, query, self._fields)
            about_body = dict(self._fields)
            if self.command == "POST" and "uploadId" in self._query:
                # What completes an upload names the checksum of the object, not its own.
                for name in ALGORITHMS:
                    about_body.pop(f"x-amz-checksum-{name}", None)
            self._payload, self._checksum = verified_payload(about_body, body, signed)
            bucket, _, key = self._path.removeprefix("/").partition("/")
            self._bucket, self._key = unquote(bucket), unquote(key)
            self._operation()()
        except S3Error as error:
            self._send(error.status, error.xml(unquote(self._path)), _XML)

    def _read_body(self) -> bytes:
        if "transfer-encoding" in self._fields:
            self.close_connection = True
            raise S3Error(
                "MissingContentLength", "You must provide the Content-Length HTTP header."
            )
        length = int(self._fields.get("content-length", "0"))
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            raise S3Error("IncompleteBody", "The body is shorter than Content-Length.")
        return body

    def _operation(self) -> Callable[[], None]:
        level = "object" if self._key else "bucket" if self._bucket else "service"
        for method, where, marks, operation in _OPERATIONS:
            if (method, where) == (self.command, level) and marks <= self._query.keys():
                return lambda: operation(self)
        raise S3Error("NotImplemented", f"{self.command} of this {level} is not implemented")

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status, http.HTTPStatus(status).phrase)
        self.send_header("x-amz-request-id", "strict")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204 and "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _send_xml(self, root: str, content: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{_NAMESPACE}">{content}'
        self._send(200, f"{text}</{root}>".encode(), _XML)

    def _count(self, name: str, limit: int) -> int:
        text = self._query.get(name, str(limit))
        if not text.isdigit():
            raise S3Error("InvalidArgument", f"{name} must be a number")
        return min(int(text), limit)

    # -- service and buckets -------------------------------------------------------------

    def _list_buckets(self) -> None:
        names = self._store.bucket_names()
        buckets = "".join(f"<Bucket><Name>{escape(name)}</Name></Bucket>" for name in names)
        self._send_xml("ListAllMyBucketsResult", f"<Buckets>{buckets}</Buckets>")

    def _create_bucket(self) -> None:
        self._store.create_bucket(self._bucket)
        self._send(200, headers={"Location": f"/{self._bucket}"})

    def _head_bucket(self) -> None:
        self._store.objects(self._bucket)
        self._send(200, headers={"x-amz-bucket-region": REGION})

    def _delete_bucket(self) -> None:
        self._store.delete_bucket(self._bucket)
        self._send(204)

    def _bucket_location(self) -> None:
        self._store.objects(self._bucket)
        self._send_xml("LocationConstraint", "")

    def _list_objects(self) -> None:
        if self._query["list-type"] != "2":
            raise S3Error("InvalidArgument", "list-type must be 2")
        found = self._store.objects(self._bucket)
        prefix, delimiter = self._query.get("prefix", ""), self._query.get("delimiter", "")
        limit = self._count("max-keys", self.server.owner.page)
        floor = self._query.get("start-after", "").encode()
        if "continuation-token" in self._query:
            try:
                floor = bytes.fromhex(self._query["continuation-token"])
            except ValueError as exc:
                raise S3Error("InvalidArgument", "The continuation token is incorrect") from exc
        encode = self._encoder()
        entries: list[str] = []
        last, truncated, group = b"", False, None
        for key in sorted(found, key=str.encode):
            if not key.startswith(prefix) or key.encode() <= floor:
                continue
            rest = key[len(prefix) :]
            folder = None
            if delimiter and delimiter in rest:
                folder = prefix + rest.partition(delimiter)[0] + delimiter
                if folder == group:
                    last = key.encode()
                    continue
            if len(entries) == limit:
                truncated = limit > 0
                break
            group, last = folder, key.encode()
            entries.append(
                f"<CommonPrefixes><Prefix>{encode(folder)}</Prefix></CommonPrefixes>"
                if folder is not None
                else _listed(encode(key), found[key])
            )
        self._send_xml(
            "ListBucketResult",
            f"<Name>{escape(self._bucket)}</Name><Prefix>{encode(prefix)}</Prefix>"
            f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            + (f"<Delimiter>{encode(delimiter)}</Delimiter>" if delimiter else "")
            + ("<EncodingType>url</EncodingType>" if "encoding-type" in self._query else "")
            + f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
            + (f"<NextContinuationToken>{last.hex()}</NextContinuationToken>" * truncated)
            + "".join(entries),
        )

    def _encoder(self) -> Callable[[str], str]:
        if self._query.get("encoding-type") == "url":
            return lambda text: quote(text, safe="/-_.~")
        return escape

    def _delete_objects(self) -> None:
        if "content-md5" not in self._fields and self._checksum is None:
            raise S3Error("InvalidRequest", "Missing required header for this request: Content-MD5")
        root = _parsed(self._payload, "Delete")
        keys = [_text(each, "Key") for each in root if each.tag == "Object"]
        if not 1 <= len(keys) <= 1000:
            raise S3Error("MalformedXML", "a multi-delete names 1 to 1000 keys")
        self._store.delete(self._bucket, keys)
        quiet = any(each.tag == "Quiet" and each.text == "true" for each in root)
        gone = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._send_xml("DeleteResult", "" if quiet else gone)

    def _list_uploads(self) -> None:
        prefix = self._query.get("prefix", "")
        marker = (
            self._query.get("key-marker", ""),
            self._query.get("upload-id-marker", "\U0010ffff"),
        )
        limit = self._count("max-uploads", self.server.owner.page)
        encode = self._encoder()
        found = sorted(
            (upload.key, identity, upload)
            for identity, upload in self._store.uploads(self._bucket).items()
            if upload.key.startswith(prefix) and (upload.key, identity) > marker
        )
        truncated = len(found) > limit > 0
        found = found[:limit]
        ends = ""
        if truncated:
            key, identity, _ = found[-1]
            ends = (
                f"<NextKeyMarker>{encode(key)}</NextKeyMarker>"
                f"<NextUploadIdMarker>{identity}</NextUploadIdMarker>"
            )
        self._send_xml(
            "ListMultipartUploadsResult",
            f"<Bucket>{escape(self._bucket)}</Bucket><MaxUploads>{limit}</MaxUploads>{ends}"
            + ("<EncodingType>url</EncodingType>" if "encoding-type" in self._query else "")
            + f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
            + "".join(
                f"<Upload><Key>{encode(key)}</Key><UploadId>{identity}</UploadId>"
                f"<Initiated>{_iso(upload.started)}</Initiated></Upload>"
                for key, identity, upload in found
            ),
        )

    # -- objects -------------------------------------------------------------------------

    def _put_object(self) -> None:
        if "x-amz-copy-source" in self._fields:
            raise S3Error("NotImplemented", "copying is not implemented")
        made = self._store.put(
            self._bucket,
            self._key,
            self._payload,
            self._kept_headers(),
            self._checksum,
            if_match=self._fields.get("if-match"),
            if_none_match=self._fields.get("if-none-match"),
        )
        self._send(200, headers={"ETag": made.etag, **_checksum_headers(made)})

    def _kept_headers(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in self._fields.items()
            if name in _KEPT or name.startswith("x-amz-meta-")
        }
        encoding = [
            each.strip()
            for each in kept.pop("content-encoding", "").split(",")
            if each.strip() not in ("", "aws-chunked")
        ]
        return {**kept, "content-encoding": ",".join(encoding)} if encoding else kept

    def _get_object(self) -> None:
        head = self.command == "HEAD"
        find = self._store.get if head else self._store.readable
        found = find(self._bucket, self._key)
        for name, wrong, status in (("if-match", False, 412), ("if-none-match", True, 304)):
            named = self._fields.get(name)
            if named is not None and (named in ("*", found.etag)) == wrong:
                if status == 304:
                    self._send(304, headers={"ETag": found.etag})
                    return
                raise S3Error("PreconditionFailed", "At least one precondition did not hold")
        size = len(found.data)
        asked = _range(self._fields.get("range"), size)
        first, last = asked or (0, size - 1)
        headers = {"content-type": "binary/octet-stream", **found.headers}
        for name in ("content-type", "content-disposition", "content-encoding", "cache-control"):
            if f"response-{name}" in self._query:
                headers[name] = self._query[f"response-{name}"]
        headers |= {
            "ETag": found.etag,
            "Last-Modified": format_datetime(found.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Length": str(last - first + 1),
        }
        if self._fields.get("x-amz-checksum-mode", "").upper() == "ENABLED" and not asked:
            headers |= _checksum_headers(found)
        if asked is not None:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(
            200 if asked is None else 206, b"" if head else found.data[first : last + 1], headers
        )

    def _delete_object(self) -> None:
        self._store.delete(self._bucket, [self._key])
        self._send(204)

    # -- uploads in parts ----------------------------------------------------------------

    def _create_upload(self) -> None:
        algorithm = self._fields.get("x-amz-checksum-algorithm", "").lower() or None
        if algorithm is not None and algorithm not in ALGORITHMS:
            raise S3Error("InvalidRequest", "Checksum algorithm provided is unsupported.")
        # What S3 takes for granted when the type is not said.
        default = "FULL_OBJECT" if algorithm == "crc64nvme" else "COMPOSITE"
        kind = self._fields.get("x-amz-checksum-type", default).upper()
        if kind == "FULL_OBJECT" and algorithm in ("sha256", "sha1"):
            raise S3Error("InvalidRequest", f"{algorithm} cannot be of the type FULL_OBJECT")
        if kind == "COMPOSITE" and algorithm == "crc64nvme":
            raise S3Error("InvalidRequest", f"{algorithm} cannot be of the type COMPOSITE")
        identity = self._store.create_upload(
            self._bucket,
            self._key,
            self._kept_headers(),
            algorithm,
            full_object=kind == "FULL_OBJECT",
        )
        self._send_xml(
            "InitiateMultipartUploadResult",
            f"<Bucket>{escape(self._bucket)}</Bucket><Key>{escape(self._key)}</Key>"
            f"<UploadId>{identity}</UploadId>",
        )

    def _put_part(self) -> None:
        number = self._query["partNumber"]
        part = self._store.put_part(
            self._bucket,
            self._key,
            self._query["uploadId"],
            int(number) if number.isdigit() else 0,
            self._payload,
            self._checksum,
        )
        headers = {"ETag": part.etag}
        if part.checksum is not None:
            headers[f"x-amz-checksum-{part.checksum[0]}"] = part.checksum[1]
        self._send(200, headers=headers)

    def _list_parts(self) -> None:
        upload = self._store.upload(self._bucket, self._key, self._query["uploadId"])
        marker = (
            self._count("part-number-marker", 10000) if "part-number-marker" in self._query else 0
        )
        limit = self._count("max-parts", self.server.owner.page)
        with self._store.lock:
            found = sorted((number, part) for number, part in upload.parts.items())
        found = [each for each in found if each[0] > marker]
        truncated = len(found) > limit > 0
        content = [
            f"<Bucket>{escape(self._bucket)}</Bucket><Key>{escape(self._key)}</Key>"
            f"<UploadId>{self._query['uploadId']}</UploadId><MaxParts>{limit}</MaxParts>"
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
        ]
        if upload.algorithm is not None:
            kind = "FULL_OBJECT" if upload.full_object else "COMPOSITE"
            content.append(
                f"<ChecksumAlgorithm>{upload.algorithm.upper()}</ChecksumAlgorithm>"
                f"<ChecksumType>{kind}</ChecksumType>"
            )
        if truncated:
            last = found[limit - 1][0]
            content.append(f"<NextPartNumberMarker>{last}</NextPartNumberMarker>")
        for number, part in found[:limit]:
            checksum = "" if part.checksum is None else _checksum_xml(*part.checksum)
            content.append(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
                f"<LastModified>{_iso(part.modified)}</LastModified>"
                f"<Size>{len(part.data)}</Size>{checksum}</Part>"
            )
        self._send_xml("ListPartsResult", "".join(content))

    def _abort_upload(self) -> None:
        self._store.abort(self._bucket, self._key, self._query["uploadId"])
        self._send(204)

    def _complete_upload(self) -> None:
        named = []
        for each in _parsed(self._payload, "CompleteMultipartUpload"):
            number = _text(each, "PartNumber")
            if not number.isdigit():
                raise S3Error("MalformedXML", "a part number must be a number")
            checksums = {
                child.tag.removeprefix("Checksum").lower(): child.text or ""
                for child in each
                if child.tag.startswith("Checksum")
            }
            named.append(CompletedPart(int(number), _text(each, "ETag"), checksums))
        made = self._store.complete(
            self._bucket,
            self._key,
            self._query["uploadId"],
            named,
            size=self._fields.get("x-amz-mp-object-size"),
            checksums={
                name: self._fields[f"x-amz-checksum-{name}"]
                for name in ALGORITHMS
                if f"x-amz-checksum-{name}" in self._fields
            },
            if_match=self._fields.get("if-match"),
            if_none_match=self._fields.get("if-none-match"),
        )
        checksum = ""
        if made.checksum is not None:
            checksum = _checksum_xml(made.checksum.algorithm, made.checksum.value)
        self._send_xml(
            "CompleteMultipartUploadResult",
            f"<Bucket>{escape(self._bucket)}</Bucket><Key>{escape(self._key)}</Key>"
            f"<ETag>{escape(made.etag)}</ETag>{checksum}",
        )


_XML = {"Content-Type": "application/xml"}

# Method, what the path names, which names the query must have, and what to do: the first
# that fits.
_OPERATIONS: list[tuple[str, str, set[str], Callable[[_Handler], None]]] = [
    ("GET", "service", set(), _Handler._list_buckets),
    ("GET", "bucket", {"list-type"}, _Handler._list_objects),
    ("GET", "bucket", {"uploads"}, _Handler._list_uploads),
    ("GET", "bucket", {"location"}, _Handler._bucket_location),
    ("PUT", "bucket", set(), _Handler._create_bucket),
    ("HEAD", "bucket", set(), _Handler._head_bucket),
    ("DELETE", "bucket", set(), _Handler._delete_bucket),
    ("POST", "bucket", {"delete"}, _Handler._delete_objects),
    ("PUT", "object", {"partNumber", "uploadId"}, _Handler._put_part),
    ("PUT", "object", set(), _Handler._put_object),
    ("GET", "object", {"uploadId"}, _Handler._list_parts),
    ("GET", "object", set(), _Handler._get_object),
    ("HEAD", "object", set(), _Handler._get_object),
    ("DELETE", "object", {"uploadId"}, _Handler._abort_upload),
    ("DELETE", "object", set(), _Handler._delete_object),
    ("POST", "object", {"uploads"}, _Handler._create_upload),
    ("POST", "object", {"uploadId"}, _Handler._complete_upload),
]


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _listed(key: str, stored: Stored) -> str:
    algorithm = ""
    if stored.checksum is not None:
        kind = "FULL_OBJECT" if stored.checksum.full_object else "COMPOSITE"
        algorithm = (
            f"<ChecksumAlgorithm>{stored.checksum.algorithm.upper()}</ChecksumAlgorithm>"
            f"<ChecksumType>{kind}</ChecksumType>"
        )
    return (
        f"<Contents><Key>{key}</Key><LastModified>{_iso(stored.modified)}</LastModified>"
        f"<ETag>{escape(stored.etag)}</ETag>{algorithm}<Size>{len(stored.data)}</Size>"
        f"<StorageClass>{stored.storage_class}</StorageClass></Contents>"
    )


def _checksum_headers(stored: Stored) -> dict[str, str]:
    if stored.checksum is None:
        return {}
    return {
        f"x-amz-checksum-{stored.checksum.algorithm}": stored.checksum.value,
        "x-amz-checksum-type": "FULL_OBJECT" if stored.checksum.full_object else "COMPOSITE",
    }


def _checksum_xml(algorithm: str, value: str) -> str:
    tag = f"Checksum{algorithm.upper()}"
    return f"<{tag}>{value}</{tag}>"


def _range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for; None without one that counts."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text or "")
    if found is None or found.group(0) == "bytes=-":
        return None  # what is not understood is ignored, as HTTP says
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start >= size or start > end:
        raise S3Error("InvalidRange", "The requested range is not satisfiable")
    return start, end


def _parsed(body: bytes, tag: str) -> Iterable[ET.Element]:
    """The children of a request's XML, tags without their namespace."""
    try:
        root = ET.fromstring(body)
    except ET.ParseError as exc:
        raise S3Error("MalformedXML", "The XML you provided was not well-formed") from exc
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != tag:
        raise S3Error("MalformedXML", f"The XML you provided is no {tag}")
    return root


def _text(element: ET.Element, tag: str) -> str:
    text = element.findtext(tag)
    if not text:
        raise S3Error("MalformedXML", f"{tag} is missing")
    return text
