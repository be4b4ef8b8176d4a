"""The bandwidth limit: every payload byte waits for its turn, in both directions, once."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudmanager import CloudManager
from cloudmanager.errors import SourceChanged
from cloudmanager.hosts import Host, open_host
from cloudmanager.hosts.throttled import Limiter, ThrottledHost
from cloudmanager.source import BytesSource, FileSource

MIB = 1024 * 1024


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def frozen() -> Limiter:
    """A limiter of one byte a second that waits for nothing: its debt counts the bytes."""
    return Limiter(1, clock=lambda: 0.0, sleep=lambda _: None)


def taken(limiter: Limiter) -> int:
    return int(limiter._free_at)


def test_bytes_take_the_time_that_the_rate_gives_them() -> None:
    clock = Clock()
    limiter = Limiter(1000, clock=clock, sleep=clock.sleep)
    for _ in range(10):
        limiter.take(500)
    assert clock.now == pytest.approx(100 + 5)


def test_a_pause_is_not_made_up_for_by_a_burst() -> None:
    clock = Clock()
    limiter = Limiter(1000, clock=clock, sleep=clock.sleep)
    limiter.take(1000)
    clock.now += 3600
    limiter.take(1000)
    limiter.take(1000)
    assert clock.slept == pytest.approx([1, 1, 1])


def test_threads_share_one_rate() -> None:
    waits: list[float] = []
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            waits.append(seconds)

    limiter = Limiter(1000, clock=lambda: 0.0, sleep=sleep)
    threads = [threading.Thread(target=limiter.take, args=(1000,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_is_more_than_nothing(rate: int) -> None:
    with pytest.raises(ValueError, match="more than nothing"):
        Limiter(rate)


@pytest.fixture(params=["folder", "s3"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    if request.param == "folder":
        (tmp_path / "folder").mkdir()
        return open_host(str(tmp_path / "folder"), name="folder")
    server: Any = request.getfixturevalue("rclone_s3")
    return open_host(
        f"s3://{server.make_bucket()}/pool",
        {
            "endpoint_url": server.endpoint,
            "region": "us-east-1",
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
        },
        name="s3",
    )


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB, 40 * MIB])
@pytest.mark.parametrize("trusted", [True, False])
def test_what_goes_up_and_comes_down_is_counted_once(
    host: Host, tmp_path: Path, size: int, trusted: bool
) -> None:
    data = random.Random(size).randbytes(size)
    sha256 = hashlib.sha256(data).hexdigest()
    path = tmp_path / "source"
    path.write_bytes(data)
    limiter = frozen()
    slow = ThrottledHost(host, limiter)
    info = slow.put("6f/key", FileSource(path, size=size, trusted=trusted), sha256=sha256)
    # Untrusted bytes are hashed while they are sent; some ways of sending read them before.
    assert taken(limiter) in ((size,) if trusted else (size, 2 * size))

    limiter = frozen()
    slow = ThrottledHost(host, limiter)
    assert b"".join(slow.get(info.location)) == data
    assert taken(limiter) == size
    if 0 < size <= 3 * MIB:
        assert slow.read(info.location, limit=size) == data
        assert b"".join(slow.get(info.location, offset=10, length=100)) == data[10:110]
        assert taken(limiter) == 2 * size + 100
    slow.close()


def test_a_source_that_is_not_what_it_was_is_refused_through_the_limit(
    tmp_path: Path, host: Host
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"other bytes")
    slow = ThrottledHost(host, frozen())
    with pytest.raises(SourceChanged):
        slow.put("6f/key", FileSource(path, size=11), sha256=hashlib.sha256(b"x").hexdigest())


def test_a_limited_pool_is_cancelled_at_once(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    cm = CloudManager(
        tmp_path / "c.sqlite3", tmp_path / "storage", "64MiB", [str(tmp_path / "host")], bwlimit=1
    )
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)  # a day at that rate
    failed: list[BaseException] = []

    def upload() -> None:
        try:
            cm.upload(path)
        except Exception as exc:  # noqa: BLE001
            failed.append(exc)

    worker = threading.Thread(target=upload)
    worker.start()
    worker.join(0.2)
    assert worker.is_alive()
    cm.cancel()
    worker.join(60)
    assert not worker.is_alive()
    cm.close()


def test_a_source_in_memory_keeps_what_it_is_called() -> None:
    seen: list[str] = []

    class Told(ThrottledHost):
        pass

    class Inner:
        name = "inner"
        capabilities = None

        def put(self, key: str, source: Any, **_: Any) -> None:
            seen.append(
                f"{source} {source.size} {source.path} {source.trusted} {source.read(1, 2)!r}"
            )

    Told(Inner(), frozen()).put("k", BytesSource(b"abcd"), sha256="")  # type: ignore[arg-type]
    assert seen == ["4 bytes in memory 4 None True b'bc'"]
