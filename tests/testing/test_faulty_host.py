"""The faulty host goes wrong as its plan says, and in no other way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import pytest

from cloudmanager.errors import HostUnavailable, ObjectNotFound
from cloudmanager.source import BytesSource
from cloudmanager.testing import Fault, FaultPlan, FaultyHost, MemoryHost

DATA = bytes(range(256)) * 1000
OPERATIONS = ("put", "get", "stat", "list", "delete", "check")


def put(host: FaultyHost | MemoryHost, key: str = "6f/k", data: bytes = DATA) -> str:
    return host.put(key, BytesSource(data), sha256=hashlib.sha256(data).hexdigest()).location


def scripted(faults: Mapping[tuple[str, int], Fault]) -> tuple[FaultyHost, MemoryHost]:
    inner = MemoryHost()
    return FaultyHost(inner, FaultPlan.script(faults), sleep=lambda _: None), inner


def drawn(plan: FaultPlan) -> dict[tuple[str, int], Fault | None]:
    return {(each, n): plan.fault(each, n) for each in OPERATIONS for n in range(200)}


def test_a_seed_makes_the_same_plan_again_and_another_seed_another() -> None:
    assert drawn(FaultPlan(1)) == drawn(FaultPlan(1))
    assert drawn(FaultPlan(1)) != drawn(FaultPlan(2))
    backwards = FaultPlan(1)
    assert {at: backwards.fault(*at) for at in reversed(drawn(FaultPlan(1)))} == drawn(FaultPlan(1))


def test_the_rate_is_the_share_of_calls_with_a_fault() -> None:
    assert set(drawn(FaultPlan(1, rate=0.0)).values()) == {None}
    some = [fault for fault in drawn(FaultPlan(1, rate=0.2)).values() if fault]
    assert 150 < len(some) < 300  # of 1,200


def test_after_so_many_faults_in_a_row_a_call_works() -> None:
    for seed in range(5):
        plan = FaultPlan(seed, rate=0.9, in_a_row=2)
        for operation in OPERATIONS:
            faults = [plan.fault(operation, n) is not None for n in range(100)]
            runs = "".join("x" if each else " " for each in faults).split()
            assert max(map(len, runs)) == 2


def test_a_plan_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot have the fault lost"):
        FaultPlan.script({("get", 0): Fault.LOST})
    with pytest.raises(ValueError, match="shout"):
        FaultPlan(1, operations=("shout",))
    with pytest.raises(ValueError, match="rate"):
        FaultPlan(1, rate=1.5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_call_that_fails_has_done_nothing(operation: str) -> None:
    host, inner = scripted({(operation, 0): Fault.FAIL})
    location = put(inner)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: put(host, data=b"new"),
        "get": lambda: next(host.get(location)),
        "stat": lambda: host.stat(location),
        "list": lambda: next(host.list()),
        "delete": lambda: host.delete([location]),
        "check": host.check,
    }
    with pytest.raises(HostUnavailable) as caught:
        calls[operation]()
    assert (caught.value.operation, caught.value.host) == (operation, "memory")
    assert caught.value.retryable
    assert inner.objects["6f/k"].data == DATA
    calls[operation]()  # the second time it works
    assert [(each.operation, each.call) for each in host.injected] == [(operation, 0)]


def test_a_lost_acknowledgement_is_of_something_that_was_done() -> None:
    host, inner = scripted({("put", 0): Fault.LOST, ("delete", 0): Fault.LOST})
    with pytest.raises(HostUnavailable):
        put(host)
    assert inner.objects["6f/k"].data == DATA
    with pytest.raises(HostUnavailable):
        host.delete([host.location("6f/k")])
    assert inner.objects == {}


def test_a_body_that_breaks_says_so_and_one_that_is_short_does_not() -> None:
    host, inner = scripted({("get", 0): Fault.BREAK, ("get", 1): Fault.SHORT})
    location = put(inner)
    got = []
    with pytest.raises(HostUnavailable):
        got.extend(host.get(location))
    assert DATA.startswith(b"".join(got))
    short = b"".join(host.get(location))
    assert DATA.startswith(short)
    assert len(short) < len(DATA)
    assert b"".join(host.get(location)) == DATA


def test_wrong_bytes_differ_in_one_bit() -> None:
    host, inner = scripted({("get", 0): Fault.WRONG})
    wrong = b"".join(host.get(put(inner)))
    differences = [a ^ b for a, b in zip(wrong, DATA, strict=True) if a != b]
    assert [each.bit_count() for each in differences] == [1]


def test_a_listing_breaks_in_the_middle() -> None:
    host, inner = scripted({("list", 0): Fault.BREAK, ("list", 1): Fault.SHORT})
    for number in range(8):
        put(inner, f"6f/{number}", b"x")
    got = []
    with pytest.raises(HostUnavailable):
        got.extend(info.key for info in host.list())
    assert got == [f"6f/{n}" for n in range(len(got))]
    assert len(list(host.list())) < 8
    assert len(list(host.list())) == 8


def test_a_slow_call_waits_by_the_sleep_it_was_given() -> None:
    waited: list[float] = []
    plan = FaultPlan.script({("stat", 1): Fault.SLOW})
    host = FaultyHost(MemoryHost(), plan, delay=2.5, sleep=waited.append)
    location = put(host)
    for expected in ([], [2.5], [2.5]):
        assert host.stat(location).size == len(DATA)
        assert waited == expected


def test_what_the_host_itself_refuses_stays_as_it_is() -> None:
    host, _ = scripted({})
    with pytest.raises(ObjectNotFound):
        host.stat(host.location("6f/never"))
    assert host.injected == []
