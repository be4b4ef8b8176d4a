"""One retry policy for the whole house.

A `Backoff` says how long to wait, a `Policy` when to stop, a `Retrier` puts both to work.
Clock, sleep and randomness are passed in, so that time is testable without sleeping.
Only errors that say ``retryable`` are tried again: what is not known to be transient
fails at once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

__all__ = ["DURABLE", "INTERACTIVE", "Backoff", "Policy", "Retrier"]

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `initial` seconds, times `factor` for each further try.

    At most `maximum` seconds; then up to `jitter` of the delay is added at random, so
    that many clients do not come back together.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 15.0
    jitter: float = 0.25

    def delay(self, retry: int, rng: Callable[[], float] = random.random) -> float:
        """Seconds to wait before the retry number `retry` (the first is 0)."""
        exponent = min(retry, 60)
        base = min(self.initial * self.factor**exponent, self.maximum)
        return base * (1.0 + self.jitter * rng())


@dataclass(frozen=True, slots=True)
class Policy:
    """When to stop.

    `max_retries` after the first try; and no new try that could end later than
    `give_up_after` seconds after the last progress, when one try may last `attempt`
    seconds (the hosts' time limit).
    """

    backoff: Backoff = field(default_factory=Backoff)
    max_retries: int = 5
    give_up_after: float = 60.0
    attempt: float = 20.0


INTERACTIVE = Policy()
"""Library and command line: a host gets at most 60 s without progress."""

DURABLE = Policy(
    Backoff(initial=30.0, maximum=float("inf")), max_retries=10, give_up_after=float("inf")
)
"""The movers' long form: 30 s doubling, ten retries. They store the count and the due time."""


class Retrier:
    """Runs calls under a `Policy`. Thread-safe; keeps no state between calls.

    `sleep` is called with seconds and may return True to end the waiting and give up, as
    ``threading.Event.wait`` does.
    """

    def __init__(
        self,
        policy: Policy = INTERACTIVE,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._stop = threading.Event()
        self._sleep = sleep if sleep is not None else self._stop.wait
        self._rng = rng

    def stop(self) -> None:
        """End every wait now and start no other: the program is being closed."""
        self._stop.set()

    def call(self, function: Callable[[], T], *, progress: Callable[[], float] | None = None) -> T:
        """Call `function` until it works or the policy says stop; then the last error is raised.

        `progress()` gives the time, by the same clock, of the last progress of the work, so
        that a long transfer which moves is not given up.
        """
        policy = self.policy
        last_progress = self._clock()
        retry = 0
        while True:
            try:
                return function()
            except Exception as exc:
                if not getattr(exc, "retryable", False) or self._stop.is_set():
                    raise
                if progress is not None and progress() > last_progress:
                    last_progress = progress()
                    retry = 0
                delay = policy.backoff.delay(retry, self._rng)
                waited = self._clock() - last_progress
                if (
                    retry >= policy.max_retries
                    or waited + delay + policy.attempt > policy.give_up_after
                ):
                    raise
                retry += 1
                log.info("%s; trying again in %.1f s (%d)", exc, delay, retry)
                if self._sleep(delay) is True:
                    raise
