"""The Azure host against a real server: what it stores, finds, reads and deletes."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobBlock, ContainerClient, ContentSettings

from cloudmanager.errors import (
    AccessDenied,
    ContainerNotFound,
    HostError,
    ObjectArchived,
    ObjectNotFound,
    SourceChanged,
    Unsupported,
)
from cloudmanager.hosts.azure import ONE_REQUEST, AzureHost, open_azure
from cloudmanager.hosts.disposition import filename_of
from cloudmanager.model import Checksum
from cloudmanager.source import BytesSource, FileSource, Source

MIB = 1024 * 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def md5(data: bytes) -> Checksum:
    return Checksum("md5", hashlib.md5(data, usedforsecurity=False).hexdigest())


def noise(size: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(min(MIB, size - at)) for at in range(0, size, MIB))


def put(host: AzureHost, key: str, data: bytes, **more: Any) -> Any:
    return host.put(key, BytesSource(data), sha256=sha256(data), **more)


def read(host: AzureHost, location: str, **part: int) -> bytes:
    return b"".join(host.get(location, **part))


class Untrusted(Source):
    """A file that somebody may be writing to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def open(self, offset: int = 0) -> Any:
        assert self.path is not None
        return FileSource(self.path).open(offset)


@pytest.fixture
def container(azurite: Any) -> str:
    made: str = azurite.make_container()
    return made


@pytest.fixture
def behind(azurite: Any, container: str) -> ContainerClient:
    """The container as a raw client sees it, behind the host's back."""
    client: ContainerClient = azurite.client().get_container_client(container)
    return client


@pytest.fixture
def host(azurite: Any, container: str) -> Iterator[AzureHost]:
    made = open_azure(
        "box", f"azure+{azurite.endpoint}/{container}/pool", {"account_key": azurite.key}
    )
    yield made
    made.close()


def test_an_object_is_stored_under_its_key_with_its_name_and_type(
    host: AzureHost, behind: ContainerClient
) -> None:
    told: list[int] = []
    info = put(host, "6f/6f7b", b"hello", filename="grüße.txt", on_bytes=told.append)
    assert info.location == host.location("6f/6f7b")
    assert (info.key, info.size, info.checksum) == ("6f/6f7b", 5, md5(b"hello"))
    assert sum(told) == 5
    blob = behind.get_blob_client("pool/6f/6f7b")
    assert blob.download_blob().readall() == b"hello"
    settings = blob.get_blob_properties().content_settings
    assert settings.content_type == "text/plain"
    assert filename_of(settings.content_disposition) == "grüße.txt"


def test_stat_tells_what_put_told(host: AzureHost) -> None:
    info = put(host, "k", b"hello", filename="a\n\udcff.bin")
    found = host.stat(info.location)
    assert found == info
    assert found.modified is not None
    assert abs(datetime.now(UTC) - found.modified) < timedelta(minutes=5)


def test_what_others_stored_is_found_and_read(host: AzureHost, behind: ContainerClient) -> None:
    behind.upload_blob("pool/a/b", b"theirs", content_settings=ContentSettings(content_type="x/y"))
    (info,) = host.list()
    assert (info.key, info.size, info.checksum, info.filename) == ("a/b", 6, md5(b"theirs"), None)
    assert host.stat(info.location) == info
    assert read(host, info.location) == b"theirs"


def test_an_empty_object_is_an_object(host: AzureHost) -> None:
    info = put(host, "empty", b"")
    assert (info.size, info.checksum) == (0, md5(b""))
    assert read(host, info.location) == b""
    assert host.stat(info.location).size == 0


def test_an_object_that_is_there_is_replaced(host: AzureHost) -> None:
    put(host, "k", b"damaged and longer")
    info = put(host, "k", b"right")
    assert read(host, info.location) == b"right"


@pytest.mark.parametrize("key", ["plain", "a//b"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (10, 5_000_000),
        (4_999_999, 100),
        (7, None),
        (5_000_000, None),
        (6_000_000, 5),
        (3, 0),
    ],
)
def test_ranges_are_read_by_either_engine(
    host: AzureHost, key: str, offset: int, length: int | None
) -> None:
    data = noise(5_000_000)
    location = put(host, key, data).location
    part = {"offset": offset} if length is None else {"offset": offset, "length": length}
    expected = data[offset:] if length is None else data[offset : offset + length]
    assert read(host, location, **part) == expected


