"""A host around a host that goes wrong, as a plan says: to test what should withstand it."""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from cloudmanager.errors import HostUnavailable
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.hosts.wrapped import WrappedHost
from cloudmanager.model import ObjectInfo
from cloudmanager.source import Source

__all__ = ["Fault", "FaultPlan", "FaultyHost", "Injected"]


class Fault(enum.Enum):
    """What can happen to one call.

    The first four a host may do: the contract allows them, and a retry withstands them. The
    last two are lies, which only comparing the bytes finds out.
    """

    FAIL = "fail"
    """`HostUnavailable` before anything was done."""
    LOST = "lost"
    """put, delete: `HostUnavailable` after it was done; the acknowledgement was lost."""
    BREAK = "break"
    """get, list: `HostUnavailable` in the middle."""
    SLOW = "slow"
    """The call waits first, by the `sleep` of the host."""
    SHORT = "short"
    """get, list: ends early, and does not say so."""
    WRONG = "wrong"
    """get: one bit of the bytes is another."""


ALLOWED = (Fault.FAIL, Fault.LOST, Fault.BREAK, Fault.SLOW)
LIES = (Fault.SHORT, Fault.WRONG)

_POSSIBLE = {
    "put": {Fault.FAIL, Fault.LOST, Fault.SLOW},
    "get": {Fault.FAIL, Fault.BREAK, Fault.SLOW, Fault.SHORT, Fault.WRONG},
    "stat": {Fault.FAIL, Fault.SLOW},
    "list": {Fault.FAIL, Fault.BREAK, Fault.SLOW, Fault.SHORT},
    "delete": {Fault.FAIL, Fault.LOST, Fault.SLOW},
    "check": {Fault.FAIL, Fault.SLOW},
}


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that was injected: into which call (counted from 0 for each operation), on what."""

    operation: str
    call: int
    fault: Fault
    location: str


class FaultPlan:
    """Which call has which fault. The same for the same seed, however threads interleave.

    What happens to call number n of an operation depends on seed, operation and n alone. Of all
    calls, the share `rate` (0.0 to 1.0) has a fault; at most `in_a_row` calls of an operation
    after one another do, so that a retry which tries once more than that comes through, when
    nobody else calls the same operation meanwhile.
    """

    def __init__(
        self,
        seed: object,
        *,
        rate: float = 0.2,
        faults: Sequence[Fault] = ALLOWED,
        operations: Iterable[str] = _POSSIBLE,
        in_a_row: int = 2,
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"a rate is between 0.0 and 1.0: {rate}")
        self._operations = frozenset(operations)
        if unknown := sorted(self._operations - set(_POSSIBLE)):
            raise ValueError(f"no operation that can have a fault: {', '.join(unknown)}")
        self._seed = seed
        self._rate = rate
        self._faults = tuple(faults)
        self._in_a_row = in_a_row
        self._script: Mapping[tuple[str, int], Fault] | None = None

    @classmethod
    def script(cls, faults: Mapping[tuple[str, int], Fault]) -> FaultPlan:
        """Exactly these: ``{("put", 0): Fault.LOST}`` is the first put."""
        for (operation, _), fault in faults.items():
            if fault not in _POSSIBLE.get(operation, ()):
                raise ValueError(f"{operation} cannot have the fault {fault.value}")
        plan = cls(None)
        plan._script = dict(faults)
        return plan

    def fault(self, operation: str, call: int) -> Fault | None:
        """The fault of call number `call` of `operation`, if it has one."""
        if self._script is not None:
            return self._script.get((operation, call))
        if operation not in self._operations:
            return None
        before = range(call - self._in_a_row, call)
        if before and before[0] >= 0 and all(self._drawn(operation, each) for each in before):
            return None
        return self._drawn(operation, call)

    def rng(self, operation: str, call: int) -> random.Random:
        """Randomness for the details of one fault."""
        return random.Random(f"{self._seed} {operation} {call} details")

    def _drawn(self, operation: str, call: int) -> Fault | None:
        rng = random.Random(f"{self._seed} {operation} {call}")
        possible = [each for each in self._faults if each in _POSSIBLE[operation]]
        return rng.choice(possible) if possible and rng.random() < self._rate else None


class FaultyHost(WrappedHost):
    """`host`, with the faults of `plan` injected. `injected` tells which there were.

    ``read`` counts as ``get``. `sleep` is called with `delay` seconds for `Fault.SLOW`.
    """

    def __init__(
        self,
        host: Host,
        plan: FaultPlan,
        *,
        delay: float = 0.01,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(host)
        self.injected: list[Injected] = []
        self._plan = plan
        self._delay = delay
        self._sleep = sleep
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        location = self.host.location(key)
        fault, _ = self._begin("put", location)
        answer = self.host.put(key, source, sha256=sha256, filename=filename, on_bytes=on_bytes)
        if fault is Fault.LOST:
            self._fail("the acknowledgement was lost", "put", location)
        return answer

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        fault, rng = self._begin("get", location)
        blocks = self.host.get(location, offset=offset, length=length)
        if fault in (None, Fault.SLOW):
            yield from blocks
            return
        for block in blocks:
            # Into the first block that has bytes: a later one there may not be.
            if not block:
                continue
            position = rng.randrange(len(block))
            if fault is Fault.WRONG:
                changed = bytearray(block)
                changed[position] ^= 1 << rng.randrange(8)
                yield bytes(changed)
                yield from blocks
                return
            yield block[:position]
            break
        if fault is Fault.BREAK:
            self._fail("the connection broke in the middle", "get", location)

    def read(self, location: str, *, limit: int) -> bytes:
        return Host.read(self, location, limit=limit)  # by way of our own `get`

    def stat(self, location: str) -> ObjectInfo:
        self._begin("stat", location)
        return self.host.stat(location)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        fault, rng = self._begin("list", prefix)
        objects = self.host.list(prefix, after=after)
        if fault not in (Fault.BREAK, Fault.SHORT):
            yield from objects
            return
        left = rng.randrange(5)
        for info in objects:
            if not left:
                break
            left -= 1
            yield info
        if fault is Fault.BREAK:
            self._fail("the connection broke in the middle", "list", prefix)

    def delete(self, locations: Iterable[str]) -> None:
        wanted = list(locations)
        about = wanted[0] if len(wanted) == 1 else ""
        fault, _ = self._begin("delete", about)
        self.host.delete(wanted)
        if fault is Fault.LOST:
            self._fail("the acknowledgement was lost", "delete", about)

    def check(self) -> None:
        self._begin("check", "")
        self.host.check()

    def _begin(self, operation: str, location: str) -> tuple[Fault | None, random.Random]:
        """Count a call, and do what its fault does before it."""
        with self._lock:
            call = self._calls.get(operation, 0)
            self._calls[operation] = call + 1
            fault = self._plan.fault(operation, call)
            if fault is not None:
                self.injected.append(Injected(operation, call, fault, location))
        if fault is Fault.SLOW:
            self._sleep(self._delay)
        if fault is Fault.FAIL:
            self._fail("the connection was refused", operation, location)
        return fault, self._plan.rng(operation, call)

    def _fail(self, message: str, operation: str, location: str) -> NoReturn:
        raise HostUnavailable(
            f"{message} (a fault of the plan)",
            host=self.name,
            operation=operation,
            location=location,
        )
