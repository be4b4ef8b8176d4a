"""Large blobs: sent as blocks, several at once, going on where an earlier try stopped.

Azure keeps the blocks that were sent for a name, for a week, until a list of their ids is
committed. The id of a block here is its number and the MD5 of its bytes, so whoever comes
later, also another process or machine, sees by the ids alone which blocks are there and
right. The alternative, a file with the progress of each upload, would be one more thing to
lose, and would know nothing of what another machine has sent.
"""

from __future__ import annotations

import base64
import hashlib
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from azure.core.exceptions import DecodeError, ResourceNotFoundError
from azure.storage.blob import BlobBlock, BlobClient

from cloudmanager.hosts.azure_errors import UNREADABLE, code_of
from cloudmanager.hosts.base import OnBytes
from cloudmanager.source import HashedReader, Source

__all__ = ["BlockUpload", "block_size_for", "md5_header"]

MOST_BLOCKS = 50_000
_MIB = 1024 * 1024


def block_size_for(size: int, smallest: int) -> int:
    """Bytes per block for a blob of `size` bytes, a multiple of 1 MiB past `smallest`.

    It depends on nothing else, so that a resumed upload cuts the file at the same places.
    """
    if size <= smallest * MOST_BLOCKS:
        return smallest
    each = -(-size // MOST_BLOCKS)
    return -(-each // _MIB) * _MIB


def md5_header(data: bytes) -> dict[str, str]:
    """The Content-MD5 that makes the service check what arrives.

    As a header rather than by the SDK's ``validate_content``: the digest is in the id of a
    block too, and would be computed twice.
    """
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return {"Content-MD5": base64.b64encode(digest).decode()}


class BlockUpload:
    """One try to store `source` as a blob of blocks. Errors are the SDK's own.

    Memory: at most ``concurrency + 2`` blocks. An error leaves the finished blocks at the
    service for the next try.
    """

    def __init__(
        self,
        blob: BlobClient,
        source: Source,
        sha256: str,
        *,
        block_size: int,
        concurrency: int,
        on_bytes: OnBytes | None = None,
    ) -> None:
        self._blob = blob
        self._source = source
        self._sha256 = sha256
        self._size = block_size
        self._concurrency = concurrency
        self._on_bytes = on_bytes
        self._count = -(-source.size // block_size)
        self._ids: list[str] = [""] * self._count

    def send(self) -> None:
        """Send the blocks that the service does not have yet.

        Raises
        ------
        SourceChanged
            When the source is not trusted and its bytes, read in order while they are sent, do
            not have the hash: then nothing may be committed.
        """
        there = self._staged()
        reader = None if self._source.trusted else HashedReader(self._source, self._sha256)
        pending: set[Future[int]] = set()
        with ThreadPoolExecutor(self._concurrency, "azure-block") as pool:
            try:
                for index in range(self._count):
                    while len(pending) > self._concurrency:
                        pending = self._collect(pending)
                    data = None if reader is None else reader.read(self._length(index))
                    pending.add(pool.submit(self._send_block, index, data, there))
                    del data
                while pending:
                    pending = self._collect(pending)
            except BaseException:
                # The blocks under way end on their own; those that wait must not start.
                for future in pending:
                    future.cancel()
                raise
            finally:
                if reader is not None:
                    reader.close()

    def commit(self, **settings: Any) -> dict[str, Any]:
        """Make the blob of the blocks, after `send`. The reply's ``etag``, ``last_modified``, …"""
        blocks = [BlobBlock(block_id=each) for each in self._ids]
        return self._blob.commit_block_list(blocks, **settings)

    def is_committed(self) -> bool:
        """Whether the blob that is there was made of exactly our blocks.

        Settles a commit whose acknowledgement was lost, or that another process was quicker
        to make: the ids say what bytes they are.
        """
        try:
            committed, _ = self._blocks("committed")
        except ResourceNotFoundError:
            return False
        return [block.id for block in committed] == self._ids

    def _staged(self) -> dict[str, int]:
        """Ids and sizes of the blocks that wait at the service for this name."""
        try:
            _, uncommitted = self._blocks("uncommitted")
        except ResourceNotFoundError as exc:
            if code_of(exc) == "ContainerNotFound":
                raise
            return {}
        return {block.id: block.size for block in uncommitted}

    def _blocks(self, kind: str) -> tuple[list[BlobBlock], list[BlobBlock]]:
        try:
            return self._blob.get_block_list(kind)
        except UNREADABLE as exc:
            raise DecodeError("the list of blocks cannot be read", error=exc) from exc

    def _length(self, index: int) -> int:
        return min(self._size, self._source.size - index * self._size)

    def _send_block(self, index: int, data: bytes | None, there: dict[str, int]) -> int:
        """Send one block unless it is there; how many bytes went out."""
        if data is None:
            data = self._source.read(index * self._size, self._length(index))
        header = md5_header(data)
        # Every id of a blob must have the same length, 64 bytes at most: 6 + 32.
        digest = base64.b64decode(header["Content-MD5"]).hex()
        block_id = self._ids[index] = f"{index:05d}-{digest}"
        if there.get(block_id) == len(data):
            return 0
        self._blob.stage_block(block_id, data, length=len(data), headers=header)
        return len(data)

    def _collect(self, pending: set[Future[int]]) -> set[Future[int]]:
        done, rest = wait(pending, return_when=FIRST_COMPLETED)
        failed: BaseException | None = None
        for future in done:
            error = future.exception()
            if error is not None:
                failed = failed or error
            elif self._on_bytes is not None and future.result():
                self._on_bytes(future.result())
        if failed is not None:
            raise failed
        return rest