KEYS = [
    "space and ünïcödé",
    "hash#question?percent%25%",
    "plus+and&=;,'()*~!$@:",
    "a//b",
    "line\nbreak",
    '[x]{y}|^`<>"',
    "\U0001f600/日本",
    "dot.",
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_any_characters_survives(
    host: AzureHost, behind: ContainerClient, key: str
) -> None:
    info = put(host, key, b"data")
    assert [blob.name for blob in behind.list_blobs()] == [f"pool/{key}"]
    assert host.owns(info.location)
    assert read(host, info.location) == b"data"
    assert host.stat(info.location).key == key
    assert [each.location for each in host.list()] == [info.location]
    host.delete([info.location])
    assert list(behind.list_blobs()) == []


def test_a_listing_is_ascending_and_stays_below_the_prefix(
    host: AzureHost, behind: ContainerClient
) -> None:
    for name in ["pool/b", "pool/a/2", "pool/a-1", "pool/a.1", "pool/Z", "pool2/x", "other"]:
        behind.upload_blob(name, b"x")
    keys = ["Z", "a-1", "a.1", "a/2", "b"]
    assert [info.key for info in host.list()] == keys
    assert [info.key for info in host.list("a")] == ["a-1", "a.1", "a/2"]
    assert [info.key for info in host.list("a/")] == ["a/2"]
    assert [info.key for info in host.list("nothing")] == []
    for number, key in enumerate(keys):
        assert [info.key for info in host.list(after=key)] == keys[number + 1 :]
    assert [info.key for info in host.list(after="a/1")] == ["a/2", "b"]


def test_a_listing_out_of_order_is_an_error_and_not_a_wrong_answer(
    host: AzureHost, behind: ContainerClient
) -> None:
    # The emulator sorts by UTF-16, where an emoji comes before a ligature.
    behind.upload_blob("pool/\U0001f600", b"x")
    behind.upload_blob("pool/\ufb01", b"x")
    with pytest.raises(HostError, match="out of order"):
        list(host.list())


def test_a_listing_of_several_pages_is_complete(host: AzureHost, behind: ContainerClient) -> None:
    keys = [f"{n:05d}" for n in range(5010)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: behind.get_blob_client(f"pool/{key}").upload_blob(b""), keys))
    assert [info.key for info in host.list()] == keys
    assert [info.key for info in host.list(after="05004")] == keys[5005:]


def test_delete_removes_objects_and_does_not_mind_missing_ones(host: AzureHost) -> None:
    locations = [put(host, f"k{n}", b"x").location for n in range(20)]
    host.delete([*locations[:19], host.location("never-there")])
    assert [info.key for info in host.list()] == ["k19"]
    host.delete([locations[19]])
    host.delete([locations[19]])
    host.delete([])
    assert list(host.list()) == []


def test_a_missing_object_is_not_found(host: AzureHost) -> None:
    location = host.location("missing")
    for call in (lambda: host.stat(location), lambda: read(host, location)):
        with pytest.raises(ObjectNotFound) as caught:
            call()
        assert caught.value.host == "box"
        assert caught.value.location == location
        assert not caught.value.retryable


def every_call(host: AzureHost) -> dict[str, Callable[[], object]]:
    location = host.location("k")
    return {
        "check": host.check,
        "list": lambda: list(host.list()),
        "stat": lambda: host.stat(location),
        "get": lambda: read(host, location),
        "get by the SDK": lambda: read(host, host.location("a//b")),
        "put": lambda: put(host, "k", b"x"),
        "put of blocks": lambda: put(host, "k", bytes(ONE_REQUEST + 1)),
        "delete": lambda: host.delete([location]),
        "delete of many": lambda: host.delete([location, host.location("l")]),
        "clean": lambda: list(host.clean(older_than=timedelta(0))),
    }


