"""Cool-downs, by a clock that only moves when it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudmanager.errors import AccessDenied, ConfigurationError, HostUnavailable, ObjectNotFound
from cloudmanager.hosts import Host
from cloudmanager.hosts.folder import FolderHost
from cloudmanager.manager.ring import Ring
from cloudmanager.retry import Retrier


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(tmp_path: Path, clock: Clock) -> Ring:
    hosts = [FolderHost(name, tmp_path) for name in ("a", "b")]
    return Ring(hosts, Retrier(), cool_down=30, longest=100, clock=clock)


def down(host: Host) -> HostUnavailable:
    return HostUnavailable("refused", host=host.name, operation="put")


def test_a_host_that_failed_is_left_alone_until_its_cool_down_is_over(
    ring: Ring, clock: Clock
) -> None:
    a, b = ring.hosts
    ring.failed(a, down(a))
    assert not ring.available(a)
    assert ring.resting(a)
    assert ring.available(b)
    clock.now += 29
    assert not ring.available(a)
    clock.now += 1
    assert ring.available(a)


def test_after_the_cool_down_one_call_at_a_time_may_try(ring: Ring, clock: Clock) -> None:
    a = ring.hosts[0]
    ring.failed(a, down(a))
    clock.now += 30
    assert ring.available(a)
    assert not ring.available(a)
    ring.worked(a)
    assert ring.available(a)
    assert ring.available(a)
    assert ring.error("a") == ""


def test_a_try_that_is_never_reported_does_not_lock_the_host_out(ring: Ring, clock: Clock) -> None:
    a = ring.hosts[0]
    ring.failed(a, down(a))
    clock.now += 30
    assert ring.available(a)
    clock.now += 30
    assert ring.available(a)


def test_each_failed_try_doubles_the_pause_up_to_the_longest(ring: Ring, clock: Clock) -> None:
    a = ring.hosts[0]
    pauses = []
    ring.failed(a, down(a))
    for _ in range(4):
        begun = clock.now
        while not ring.available(a):
            clock.now += 1
        pauses.append(clock.now - begun)
        ring.failed(a, down(a))
    assert pauses == [30, 60, 100, 100]


def test_many_threads_that_meet_the_same_failure_count_as_one(ring: Ring, clock: Clock) -> None:
    a = ring.hosts[0]
    for _ in range(16):
        ring.failed(a, down(a))
        clock.now += 0.5
    clock.now += 22
    assert ring.available(a)


def test_what_says_nothing_about_the_host_as_a_whole_does_not_rest_it(ring: Ring) -> None:
    a = ring.hosts[0]
    ring.failed(a, ObjectNotFound("gone", host="a", operation="get"))
    assert ring.available(a)
    ring.failed(a, AccessDenied("403", host="a", operation="put"))
    assert not ring.available(a)
    ring.forgive()
    assert ring.available(a)


def test_two_hosts_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="two hosts"):
        Ring([FolderHost("a", tmp_path), FolderHost("a", tmp_path)], Retrier())
