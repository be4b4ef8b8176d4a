"""The retry policy around a host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudmanager.errors import HostUnavailable, ObjectNotFound
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.model import Capabilities, ObjectInfo
from cloudmanager.retry import Backoff, Policy, Retrier
from cloudmanager.source import BytesSource

DATA = bytes(range(256)) * 100


class Shaky(FolderHost):
    """A folder whose connections break: after `breaks` items, `times` times."""

    def __init__(self, root: Path, *, breaks: int, times: int) -> None:
        super().__init__("shaky", root)
        self.breaks = breaks
        self.times = times
        self.gets: list[int] = []

    def _break(self, operation: str) -> None:
        self.times -= 1
        raise HostUnavailable("connection reset", host=self.name, operation=operation)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self.gets.append(offset)
        data = b"".join(super().get(location, offset=offset, length=length))
        for count, start in enumerate(range(0, len(data), 1000)):
            if count == self.breaks and self.times:
                self._break("get")
            yield data[start : start + 1000]

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        for count, info in enumerate(super().list(prefix, after=after)):
            if count == self.breaks and self.times:
                self._break("list")
            yield info

    def put(self, *args: object, **more: object) -> ObjectInfo:
        if self.times:
            self._break("put")
        return super().put(*args, **more)  # type: ignore[arg-type]

    def stat(self, location: str) -> ObjectInfo:
        if self.times:
            self._break("stat")
        return super().stat(location)


def retrying(host: Shaky) -> RetryingHost:
    policy = Policy(Backoff(initial=0.0, maximum=0.0), max_retries=3)
    return RetryingHost(host, Retrier(policy, sleep=lambda _seconds: None))


def test_a_get_that_breaks_goes_on_from_the_last_byte(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(DATA)
    host = Shaky(tmp_path, breaks=5, times=3)
    assert b"".join(retrying(host).get(host.location("k"))) == DATA
    assert host.gets == [0, 5000, 10000, 15000]


def test_a_range_that_breaks_ends_where_it_should(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(DATA)
    host = Shaky(tmp_path, breaks=2, times=2)
    assert b"".join(retrying(host).get(host.location("k"), offset=7, length=9000)) == DATA[7:9007]


def test_without_ranges_a_get_that_handed_over_bytes_cannot_go_on(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(DATA)
    host = Shaky(tmp_path, breaks=5, times=1)
    host.capabilities = Capabilities(range_read=False)
    with pytest.raises(HostUnavailable):
        b"".join(retrying(host).get(host.location("k")))
    host.breaks, host.times = 0, 1
    assert b"".join(retrying(host).get(host.location("k"))) == DATA


def test_empty_blocks_are_no_progress(tmp_path: Path) -> None:
    class Dripping(Shaky):
        def get(
            self, location: str, *, offset: int = 0, length: int | None = None
        ) -> Iterator[bytes]:
            self.gets.append(offset)
            yield b""
            self._break("get")

    (tmp_path / "k").write_bytes(DATA)
    host = Dripping(tmp_path, breaks=0, times=10**9)
    with pytest.raises(HostUnavailable):
        b"".join(retrying(host).get(host.location("k")))
    assert len(host.gets) == 4


def test_asking_whether_to_go_on_is_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    tries = 0

    class Stuck(FolderHost):
        def put(self, *args: object, **more: object) -> ObjectInfo:
            nonlocal now, tries
            now += 30
            tries += 1
            more["on_bytes"](0)  # type: ignore[operator]
            raise HostUnavailable("no sign of life", host=self.name, operation="put")

    def clock() -> float:
        return now

    monkeypatch.setattr("cloudmanager.hosts.retrying.time", SimpleNamespace(monotonic=clock))
    policy = Policy(
        Backoff(initial=0.0, maximum=0.0), max_retries=9, give_up_after=60.0, attempt=20.0
    )
    retrier = Retrier(policy, clock=clock, sleep=lambda _seconds: None)
    host = RetryingHost(Stuck("stuck", tmp_path), retrier)
    with pytest.raises(HostUnavailable):
        host.put("aa/x", BytesSource(bytes(33 * 1024 * 1024)), sha256="")
    assert tries == 2


def test_a_listing_that_breaks_goes_on_after_the_last_key(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}").write_bytes(b"x")
    host = Shaky(tmp_path, breaks=3, times=3)
    assert [info.key for info in retrying(host).list()] == [str(n) for n in range(10)]


def test_a_listing_that_never_works_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"x")
    with pytest.raises(HostUnavailable):
        list(retrying(Shaky(tmp_path, breaks=0, times=100)).list())


def test_put_and_stat_are_repeated_and_final_errors_are_not(tmp_path: Path) -> None:
    host = Shaky(tmp_path, breaks=0, times=2)
    info = retrying(host).put("k", BytesSource(DATA), sha256="")
    host.times = 2
    assert retrying(host).stat(info.location).size == len(DATA)
    with pytest.raises(ObjectNotFound):
        retrying(host).stat(host.location("nothing"))
