"""The hosts of a pool in order of preference, and which of them to leave alone for now."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloudmanager.errors import (
    AccessDenied,
    ConfigurationError,
    ContainerNotFound,
    HostError,
    HostFull,
    HostUnavailable,
)
from cloudmanager.hosts import Host
from cloudmanager.hosts.retrying import RetryingHost
from cloudmanager.model import UploadRecord, pool_key
from cloudmanager.retry import Retrier

__all__ = ["Ring"]

log = logging.getLogger(__name__)
_SOME_KEY = pool_key("0" * 64)
_HOST_IS_DOWN = (HostUnavailable, AccessDenied, ContainerNotFound, HostFull)


@dataclass(slots=True)
class _Health:
    """`until` by the monotonic clock; a host that never failed has None.

    `trying` is set while one call tries a host whose cool-down is over.
    """

    until: float | None = None
    trying: bool = False
    pause: float = 0.0
    error: str = ""


class Ring:
    """Hosts in order of preference, each behind the retry policy. Thread-safe.

    A host that failed as a whole is skipped for a cool-down, so that thousands of files do
    not each wait for a dead host. When that is over, one call at a time may try it: the
    others go on without it until that call has worked.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        retrier: Retrier,
        *,
        cool_down: float = 30.0,
        longest: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        names = [host.name for host in hosts]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(f"two hosts are named {name!r}")
        self.hosts: tuple[Host, ...] = tuple(RetryingHost(host, retrier) for host in hosts)
        self.writable = tuple(host for host in self.hosts if host.capabilities.put)
        self._by_name = {host.name: host for host in self.hosts}
        self._rank = {host.name: rank for rank, host in enumerate(self.hosts)}
        self._health = {name: _Health() for name in names}
        self._cool_down = cool_down
        self._longest = longest
        self._clock = clock
        self._lock = threading.Lock()
        self._places_differ = False

    def get(self, name: str) -> Host | None:
        """The host of that name, or None when this pool has none."""
        return self._by_name.get(name)

    def rank(self, host: Host) -> int:
        """0 for the most preferred host."""
        return self._rank[host.name]

    def owner(self, upload: UploadRecord) -> Host | None:
        """The host on which the location of a copy can be followed, or None.

        By URL, not by name: a name means something else on every node.
        """
        named = self._by_name.get(upload.host)
        if named is not None and named.owns(upload.location):
            return named
        return next((host for host in self.hosts if host.owns(upload.location)), None)

    def refuse_same_places(self) -> None:
        """Make sure that a copy on each of two hosts is two copies.

        Not done when the pool is opened: to tell its place, a host may have to load its SDK.

        Raises
        ------
        ConfigurationError
            When two hosts would store a file in the same place.
        """
        if self._places_differ or len(self.writable) < 2:
            return
        seen: dict[str, str] = {}
        for host in self.writable:
            with contextlib.suppress(HostError):  # it cannot tell now, nor store anything
                other = seen.setdefault(host.location(_SOME_KEY), host.name)
                if other != host.name:
                    raise ConfigurationError(
                        f"hosts {other!r} and {host.name!r} are the same place: a file would "
                        "have one copy where two are counted; leave one of them out"
                    )
        self._places_differ = True

    def available(self, host: Host) -> bool:
        """Whether to use the host now. Claims the one try that a cooled-down host gets."""
        health = self._health[host.name]
        if health.until is None:
            return True
        with self._lock:
            now = self._clock()
            if health.until is None:
                return True
            if now < health.until:
                return False
            health.until = now + max(health.pause, self._cool_down)
            health.trying = True
            return True

    def resting(self, host: Host) -> bool:
        """Whether the host is in its cool-down. Claims nothing."""
        until = self._health[host.name].until
        return until is not None and self._clock() < until

    def worked(self, host: Host) -> None:
        """The host did something for us: it is up."""
        health = self._health[host.name]
        if health.until is not None:
            with self._lock:
                health.until, health.trying, health.pause, health.error = None, False, 0.0, ""

    def failed(self, host: Host, exc: HostError) -> None:
        """The host failed; when it is down as a whole its cool-down begins."""
        if not isinstance(exc, _HOST_IS_DOWN):
            return
        with self._lock:
            health = self._health[host.name]
            now = self._clock()
            if health.until is not None and now < health.until and not health.trying:
                return  # many threads met the same failure: count it once
            health.trying = False
            health.pause = min(max(self._cool_down, health.pause * 2), self._longest)
            health.until = now + health.pause
            health.error = str(exc)
        log.warning("%s; leaving that host alone for %.0f s", exc, health.pause)

    def error(self, name: str) -> str:
        """Why the host is being left alone, or ``""``."""
        health = self._health.get(name)
        return health.error if health is not None else ""

    def forgive(self) -> None:
        """End all cool-downs: somebody asked for another try."""
        with self._lock:
            for health in self._health.values():
                health.until, health.trying, health.pause, health.error = None, False, 0.0, ""

    def close(self) -> None:
        for host in self.hosts:
            host.close()
