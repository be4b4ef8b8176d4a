"""The kit on the host that comes with it, as it is and with faults that retries withstand."""

from __future__ import annotations

import pytest

from cloudmanager.hosts.base import Host
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.retry import Backoff, Policy, Retrier
from cloudmanager.source import BytesSource
from cloudmanager.testing import FaultPlan, FaultyHost, HostConformance, MemoryHost
from cloudmanager.testing.arrangement import noise, sha256_of
from cloudmanager.testing.memory import Stored


class TestMemoryHost(HostConformance):
    capabilities = MemoryHost.capabilities
    keeps_filename = True

    def open_host(self) -> Host:
        return MemoryHost()

    def open_unreachable(self) -> Host:
        host = MemoryHost("offline")
        host.offline = True
        return host

    def raw_read(self, host: Host, key: str) -> bytes:
        assert isinstance(host, MemoryHost)
        return host.objects[key].data

    def raw_write(self, host: Host, key: str, data: bytes) -> None:
        assert isinstance(host, MemoryHost)
        host.objects[key] = Stored(data)


class TestFaultyHostWithRetries(HostConformance):
    """What the contract allows to go wrong, the retry policy hides."""

    capabilities = MemoryHost.capabilities
    keeps_filename = True

    @pytest.fixture(params=range(3))
    def host(self, request: pytest.FixtureRequest) -> Host:
        plan = FaultPlan(request.param, rate=0.5)
        faulty = FaultyHost(MemoryHost(), plan, sleep=lambda _: None)
        retrier = Retrier(
            Policy(Backoff(), max_retries=60, give_up_after=float("inf")), sleep=lambda _: None
        )
        return RetryingHost(faulty, retrier)

    def test_every_byte_that_goes_out_is_told(self, host: Host) -> None:
        """Also those that went out in vain."""
        data = noise(100_000)
        told: list[int] = []
        for _ in range(10):
            host.put("k", BytesSource(data), sha256=sha256_of(data), on_bytes=told.append)
        assert sum(told) >= 10 * len(data)
        assert sum(told) % len(data) == 0