CALLS = [
    "check",
    "list",
    "stat",
    "get",
    "get by the SDK",
    "put",
    "put of blocks",
    "delete",
    "delete of many",
    "clean",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_container_is_named_by_every_call(azurite: Any, call: str) -> None:
    host = open_azure(
        "box", f"azure+{azurite.endpoint}/never-made/pool", {"account_key": azurite.key}
    )
    with pytest.raises(ContainerNotFound, match="no such container") as caught:
        every_call(host)[call]()
    assert caught.value.operation == call.split()[0]
    assert not caught.value.retryable


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_key_is_denied_by_every_call_and_not_shown(
    azurite: Any, container: str, call: str
) -> None:
    wrong = "d3Jvbmctc2VjcmV0"
    host = open_azure("box", f"azure+{azurite.endpoint}/{container}/pool", {"account_key": wrong})
    with pytest.raises(AccessDenied, match="key") as caught:
        every_call(host)[call]()
    assert wrong not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_check_is_content_with_an_empty_container(host: AzureHost) -> None:
    host.check()


def test_the_whole_container_can_be_the_host(azurite: Any, container: str) -> None:
    host = open_azure(
        "box", f"azure://{container}", {"connection_string": azurite.connection_string}
    )
    info = put(host, "k", b"x")
    assert info.location == f"azure+{azurite.endpoint}/{container}/k"
    assert read(host, f"azure://{container}/k") == b"x"


def test_a_sas_token_lets_in_and_is_never_shown(
    azurite: Any, container: str, caplog: pytest.LogCaptureFixture
) -> None:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    token = generate_container_sas(
        azurite.account,
        container,
        azurite.key,
        permission=ContainerSasPermissions(read=True, write=True, list=True, delete=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    signature = token.partition("sig=")[2].partition("&")[0]
    host = open_azure(
        "box", f"azure+{azurite.endpoint}/{container}/pool", {"sas_token": f"?{token}"}
    )
    with caplog.at_level(logging.DEBUG):
        info = put(host, "k", b"hello")
        assert read(host, info.location) == b"hello"
        assert read(host, info.location, offset=1, length=2) == b"el"
        assert [each.key for each in host.list()] == ["k"]
        assert signature not in repr(info)
        with pytest.raises(ObjectNotFound) as caught:
            host.stat(host.location("missing"))
        host.delete([info.location])
    assert signature not in str(caught.value)
    assert signature not in str(caught.value.__cause__)
    with pytest.raises(Unsupported):
        host.signed_url(info.location, expires=timedelta(hours=1))


def test_the_sdk_is_quiet(host: AzureHost, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        put(host, "k", b"x")
    assert caplog.records == []


@pytest.mark.parametrize("name", ["report.pdf", 'nä"me\n;\udcff.txt', "100%.txt"])
def test_a_signed_url_downloads_under_the_name_without_credentials(
    host: AzureHost, name: str
) -> None:
    location = put(host, "dir/a b#c", b"hello", filename="stored.bin").location
    url = host.signed_url(location, expires=timedelta(minutes=5), filename=name)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"hello"
        assert filename_of(answer.headers["Content-Disposition"]) == name
    with urllib.request.urlopen(host.signed_url(location, expires=timedelta(minutes=5))) as answer:
        assert filename_of(answer.headers["Content-Disposition"]) == "stored.bin"


def test_a_signed_url_ends(host: AzureHost) -> None:
    location = put(host, "k", b"hello").location
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(host.signed_url(location, expires=timedelta(minutes=-1)))
    assert caught.value.code == 403
    caught.value.close()


def test_the_access_tier_is_passed_on_and_an_archived_object_says_so(
    azurite: Any, container: str, behind: ContainerClient
) -> None:
    url = f"azure+{azurite.endpoint}/{container}/pool"
    cool = open_azure("box", url, {"account_key": azurite.key, "tier": "cool"})
    put(cool, "small", b"x")
    put(cool, "large", bytes(ONE_REQUEST + 1))
    tiers = {blob.name: blob.blob_tier for blob in behind.list_blobs()}
    assert tiers == {"pool/small": "Cool", "pool/large": "Cool"}
    archive = open_azure("box", url, {"account_key": azurite.key, "tier": "Archive"})
    for key in ("k", "a//b"):
        location = put(archive, key, b"x").location
        assert archive.stat(location).size == 1
        with pytest.raises(ObjectArchived, match="set-tier") as caught:
            read(archive, location)
        assert not caught.value.retryable


# -- large objects ---------------------------------------------------------------------


def test_a_large_object_goes_up_in_blocks_and_has_no_checksum_of_our_own(
    host: AzureHost, behind: ContainerClient
) -> None:
    data = noise(ONE_REQUEST + 12345)
    told: list[int] = []
    info = put(host, "big", data, filename="film.mp4", on_bytes=told.append)
    assert (info.size, info.checksum) == (len(data), None)
    assert sum(told) == len(data)
    found = host.stat(info.location)
    assert (found.size, found.checksum, found.filename) == (len(data), None, "film.mp4")
    blob = behind.get_blob_client("pool/big")
    assert blob.get_blob_properties().content_settings.content_type == "video/mp4"
    committed, waiting = blob.get_block_list("all")
    assert [block.size for block in committed] == [16 * MIB, 16 * MIB, 12345]
    assert waiting == []
    assert read(host, info.location) == data


def test_the_checksum_that_another_program_claims_for_blocks_is_no_evidence(
    host: AzureHost, behind: ContainerClient
) -> None:
    blob = behind.get_blob_client("pool/big")
    for number in range(3):
        blob.stage_block(f"{number:04d}", bytes(11 * MIB))
    blob.commit_block_list(
        [BlobBlock(f"{number:04d}") for number in range(3)],
        content_settings=ContentSettings(content_md5=bytearray(range(16))),
    )
    assert host.stat(host.location("big")).checksum is None


def test_an_untrusted_source_is_stored_when_it_keeps_its_word(
    host: AzureHost, tmp_path: Path
) -> None:
    for size in (0, 10, ONE_REQUEST + 16 * MIB):
        data = noise(size, size)
        path = tmp_path / "file"
        path.write_bytes(data)
        info = host.put(f"k{size}", Untrusted(path), sha256=sha256(data))
        assert read(host, info.location) == data


@pytest.mark.parametrize("size", [1000, ONE_REQUEST + 17 * MIB])
@pytest.mark.parametrize("change", ["other", "shorter", "longer"])
def test_a_source_that_changes_stores_nothing(
    host: AzureHost, behind: ContainerClient, tmp_path: Path, size: int, change: str
) -> None:
    data = noise(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    source = Untrusted(path)
    wrong = {"other": data[:-1] + b"?", "shorter": data[:-1], "longer": data + b"?"}[change]
    path.write_bytes(wrong)
    with pytest.raises(SourceChanged):
        host.put("k", source, sha256=sha256(data))
    assert list(behind.list_blobs()) == []


def test_a_source_that_changes_does_not_harm_what_is_stored(
    host: AzureHost, tmp_path: Path
) -> None:
    data = noise(ONE_REQUEST + 1)
    location = put(host, "k", data).location
    path = tmp_path / "file"
    path.write_bytes(data[:-1] + b"?")
    with pytest.raises(SourceChanged):
        host.put("k", Untrusted(path), sha256=sha256(data))
    assert read(host, location) == data


class Watched(BytesSource):
    """Counts how much of it is held in memory by whoever reads it, one block at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read_bytes = 0

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        data = super().read(offset, length)
        self.read_bytes += len(data)
        return data


def test_a_callback_that_raises_ends_the_upload_early(
    azurite: Any, container: str, behind: ContainerClient
) -> None:
    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    host = open_azure(
        "box",
        f"azure+{azurite.endpoint}/{container}/pool",
        {"account_key": azurite.key, "block_size": "1MiB", "concurrency": 2},
    )
    source = Watched(noise(64 * MIB))
    with pytest.raises(Stop):
        host.put("k", source, sha256=sha256(source.data), on_bytes=stop)
    assert source.read_bytes < 16 * MIB
    assert list(behind.list_blobs()) == []


def test_an_upload_goes_on_with_the_blocks_that_are_missing(
    azurite: Any, container: str, behind: ContainerClient
) -> None:
    host = open_azure(
        "box",
        f"azure+{azurite.endpoint}/{container}/pool",
        {"account_key": azurite.key, "block_size": "4MiB"},
    )
    data = noise(40 * MIB)
    sent = 0

    class Enough(Exception):
        pass

    def enough(count: int) -> None:
        nonlocal sent
        sent += count
        if sent >= 20 * MIB:
            raise Enough

    with pytest.raises(Enough):
        put(host, "k", data, on_bytes=enough)
    _, waiting = behind.get_blob_client("pool/k").get_block_list("all")
    there = sum(block.size for block in waiting)
    assert 20 * MIB <= there < 40 * MIB
    told: list[int] = []
    info = put(host, "k", data, on_bytes=told.append)
    assert sum(told) == len(data) - there
    assert read(host, info.location) == data


def test_blocks_of_other_bytes_under_the_same_name_are_not_taken_for_ours(
    host: AzureHost,
) -> None:
    class Enough(Exception):
        pass

    def enough(_: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        put(host, "k", noise(ONE_REQUEST + 1, 1), on_bytes=enough)
    data = noise(ONE_REQUEST + 1, 2)
    info = put(host, "k", data)
    assert read(host, info.location) == data


def test_unfinished_blocks_with_ids_of_another_length_give_a_clear_error(
    host: AzureHost, behind: ContainerClient
) -> None:
    behind.get_blob_client("pool/k").stage_block("short", b"x")
    with pytest.raises(HostError, match="host clean"):
        put(host, "k", bytes(ONE_REQUEST + 1))
    assert list(host.clean(older_than=timedelta(0))) != []
    put(host, "k", bytes(ONE_REQUEST + 1))


def test_clean_discards_old_unfinished_blocks_and_nothing_else(
    host: AzureHost, behind: ContainerClient
) -> None:
    behind.get_blob_client("pool/a/unfinished").stage_block("0001", b"12345")
    behind.get_blob_client("elsewhere/unfinished").stage_block("0001", b"12345")
    put(host, "done", b"done")
    put(host, "empty", b"")
    behind.get_blob_client("pool/done").stage_block("0001", b"again")
    assert list(host.clean(older_than=timedelta(hours=1))) == []
    (text,) = host.clean(older_than=timedelta(0))
    assert host.location("a/unfinished") in text
    assert list(host.clean(older_than=timedelta(0))) == []
    names = {blob.name for blob in behind.list_blobs(include=["uncommittedblobs"])}
    assert names == {"pool/done", "pool/empty", "elsewhere/unfinished"}
    assert read(host, host.location("done")) == b"done"


def _put_in_a_child(endpoint: str, container: str, key: str, data: bytes, answers: Any) -> None:
    host = open_azure("box", f"azure+{endpoint}/{container}/pool", {"account_key": key})
    try:
        info = host.put("k", BytesSource(data), sha256=sha256(data))
        answers.put(("stored", info.size))
    except HostError as exc:
        answers.put((type(exc).__name__, str(exc)))


def test_two_processes_that_send_the_same_object_at_once_both_end_well(
    azurite: Any, container: str, host: AzureHost
) -> None:
    data = noise(ONE_REQUEST + 30 * MIB)
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    children = [
        context.Process(
            target=_put_in_a_child, args=(azurite.endpoint, container, azurite.key, data, answers)
        )
        for _ in range(2)
    ]
    for child in children:
        child.start()
    assert [answers.get(timeout=120) for _ in children] == [("stored", len(data))] * 2
    for child in children:
        child.join()
    assert read(host, host.location("k")) == data


def test_many_threads_share_one_host(host: AzureHost) -> None:
    def trip(number: int) -> bool:
        data = noise(4096, number)
        return read(host, put(host, f"{number:03d}", data).location) == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(trip, range(100)))
    assert len(list(host.list())) == 100


def test_a_host_used_in_a_forked_child_refuses_instead_of_hanging(host: AzureHost) -> None:
    location = put(host, "k", b"x").location
    assert read(host, location) == b"x"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"nothing"
        try:
            read(host, location)
        except HostError as exc:
            answer = str(exc).encode()
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        assert b"forked" in answers.read()
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "variables",
    [
        {"AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=wrong", "AZURE_STORAGE_SAS_KEY": "sv=1&sig=wrong"},
        {"AZURE_STORAGE_TOKEN": "wrong", "AZURE_CREDENTIAL_TYPE": "bearer_token"},
        {"AZURE_STORAGE_ACCOUNT_NAME": "wrong", "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="},
        {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/x"},
        {"AZURE_SKIP_SIGNATURE": "true", "AZURE_CONTAINER_NAME": "wrong"},
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=wrong;AccountKey=d3Jvbmc="},
    ],
)
def test_variables_meant_for_other_programs_change_nothing(
    host: AzureHost, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    info = put(host, "k", b"hello")
    assert read(host, info.location) == b"hello"
    assert [each.key for each in host.list()] == ["k"]
