"""Azure Blob Storage as a host."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cloudmanager.errors import (
    HostError,
    HostUnavailable,
    IntegrityError,
    ObjectNotFound,
)
from cloudmanager.hosts import azure_account
from cloudmanager.hosts.azure_account import Account, AzureOptions, Container
from cloudmanager.hosts.base import TIME_LIMIT, Host, OnBytes
from cloudmanager.hosts.disposition import content_disposition, content_type, filename_of
from cloudmanager.hosts.obstore_fork import obstore_works_here
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import HashedReader, Source

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobProperties, ContainerClient

    from cloudmanager.hosts.azure_reads import BlobReader

__all__ = ["AzureHost", "AzureOptions", "open_azure"]

log = logging.getLogger(__name__)

ONE_REQUEST = 32 * 1024 * 1024
"""Bytes of the largest blob that goes up in one request. Only then does the service itself
compute the MD5 that it keeps; for a blob of blocks it keeps what it is told."""

_DELETERS = 16
_LONGEST_KEY = 1024


def open_azure(name: str, url: str, options: Mapping[str, Any]) -> AzureHost:
    """``azure://container/prefix`` or ``azure+https://account.blob.core.windows.net/container/prefix``.

    The options are those of `AzureOptions`; credentials come from them or from the variables
    of the Azure command line (`azure_account.resolve`). No network I/O.
    """
    parsed = AzureOptions.parse(name, options)
    container, account = azure_account.resolve(name, url, parsed)
    short = urlsplit(url).netloc if url.lower().startswith("azure:") else None
    return AzureHost(name, container, account, parsed, short_name=short)


class AzureHost(Host):
    """Blobs below one prefix of one container.

    Small blobs go up in one request with their MD5, which the service checks and keeps. Large
    ones go up as blocks and appear when the list of blocks is committed; their MD5 would be
    our own word, so there is none.
    """

    capabilities = Capabilities(checksums=frozenset({"md5"}), signed_urls=True)

    def __init__(
        self,
        name: str,
        container: Container,
        account: Account,
        options: AzureOptions,
        *,
        short_name: str | None = None,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        self.name = name
        self.container = container
        self.account = account
        self.options = options
        self.time_limit = time_limit
        self._short_name = short_name
        self._aliases = tuple(_alias(name, alias, account) for alias in options.aliases)
        self._lock = threading.Lock()
        self._made: ContainerClient | None = None
        self._reads: BlobReader | None = None

    # -- the contract ------------------------------------------------------------------

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
        blob = self._blob(key, "put", location)
        if source.size <= ONE_REQUEST:
            return self._put_whole(blob, key, location, source, sha256, filename, on_bytes)
        return self._put_blocks(blob, key, location, source, sha256, filename, on_bytes)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        key = self._key_of(location, "get")
        blob = self._blob(key, "get", location)
        if length == 0:
            return
        from cloudmanager.hosts.azure_reads import can_read

        name = self.container.prefix + key
        # A reader from before a fork says so itself: its connections are not ours either.
        if can_read(name) and (self._reads is not None or obstore_works_here()):
            yield from self._reader().read(name, location, offset, length)
        else:
            yield from self._read(blob, location, offset, length)

    def stat(self, location: str) -> ObjectInfo:
        key = self._key_of(location, "stat")
        blob = self._blob(key, "stat", location)
        with self._mapped("stat", location):
            return self._info(key, blob.get_blob_properties())

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        client = self._client()
        whole = self.container.prefix + prefix
        passed, floor = b"", _order(after)
        with self._mapped("list", prefix):
            # No start_from: it needs a newer service than the SDKs we accept ask for, and
            # emulators ignore it. The pages before `after` cost a request per 5,000 blobs.
            for found in client.list_blobs(name_starts_with=whole or None):
                key = found.name[len(self.container.prefix) :]
                place = _order(key)
                if place <= passed and passed:
                    raise HostError(
                        f"the service lists {key!r} out of order",
                        host=self.name,
                        operation="list",
                        location=prefix,
                    )
                passed = place
                if key and (not after or place > floor):
                    yield self._info(key, found)

    def delete(self, locations: Iterable[str]) -> None:
        wanted = [(location, self._key_of(location, "delete")) for location in locations]
        if len(wanted) == 1:
            self._delete(*wanted[0])
            return
        # Single deletes side by side, not the batch request: a batch needs rights on the
        # container that a SAS for its blobs does not give.
        with ThreadPoolExecutor(_DELETERS, "azure-delete") as pool:
            for future in [pool.submit(self._delete, *each) for each in wanted]:
                future.result()

    def owns(self, location: str) -> bool:
        return self._key(location) is not None

    def location(self, key: str) -> str:
        return self.container.location(key)

    def check(self) -> None:
        client = self._client()
        with self._mapped("check", self.container.url):
            pages = client.list_blobs(
                name_starts_with=self.container.prefix or None, results_per_page=1
            ).by_page()
            next(pages, None)

    def signed_url(self, location: str, *, expires: timedelta, filename: str | None = None) -> str:
        """A URL with a shared access signature; needs the account's key."""
        if self.account.key is None:
            raise self._unsupported("signed_url", location)
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        key = self._key_of(location, "signed_url")
        blob = self._blob(key, "signed_url", location)
        signature = generate_blob_sas(
            self.account.name,
            self.container.name,
            self.container.prefix + key,
            account_key=self.account.key,
            permission=BlobSasPermissions(read=True),
            # No start: with it, a reader whose clock is behind ours is refused.
            expiry=datetime.now(UTC) + expires,
            protocol="https" if self.container.endpoint.startswith("https:") else None,
            content_disposition=None if filename is None else content_disposition(filename),
            content_type=None if filename is None else content_type(filename),
        )
        return f"{blob.url}?{signature}"

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Discard blocks that were sent for a name and never committed.

        Azure does so by itself after a week. There is no request for it: an empty list of
        blocks is committed, on the condition that no blob is there, and the empty blob that
        this makes is deleted, on the condition that it is still that one.
        """
        limit = datetime.now(UTC) - older_than
        client = self._client()
        with self._mapped("clean", self.container.url):
            found = client.list_blobs(
                name_starts_with=self.container.prefix or None, include=["uncommittedblobs"]
            )
            for each in found:
                if each.size or (each.last_modified or datetime.now(UTC)) > limit:
                    continue
                key = each.name[len(self.container.prefix) :]
                if key and (text := self._discard(key)):
                    yield text

    def close(self) -> None:
        with self._lock:
            client, self._made, self._reads = self._made, None, None
        if client is not None:
            client.close()

    # -- up ------------------------------------------------------------------------------

    def _put_whole(
        self,
        blob: BlobClient,
        key: str,
        location: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectInfo:
        from cloudmanager.hosts.azure_blocks import md5_header

        if source.trusted:
            data = source.read()
        else:
            with HashedReader(source, sha256) as reader:
                data = reader.read()
        header = md5_header(data)
        try:
            with self._mapped("put", location):
                reply = blob.upload_blob(
                    data,
                    length=len(data),
                    overwrite=True,
                    headers=header,
                    **self._settings(filename),
                )
        except HostUnavailable:
            # Was it only the acknowledgement that got lost?
            with suppress(HostError):  # then the first error is the one to report
                there = self.stat(location)
                if there.size == len(data) and there.checksum == _md5(data):
                    if on_bytes is not None:
                        on_bytes(len(data))
                    return there
            raise
        if on_bytes is not None:
            on_bytes(len(data))
        return ObjectInfo(
            location=location,
            key=key,
            size=len(data),
            checksum=_md5(data),
            modified=reply.get("last_modified"),
            etag=_bare(reply.get("etag")),
            filename=filename,
        )

    def _put_blocks(
        self,
        blob: BlobClient,
        key: str,
        location: str,
        source: Source,
        sha256: str,
        filename: str | None,
        on_bytes: OnBytes | None,
    ) -> ObjectInfo:
        from cloudmanager.hosts.azure_blocks import BlockUpload, block_size_for

        upload = BlockUpload(
            blob,
            source,
            sha256,
            block_size=block_size_for(source.size, self.options.block_size),
            concurrency=self.options.concurrency,
            on_bytes=on_bytes,
        )
        with self._mapped("put", location):
            upload.send()
        try:
            with self._mapped("put", location):
                reply = upload.commit(**self._settings(filename))
        except HostError as exc:
            # The acknowledgement got lost, or another process that sends the same file was
            # quicker: its commit discards the blocks that wait, ours among them.
            with suppress(HostError), self._mapped("put", location):
                if upload.is_committed():
                    return self.stat(location)
            if _lost_blocks(exc):
                raise HostUnavailable(
                    "the blocks sent were discarded by another upload to the same name",
                    host=self.name,
                    operation="put",
                    location=location,
                ) from exc
            raise
        return ObjectInfo(
            location=location,
            key=key,
            size=source.size,
            modified=reply.get("last_modified"),
            etag=_bare(reply.get("etag")),
            filename=filename,
        )

    def _settings(self, filename: str | None) -> dict[str, Any]:
        from azure.storage.blob import ContentSettings, StandardBlobTier

        settings: dict[str, Any] = {
            "content_settings": ContentSettings(
                content_type=content_type(filename or ""),
                content_disposition=None if filename is None else content_disposition(filename),
            )
        }
        if self.options.tier is not None:
            settings["standard_blob_tier"] = StandardBlobTier(self.options.tier)
        return settings

    # -- down ----------------------------------------------------------------------------

    def _read(
        self, blob: BlobClient, location: str, offset: int, length: int | None
    ) -> Iterator[bytes]:
        """Through the SDK: for the few names that obstore cannot say."""
        from azure.core.exceptions import HttpResponseError

        got = 0
        with self._mapped("get", location):
            try:
                stream = blob.download_blob(offset=offset, length=length, max_concurrency=1)
            except HttpResponseError as exc:
                if exc.status_code == 416:  # it starts past the end
                    return
                raise
            for block in stream.chunks():
                got += len(block)
                yield block
        if got != stream.size:
            raise self._short(location, stream.size - got)

    def _short(self, location: str, missing: int) -> HostError:
        kind = HostUnavailable if missing > 0 else IntegrityError
        what = f"ended {missing} bytes early" if missing > 0 else f"is {-missing} bytes too long"
        return kind(f"the answer {what}", host=self.name, operation="get", location=location)

    # -- how -----------------------------------------------------------------------------

    def _info(self, key: str, found: BlobProperties) -> ObjectInfo:
        settings = found.content_settings
        checksum = None
        if settings.content_md5 and found.size <= ONE_REQUEST:
            checksum = Checksum("md5", bytes(settings.content_md5).hex())
        return ObjectInfo(
            location=self.location(key),
            key=key,
            size=found.size,
            checksum=checksum,
            modified=found.last_modified,
            etag=_bare(found.etag),
            filename=filename_of(settings.content_disposition),
        )

    def _delete(self, location: str, key: str) -> None:
        blob = self._blob(key, "delete", location)
        # A missing blob is what was asked for; a missing container is not.
        with suppress(ObjectNotFound), self._mapped("delete", location):
            blob.delete_blob(delete_snapshots="include")

    def _discard(self, key: str) -> str | None:
        """Remove the unfinished blocks of `key`; None when a blob is there by now."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

        blob = self._blob(key, "clean", self.location(key))
        committed, waiting = blob.get_block_list("all")
        if committed or not waiting:
            return None
        try:
            made = blob.commit_block_list([], match_condition=MatchConditions.IfMissing)
            blob.delete_blob(etag=str(made["etag"]), match_condition=MatchConditions.IfNotModified)
        except (ResourceExistsError, ResourceModifiedError):
            log.info("%s is being written right now; its blocks are kept", self.location(key))
            return None
        size = sum(block.size for block in waiting)
        return f"discarded {len(waiting)} unfinished blocks ({size} bytes) of {self.location(key)}"

    def _key(self, location: str) -> str | None:
        for place in (self.container, *self._aliases):
            key = place.key(location, self.account.name)
            if key:
                return key
        if self._short_name is not None and location.lower().startswith("azure://"):
            # The short form, only where the host itself was given by it: it does not say
            # which account is meant.
            _, _, rest = location.partition("://")
            container, _, path = rest.partition("/")
            if container == self._short_name:
                full = f"azure+{self.container.endpoint}/{container}/{path}"
                return self.container.key(full, self.account.name) or None
        return None

    def _key_of(self, location: str, operation: str) -> str:
        key = self._key(location)
        if key is None:
            raise HostError(
                "the location is not on this host",
                host=self.name,
                operation=operation,
                location=location,
            )
        return key

    def _blob(self, key: str, operation: str, location: str) -> BlobClient:
        name = self.container.prefix + key
        segments = name.split("/")
        wrong = (
            not key
            or len(name) > _LONGEST_KEY
            or "\\" in name  # Azure stores it as a slash: the key would be another one
            or any(segment in (".", "..") for segment in segments)
            or any("\ud800" <= character <= "\udfff" for character in name)
        )
        if wrong:
            raise HostError(
                f"{key!r:.200} cannot be the name of a blob",
                host=self.name,
                operation=operation,
                location=location,
            )
        return self._client().get_blob_client(name)

    def _client(self) -> ContainerClient:
        with self._lock:
            if self._made is None:
                from cloudmanager.hosts.azure_client import make_client

                self._made = make_client(
                    self.container, self.account, self.options, self.time_limit
                )
            return self._made

    def _reader(self) -> BlobReader:
        with self._lock:
            if self._reads is None:
                from cloudmanager.hosts.azure_reads import BlobReader

                self._reads = BlobReader(
                    self.name, self.container, self.account, self.options, self.time_limit
                )
            return self._reads

    def _mapped(self, operation: str, location: str) -> Any:
        from cloudmanager.hosts.azure_errors import mapped

        return mapped(self.name, operation, location)


def _alias(name: str, url: str, account: Account) -> Container:
    options = AzureOptions(account=account.name, account_key="unused")
    return azure_account.resolve(name, url, options, {})[0]


def _order(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


def _md5(data: bytes) -> Checksum:
    import hashlib

    return Checksum("md5", hashlib.md5(data, usedforsecurity=False).hexdigest())


def _lost_blocks(exc: BaseException) -> bool:
    from cloudmanager.hosts.azure_errors import code_of

    return exc.__cause__ is not None and code_of(exc.__cause__) == "InvalidBlockList"
