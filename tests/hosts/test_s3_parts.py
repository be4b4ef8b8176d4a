"""Uploads in parts: what was sent stays of use, whatever ends the upload."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudmanager.errors import HostError, HostUnavailable, SourceChanged
from cloudmanager.hosts import open_host
from cloudmanager.model import Checksum
from cloudmanager.source import FileSource, StreamSource
from servers import proxy as faults

MIB = 1024 * 1024
PART = 8 * MIB
SIZE = 5 * PART + 12345


def options_for(server: Any, endpoint: str, **more: Any) -> dict[str, Any]:
    return {
        "endpoint_url": endpoint,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "region": "us-east-1",
        "part_size": PART,
        **more,
    }


class World:
    """A bucket, a proxy before it, and a file that goes up in six parts."""

    def __init__(self, server: Any, proxy: Any, path: Path) -> None:
        self.server = server
        self.proxy = proxy
        self.bucket = server.make_bucket()
        self.url = f"s3://{self.bucket}/pool"
        self.host = open_host(self.url, self.options(), name="store")
        self.raw = server.client()
        self.data = os.urandom(SIZE)
        self.sha256 = hashlib.sha256(self.data).hexdigest()
        self.path = path
        path.write_bytes(self.data)

    def options(self, **more: Any) -> dict[str, Any]:
        return options_for(self.server, self.proxy.endpoint, **more)

    def put(self, *, trusted: bool = True, key: str = "k", **more: Any) -> Any:
        source = FileSource(self.path, trusted=trusted)
        return self.host.put(key, source, sha256=self.sha256, **more)

    def content(self, key: str = "k") -> bytes:
        data: bytes = self.raw.get_object(Bucket=self.bucket, Key=f"pool/{key}")["Body"].read()
        return data

    def parts_sent(self) -> int:
        return sum(
            name == "PUT" and "partNumber" in path for name, path in list(self.proxy.requests)
        )


@pytest.fixture(params=["moto_s3", "rclone_s3", "strict_s3"])
def world(request: pytest.FixtureRequest, fault_proxy: Any, tmp_path: Path) -> World:
    server = request.getfixturevalue(request.param)
    return World(server, fault_proxy(server.endpoint), tmp_path / "file")


@pytest.fixture
def strict(strict_s3: Any, fault_proxy: Any, tmp_path: Path) -> World:
    return World(strict_s3, fault_proxy(strict_s3.endpoint), tmp_path / "file")


def request_of(wanted: str, containing: str) -> Callable[[str, str, Any], bool]:
    return lambda name, path, _headers: name == wanted and containing in path


@pytest.mark.parametrize("trusted", [True, False])
def test_a_large_object_goes_up_in_parts_and_comes_back(world: World, trusted: bool) -> None:
    sent: list[int] = []
    info = world.put(trusted=trusted, filename="x.bin", on_bytes=sent.append)
    assert sum(sent) == SIZE
    assert world.parts_sent() == 6
    assert world.content() == world.data
    found = world.host.stat(info.location)
    assert (found.size, found.filename) == (SIZE, "x.bin")
    assert info.checksum is not None
    assert info.checksum.part_size == PART
    if found.checksum is not None and found.checksum.kind == info.checksum.kind:
        assert found.checksum == info.checksum


def test_the_composite_checksum_is_that_of_the_parts(strict: World) -> None:
    digests = [
        hashlib.sha256(strict.data[start : start + PART]).digest() for start in range(0, SIZE, PART)
    ]
    value = f"{hashlib.sha256(b''.join(digests)).hexdigest()}-6"
    expected = Checksum("sha256-composite", value, PART)
    assert strict.put().checksum == expected
    assert strict.host.stat(strict.host.location("k")).checksum == expected


@pytest.mark.parametrize(
    ("world", "trusted"),
    [("moto_s3", True), ("rclone_s3", False), ("strict_s3", True), ("strict_s3", False)],
    indirect=["world"],
)
@pytest.mark.parametrize(
    "fault",
    [
        faults.status(503),
        faults.reset_before_reply(),
        faults.reset_mid_body(MIB, "up"),
        faults.swallow_ack(),
    ],
    ids=["503", "reset", "broken", "unacknowledged"],
)
def test_a_part_that_fails_costs_only_itself(world: World, fault: Any, trusted: bool) -> None:
    world.proxy.plan(fault, match=request_of("PUT", "partNumber=3"))
    with pytest.raises(HostUnavailable) as caught:
        world.put(trusted=trusted)
    assert caught.value.retryable
    assert caught.value.host == "store"
    there = world.parts_sent() - (fault.kind != "swallow_ack")
    sent: list[int] = []
    world.put(trusted=trusted, on_bytes=sent.append)
    assert world.content() == world.data
    # Each other part has travelled once in the two passes.
    assert world.parts_sent() == 6 + (fault.kind != "swallow_ack")
    assert there >= 2
    assert list(world.host.clean(older_than=timedelta(days=-1))) == []


def test_a_part_that_is_there_but_wrong_is_sent_again(world: World) -> None:
    raw = world.raw
    begun = raw.create_multipart_upload(
        Bucket=world.bucket, Key="pool/k", ChecksumAlgorithm="SHA256"
    )
    for number, data in ((1, bytes(PART)), (2, world.data[PART : 2 * PART]), (3, bytes(5 * MIB))):
        raw.upload_part(
            Bucket=world.bucket,
            Key="pool/k",
            UploadId=begun["UploadId"],
            PartNumber=number,
            Body=data,
            ChecksumAlgorithm="SHA256",
        )
    world.put()
    assert world.content() == world.data
    assert list(world.host.clean(older_than=timedelta(days=-1))) == []


def test_the_unfinished_upload_of_another_key_is_left_alone(world: World) -> None:
    raw = world.raw
    for key in ("pool/k2", "pool/k.x", "pool/j"):
        raw.create_multipart_upload(Bucket=world.bucket, Key=key)
    world.put()
    assert world.content() == world.data
    left = raw.list_multipart_uploads(Bucket=world.bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == ["pool/j", "pool/k.x", "pool/k2"]


@pytest.mark.parametrize("code", [403, 405, 501])
def test_where_uploads_cannot_be_listed_the_object_goes_up_anew(strict: World, code: int) -> None:
    plan = strict.proxy.plan(faults.status(code), match=request_of("GET", "uploads"))
    strict.put()
    assert plan.hits == 1
    assert strict.content() == strict.data


def test_a_lost_acknowledgement_of_the_last_step_is_settled_by_looking(world: World) -> None:
    plan = world.proxy.plan(faults.swallow_ack(), match=request_of("POST", "uploadId"))
    info = world.put()
    assert plan.hits == 1
    assert info.size == SIZE
    assert world.parts_sent() == 6
    assert world.content() == world.data


def test_an_upload_that_cannot_be_completed_is_completed_by_the_next_put(world: World) -> None:
    plan = world.proxy.plan(faults.status(500), match=request_of("POST", "uploadId"))
    with pytest.raises(HostUnavailable):
        world.put()
    assert plan.hits == 1
    world.put()
    assert world.parts_sent() == 6
    assert world.content() == world.data


def test_an_older_object_of_the_same_size_does_not_stand_in_for_a_failed_one(
    world: World,
) -> None:
    world.raw.put_object(Bucket=world.bucket, Key="pool/k", Body=bytes(SIZE))
    world.proxy.plan(faults.status(500), match=request_of("POST", "uploadId"))
    with pytest.raises(HostUnavailable):
        world.put()


def test_a_source_that_changed_aborts_the_upload(world: World) -> None:
    changed = bytearray(world.data)
    changed[-1] ^= 1
    world.path.write_bytes(changed)
    with pytest.raises(SourceChanged):
        world.put(trusted=False)
    assert not list(world.host.list())
    assert list(world.host.clean(older_than=timedelta(days=-1))) == []


def test_a_source_that_became_shorter_is_never_stored(world: World) -> None:
    for trusted in (True, False):
        source = FileSource(world.path, size=SIZE, trusted=trusted)
        world.path.write_bytes(world.data[: 3 * PART])
        with pytest.raises(SourceChanged):
            world.host.put("k", source, sha256=world.sha256)
        assert not list(world.host.list())


def test_a_stream_goes_up_in_parts_without_lying_in_memory(world: World) -> None:
    def start(offset: int) -> Iterator[bytes]:
        for position in range(offset, SIZE, 100_000):
            yield world.data[position : position + 100_000]

    source = StreamSource(start, size=SIZE, label="a copy on another host")
    world.host.put("k", source, sha256=world.sha256)
    assert world.content() == world.data


def test_whoever_is_told_of_bytes_can_end_the_transfer(world: World) -> None:
    def enough(_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        world.put(on_bytes=enough)
    assert not list(world.host.list())


def test_two_writers_of_one_key_both_end_well(world: World) -> None:
    first = open_host(world.url, world.options(), name="first")
    second = open_host(world.url, world.options(), name="second")

    def put(host: Any) -> Any:
        source = FileSource(world.path, trusted=True)
        for _ in range(8):
            try:
                return host.put("k", source, sha256=world.sha256)
            except HostError as exc:
                if not exc.retryable:
                    raise
        return None

    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(put, [first, second]))
    assert [info.size for info in infos] == [SIZE, SIZE]
    assert world.content() == world.data


def test_a_part_that_is_there_and_wrong_can_be_replaced(strict: World) -> None:
    begun = strict.raw.create_multipart_upload(
        Bucket=strict.bucket, Key="pool/k", ChecksumAlgorithm="SHA256"
    )
    for number, data in ((1, bytes(PART)), (2, strict.data[PART : 2 * PART])):
        strict.raw.upload_part(
            Bucket=strict.bucket,
            Key="pool/k",
            UploadId=begun["UploadId"],
            PartNumber=number,
            Body=data,
            ChecksumAlgorithm="SHA256",
        )
    strict.put()
    assert strict.content() == strict.data
    assert strict.parts_sent() == 5


# moto answers 500 to a part of an upload that has ended; a real server says NoSuchUpload.
@pytest.mark.parametrize("world", ["rclone_s3", "strict_s3"], indirect=True)
def test_an_upload_that_another_process_has_completed_counts_as_stored(world: World) -> None:
    rival = open_host(world.url, options_for(world.server, world.server.endpoint), name="rival")
    source = FileSource(world.path, trusted=True)
    done = []

    def meanwhile(_: int) -> None:
        if not done:
            done.append(rival.put("k", source, sha256=world.sha256))

    info = world.put(on_bytes=meanwhile)
    assert len(done) == 1
    assert info.size == SIZE
    assert world.content() == world.data


def test_an_upload_that_somebody_has_aborted_can_be_tried_again(world: World) -> None:
    aborted = []

    def abort(_: int) -> None:
        if not aborted:
            aborted.extend(world.host.clean(older_than=timedelta(days=-1)))

    for _ in range(5):
        # On a busy machine a part may run out of time before the first one is done.
        with pytest.raises(HostUnavailable):
            world.put(on_bytes=abort)
        if aborted:
            break
    assert len(aborted) == 1
    world.put()
    assert world.content() == world.data


def test_clean_aborts_old_uploads_below_the_prefix_only(strict_s3: Any, rclone_s3: Any) -> None:
    for server in (strict_s3, rclone_s3):
        bucket = server.make_bucket()
        host = open_host(f"s3://{bucket}/pool", options_for(server, server.endpoint))
        assert list(host.clean(older_than=timedelta(0))) == []
        raw = server.client()
        for key in ("pool/a b", "poolside/a", "other"):
            raw.create_multipart_upload(Bucket=bucket, Key=key)
        assert list(host.clean(older_than=timedelta(hours=1))) == []
        (cleaned,) = host.clean(older_than=timedelta(days=-1))
        assert host.location("a b") in cleaned
        left = raw.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert sorted(upload["Key"] for upload in left) == ["other", "poolside/a"]


CHILD = """
import json, sys
from cloudmanager.hosts import open_host
from cloudmanager.source import FileSource
url, options, path, sha256, trusted = json.loads(sys.stdin.readline())
host = open_host(url, options)
print("ready", flush=True)
host.put("k", FileSource(path, trusted=trusted), sha256=sha256)
print("stored", flush=True)
"""


def killed_at(world: World, path: Path, sha256: str, size: int, trusted: bool) -> None:
    """Upload in a process of its own, which is killed when 60% has gone through the proxy."""
    import json

    told = json.dumps([world.url, world.options(), str(path), sha256, trusted])
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(told + "\n")
        child.stdin.flush()
        assert child.stdout.readline() == "ready\n"
        while world.proxy.bytes_up < size * 0.6 and child.poll() is None:
            time.sleep(0.001)
        assert child.poll() is None, "it was done before it could be killed"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def check_resume(world: World, path: Path, size: int, trusted: bool) -> None:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    world.proxy.limit(60 * MIB)
    killed_at(world, path, sha256, size, trusted)
    world.proxy.limit(None)
    first = world.proxy.bytes_up
    world.host.put("k", FileSource(path, trusted=trusted), sha256=sha256)
    second = world.proxy.bytes_up - first
    # What was on its way when it was killed travels again: four parts at most.
    assert size * 0.6 <= first < size
    assert second <= size - first + 4 * PART + MIB
    with path.open("rb") as file:
        body = world.raw.get_object(Bucket=world.bucket, Key="pool/k")["Body"]
        for block in body.iter_chunks(MIB):
            assert block == file.read(len(block))


@pytest.mark.parametrize("trusted", [True, False])
def test_after_a_kill_only_the_missing_parts_travel(
    world: World, tmp_path: Path, trusted: bool
) -> None:
    check_resume(world, tmp_path / "large", 96 * MIB, trusted)


@pytest.mark.long
def test_after_a_kill_at_60_percent_of_300_mib_only_the_missing_parts_travel(
    world: World, tmp_path: Path
) -> None:
    check_resume(world, tmp_path / "large", 300 * MIB, trusted=True)
