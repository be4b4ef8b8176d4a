"""The Azure host when the network or the service fails, and when its process is killed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ServiceRequestError
from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas

from cloudmanager.errors import HostError, HostUnavailable, ObjectNotFound
from cloudmanager.hosts.azure import ONE_REQUEST, AzureHost, open_azure
from cloudmanager.hosts.azure_errors import fail
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.retry import Backoff, Policy, Retrier
from cloudmanager.source import BytesSource, FileSource
from servers.proxy import (
    hang,
    reset_before_reply,
    reset_mid_body,
    short_body,
    status,
    swallow_ack,
    wrong_bytes,
)

MIB = 1024 * 1024
LARGE = 40 * MIB
BLOCK = 4 * MIB


def azure_error(code: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code>'
        "<Message>The server is busy.</Message></Error>"
    ).encode()


def service_says(number: int, code: str) -> Any:
    """An answer of the service itself: status, code in a header, and in the body as XML."""
    return status(
        number, azure_error(code), {"x-ms-error-code": code, "Content-Type": "application/xml"}
    )


FAULTS: dict[str, Callable[[], Any]] = {
    "a reset before the reply": reset_before_reply,
    "503 ServerBusy": lambda: service_says(503, "ServerBusy"),
    "500 OperationTimedOut": lambda: service_says(500, "OperationTimedOut"),
    "500 without a body": lambda: status(500),
    "429": lambda: status(429),
    "409 ContainerBeingDeleted": lambda: service_says(409, "ContainerBeingDeleted"),
    "408": lambda: status(408),
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def noise(size: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.randbytes(min(MIB, size - at)) for at in range(0, size, MIB))


def put(host: Any, key: str, data: bytes, **more: Any) -> Any:
    return host.put(key, BytesSource(data), sha256=sha256(data), **more)


def read(host: Any, location: str, **part: int) -> bytes:
    return b"".join(host.get(location, **part))


def is_data(method: str, path: str, _: Any) -> bool:
    return method == "GET" and "comp=" not in path


def is_put(method: str, path: str, _: Any) -> bool:
    return method == "PUT" and "comp=" not in path


def is_block(method: str, path: str, _: Any) -> bool:
    return method == "PUT" and "comp=block&" in f"{path}&"


def is_commit(method: str, path: str, _: Any) -> bool:
    return method == "PUT" and "comp=blocklist" in path


@pytest.fixture
def container(azurite: Any) -> str:
    made: str = azurite.make_container()
    return made


@pytest.fixture
def behind(azurite: Any, container: str) -> ContainerClient:
    client: ContainerClient = azurite.client().get_container_client(container)
    return client


@pytest.fixture
def proxy(azurite: Any, fault_proxy: Any) -> Any:
    return fault_proxy(azurite.endpoint)


@pytest.fixture
def host(azurite: Any, proxy: Any, container: str) -> Iterator[AzureHost]:
    made = open_azure(
        "box",
        f"azure+{proxy.endpoint}/{container}/pool",
        {"account_key": azurite.key, "block_size": BLOCK},
    )
    yield made
    made.close()


def calls(host: AzureHost) -> dict[str, Callable[[], object]]:
    location = host.location("k")
    return {
        "put": lambda: put(host, "new", b"data"),
        "get": lambda: read(host, location),
        "get by the SDK": lambda: read(host, host.location("a//b")),
        "stat": lambda: host.stat(location),
        "list": lambda: list(host.list()),
        "delete": lambda: host.delete([location]),
        "check": host.check,
    }


CALLS = ["put", "get", "get by the SDK", "stat", "list", "delete", "check"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_transient_failure_is_worth_a_retry_and_the_retry_works(
    host: AzureHost, proxy: Any, behind: ContainerClient, fault: str, call: str
) -> None:
    behind.upload_blob("pool/k", b"data")
    behind.upload_blob("pool/a//b", b"data")
    # For ever: a put looks whether it arrived, and must not find the way free again.
    proxy.plan(FAULTS[fault](), times=None)
    with pytest.raises(HostUnavailable) as caught:
        calls(host)[call]()
    assert caught.value.retryable
    assert (caught.value.host, caught.value.operation) == ("box", call.split()[0])
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_one_failure_is_one_request(
    host: AzureHost, proxy: Any, behind: ContainerClient, call: str
) -> None:
    behind.upload_blob("pool/k", b"data")
    behind.upload_blob("pool/a//b", b"data")
    proxy.plan(service_says(503, "ServerBusy"), times=None)
    with pytest.raises(HostUnavailable):
        calls(host)[call]()
    # A put looks once afterwards whether its acknowledgement got lost.
    assert len(proxy.requests) == (2 if call == "put" else 1)


def test_the_retry_policy_brings_every_call_through(
    host: AzureHost, proxy: Any, behind: ContainerClient
) -> None:
    behind.upload_blob("pool/k", b"data")
    behind.upload_blob("pool/a//b", b"data")
    patient = RetryingHost(
        host, Retrier(Policy(Backoff(initial=0), give_up_after=1000), sleep=lambda _: None)
    )
    for call in ["put", "get", "get by the SDK", "stat", "list", "check", "delete"]:
        for fault in FAULTS.values():
            proxy.plan(fault(), times=1)
            calls(patient)[call]()  # type: ignore[arg-type]
    behind.get_blob_client("pool/new").get_blob_properties()


def test_an_acknowledgement_of_a_small_put_that_got_lost_is_settled_by_looking(
    host: AzureHost, proxy: Any
) -> None:
    proxy.plan(swallow_ack(), match=is_put, times=1)
    info = put(host, "k", b"data", filename="a.txt")
    assert (info.size, info.filename) == (4, "a.txt")
    assert info == host.stat(info.location)
    assert [method for method, _ in proxy.requests[:2]] == ["PUT", "HEAD"]


def test_an_older_object_of_the_same_size_is_not_taken_for_the_one_that_got_lost(
    host: AzureHost, proxy: Any, behind: ContainerClient
) -> None:
    behind.upload_blob("pool/k", b"DATA")
    proxy.plan(reset_before_reply(), match=is_put, times=1)
    with pytest.raises(HostUnavailable):
        put(host, "k", b"data")


def test_an_acknowledgement_of_a_commit_that_got_lost_is_settled_by_looking(
    host: AzureHost, proxy: Any
) -> None:
    data = noise(LARGE)
    proxy.plan(swallow_ack(), match=is_commit, times=1)
    info = put(host, "k", data)
    assert info.size == LARGE
    assert len([path for method, path in proxy.requests if is_commit(method, path, {})]) == 1
    assert read(host, info.location) == data


def test_a_commit_that_failed_sends_no_block_twice(host: AzureHost, proxy: Any) -> None:
    data = noise(LARGE)
    proxy.plan(service_says(503, "ServerBusy"), match=is_commit, times=1)
    with pytest.raises(HostUnavailable):
        put(host, "k", data)
    with pytest.raises(ObjectNotFound):
        host.stat(host.location("k"))
    before = proxy.bytes_up
    told: list[int] = []
    info = put(host, "k", data, on_bytes=told.append)
    assert told == []
    assert proxy.bytes_up - before < 100_000
    assert read(host, info.location) == data


def test_an_older_large_object_is_not_taken_for_the_one_whose_commit_failed(
    host: AzureHost, proxy: Any
) -> None:
    old = noise(LARGE, 1)
    location = put(host, "k", old).location
    proxy.plan(service_says(503, "ServerBusy"), match=is_commit, times=1)
    with pytest.raises(HostUnavailable):
        put(host, "k", noise(LARGE, 2))
    assert read(host, location) == old


def test_clean_harms_no_object_that_appears_meanwhile(
    host: AzureHost, proxy: Any, behind: ContainerClient
) -> None:
    behind.get_blob_client("pool/k").stage_block("0001", b"unfinished")

    def finish_first(method: str, path: str, _: Any) -> bool:
        if is_commit(method, path, _):
            behind.upload_blob("pool/k", b"finished", overwrite=True)
        return False

    proxy.plan(status(500), match=finish_first, times=None)
    assert list(host.clean(older_than=timedelta(0))) == []
    assert behind.download_blob("pool/k").readall() == b"finished"


BLOCK_FAULTS = {
    **FAULTS,
    "a lost acknowledgement": swallow_ack,
    "a reset in mid-body": lambda: reset_mid_body(MIB, "up"),
}


@pytest.mark.parametrize("fault", BLOCK_FAULTS)
def test_a_block_that_failed_is_all_that_travels_again(
    host: AzureHost, proxy: Any, behind: ContainerClient, fault: str
) -> None:
    data = noise(LARGE)
    proxy.plan(BLOCK_FAULTS[fault](), match=is_block, times=1)
    with pytest.raises(HostUnavailable) as caught:
        put(host, "k", data)
    assert caught.value.operation == "put"
    _, waiting = behind.get_blob_client("pool/k").get_block_list("all")
    there = sum(block.size for block in waiting)
    told: list[int] = []
    info = put(host, "k", data, on_bytes=told.append)
    assert sum(told) == LARGE - there
    assert read(host, info.location) == data


@pytest.mark.parametrize("key", ["k", "a//b"])
@pytest.mark.parametrize("part", [{}, {"offset": 5}, {"offset": 5, "length": 6 * MIB}])
@pytest.mark.parametrize("fault", [lambda: reset_mid_body(100_000, "down"), short_body])
def test_a_body_that_ends_early_never_looks_complete(
    host: AzureHost,
    proxy: Any,
    behind: ContainerClient,
    key: str,
    part: dict[str, int],
    fault: Callable[[], Any],
) -> None:
    data = noise(7 * MIB)
    behind.upload_blob(f"pool/{key}", data)
    proxy.plan(fault(), match=is_data, times=None)
    got = bytearray()
    with pytest.raises(HostUnavailable) as caught:
        for block in host.get(host.location(key), **part):
            got += block
    assert caught.value.operation == "get"
    assert data[part.get("offset", 0) :].startswith(bytes(got))


def test_a_broken_download_goes_on_where_it_broke(
    host: AzureHost, proxy: Any, behind: ContainerClient
) -> None:
    data = noise(8 * MIB)
    behind.upload_blob("pool/k", data)
    proxy.plan(reset_mid_body(3 * MIB, "down"), match=is_data, times=1)
    patient = RetryingHost(host, Retrier(Policy(Backoff(initial=0)), sleep=lambda _: None))
    assert read(patient, host.location("k")) == data


@pytest.mark.parametrize("fault", [short_body, wrong_bytes, lambda: reset_mid_body(50, "down")])
def test_a_listing_that_breaks_is_an_error_and_never_a_short_list(
    host: AzureHost, proxy: Any, behind: ContainerClient, fault: Callable[[], Any]
) -> None:
    for number in range(5):
        behind.upload_blob(f"pool/{number}", b"x")
    proxy.plan(fault(), times=None)
    with pytest.raises(HostError):
        list(host.list())


def test_a_list_of_blocks_that_cannot_be_read_is_an_error_of_the_host(
    host: AzureHost, proxy: Any
) -> None:
    proxy.plan(
        status(200, b"\xff\xfe not XML"), match=lambda m, p, _: "blocklist" in p and m == "GET"
    )
    with pytest.raises(HostError, match="cannot be read"):
        put(host, "k", bytes(LARGE))


def test_an_error_of_the_callback_stays_what_it_is(host: AzureHost) -> None:
    def refuse(_: int) -> None:
        raise ValueError("mine")

    for size in (10, LARGE):
        with pytest.raises(ValueError, match="mine"):
            put(host, "k", bytes(size), on_bytes=refuse)


def test_silence_past_the_limit_is_worth_a_retry(
    host: AzureHost, proxy: Any, behind: ContainerClient
) -> None:
    host.time_limit = 0.4
    behind.upload_blob("pool/k", b"data")
    behind.upload_blob("pool/a//b", b"data")
    proxy.plan(hang(30), times=None)
    for name, call in calls(host).items():
        with pytest.raises(HostUnavailable, match="no answer in time") as caught:
            call()
        assert caught.value.operation == name.split()[0]


def test_a_service_that_is_not_there_is_worth_a_retry(azurite: Any) -> None:
    for endpoint, message in [
        ("http://127.0.0.1:9/account", "cannot connect"),
        ("http://does-not-exist.invalid/account", "cannot be resolved"),
    ]:
        options = {"account_key": azurite.key, "account": "account"}
        host = open_azure("box", f"azure+{endpoint}/box", options)
        for call in calls(host).values():
            with pytest.raises(HostUnavailable, match=message):
                call()
        host.close()


def test_a_sas_token_is_in_no_text_of_a_network_error(azurite: Any, container: str) -> None:
    token = generate_container_sas(
        azurite.account,
        container,
        azurite.key,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    signature = token.partition("sig=")[2].partition("&")[0]
    host = open_azure("box", f"azure+http://127.0.0.1:9/account/{container}", {"sas_token": token})
    for call in calls(host).values():
        with pytest.raises(HostUnavailable) as caught:
            call()
        error: BaseException | None = caught.value
        while error is not None:
            assert signature not in f"{error} {error!r}"
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize("size", [100, LARGE])
def test_bytes_that_are_damaged_on_their_way_up_are_not_stored(
    host: AzureHost, proxy: Any, behind: ContainerClient, size: int
) -> None:
    proxy.plan(wrong_bytes("up"), match=is_put if size < LARGE else is_block, times=None)
    with pytest.raises(HostUnavailable, match="MD5"):
        put(host, "k", noise(size))
    assert list(behind.list_blobs()) == []


def test_a_signature_in_a_foreign_error_is_blotted_out() -> None:
    below = OSError("GET http://x/y?sv=1&sig=hush%2B&se=2 failed")
    error = ServiceRequestError("cannot open http://x/y?sig=hush", error=below)
    with pytest.raises(HostUnavailable) as caught:
        fail(error, host="box", operation="get", location="")
    assert caught.value.__cause__ is error
    for each in (error, below):
        assert "hush" not in f"{each} {each!r}"
        assert "sig=***" in str(each)


# -- a killed process --------------------------------------------------------------------


def _upload_in_a_child(url: str, key: str, path: str, sha: str) -> None:
    host = open_azure("box", url, {"account_key": key, "block_size": BLOCK})
    host.put("k", FileSource(path), sha256=sha, filename="film.mp4")


def _killed_and_resumed(
    size: int, tmp_path: Path, azurite: Any, proxy: Any, container: str, behind: ContainerClient
) -> None:
    data = noise(size)
    path = tmp_path / "film.mp4"
    path.write_bytes(data)
    url = f"azure+{proxy.endpoint}/{container}/pool"
    child = multiprocessing.get_context("spawn").Process(
        target=_upload_in_a_child, args=(url, azurite.key, str(path), sha256(data))
    )
    child.start()
    assert child.pid is not None
    deadline = time.monotonic() + 120
    while proxy.bytes_up < size * 0.6:
        assert child.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline, "it does not get on"
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(ObjectNotFound):
        open_azure("box", url, {"account_key": azurite.key}).stat(f"{url}/k")

    # What the child had sent may still lie in the buffers between it and the proxy.
    before = -1
    while before != proxy.bytes_up:
        before = proxy.bytes_up
        time.sleep(0.3)
    host = open_azure("box", url, {"account_key": azurite.key, "block_size": BLOCK})
    told: list[int] = []
    info = host.put("k", FileSource(path), sha256=sha256(data), on_bytes=told.append)
    host.close()
    # Lost are at most the blocks that were on their way: four senders.
    assert 0 < sum(told) <= size * 0.4 + 5 * BLOCK
    assert sum(told) <= proxy.bytes_up - before <= sum(told) + 100_000
    assert behind.get_blob_client("pool/k").download_blob().readall() == data
    assert info.size == size


def test_an_upload_killed_at_sixty_percent_sends_only_what_is_missing(
    tmp_path: Path, azurite: Any, proxy: Any, container: str, behind: ContainerClient
) -> None:
    _killed_and_resumed(96 * MIB, tmp_path, azurite, proxy, container, behind)


@pytest.mark.long
def test_an_upload_of_300_mib_killed_at_sixty_percent_sends_only_what_is_missing(
    tmp_path: Path, azurite: Any, proxy: Any, container: str, behind: ContainerClient
) -> None:
    _killed_and_resumed(300 * MIB, tmp_path, azurite, proxy, container, behind)


def test_large_means_larger_than_one_request() -> None:
    assert LARGE > ONE_REQUEST
