"""The retry policy, with a clock that only moves when somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cloudmanager.errors import AccessDenied, HostUnavailable
from cloudmanager.retry import DURABLE, Backoff, Policy, Retrier


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def retrier(time: Time, policy: Policy, rng: Callable[[], float] = lambda: 0.0) -> Retrier:
    return Retrier(policy, clock=time.clock, sleep=time.sleep, rng=rng)


def transient() -> HostUnavailable:
    return HostUnavailable("503", host="h", operation="put")


def test_delays_double_up_to_the_maximum_and_get_jitter_on_top() -> None:
    backoff = Backoff(initial=30, factor=2, maximum=100, jitter=0.5)
    assert [backoff.delay(n, lambda: 0.0) for n in range(4)] == [30, 60, 100, 100]
    assert backoff.delay(0, lambda: 1.0) == 45
    assert backoff.delay(10**6, lambda: 0.0) == 100


def test_the_durable_form_waits_30_s_doubling_for_ten_retries() -> None:
    waits = [DURABLE.backoff.delay(n, lambda: 0.0) for n in range(DURABLE.max_retries)]
    assert waits[:3] == [30, 60, 120]
    assert len(waits) == 10
    assert waits[-1] == 30 * 2**9


def test_a_transient_failure_is_repeated_until_it_works() -> None:
    time, answers = Time(), [transient(), transient(), "done"]

    def work() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert retrier(time, Policy(Backoff(initial=1))).call(work) == "done"
    assert time.slept == [1, 2]


def test_what_is_not_known_to_be_transient_fails_at_once() -> None:
    time, calls = Time(), []

    def work() -> None:
        calls.append(1)
        raise AccessDenied("403", host="h", operation="put")

    with pytest.raises(AccessDenied):
        retrier(time, Policy()).call(work)
    assert calls == [1]
    assert time.slept == []


def test_an_unknown_exception_is_not_repeated() -> None:
    time, calls = Time(), []

    def work() -> None:
        calls.append(1)
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError):
        retrier(time, Policy()).call(work)
    assert calls == [1]


def test_it_gives_up_after_the_retries_are_used_up() -> None:
    time, calls = Time(), []

    def work() -> None:
        calls.append(1)
        raise transient()

    with pytest.raises(HostUnavailable):
        retrier(time, Policy(Backoff(initial=0.1), max_retries=3)).call(work)
    assert len(calls) == 4


def test_no_try_begins_that_could_end_after_the_limit() -> None:
    time = Time()

    def work() -> None:
        time.now += 20  # every try runs into its time limit
        raise transient()

    policy = Policy(Backoff(initial=1), max_retries=100, give_up_after=60, attempt=20)
    with pytest.raises(HostUnavailable):
        retrier(time, policy).call(work)
    assert time.now <= 60


def test_progress_starts_the_count_anew() -> None:
    time = Time()
    progress = [0.0]
    calls = []

    def work() -> str:
        calls.append(1)
        time.now += 20
        if len(calls) == 12:
            return "done"
        progress[0] = time.now
        raise transient()

    policy = Policy(Backoff(initial=1), max_retries=2, give_up_after=60, attempt=20)
    assert retrier(time, policy).call(work, progress=lambda: progress[0]) == "done"
    assert set(time.slept) == {1}


def test_a_stopped_retrier_neither_waits_nor_repeats() -> None:
    calls = []
    subject = Retrier(Policy(Backoff(initial=1000)))
    subject.stop()

    def work() -> None:
        calls.append(1)
        raise transient()

    with pytest.raises(HostUnavailable):
        subject.call(work)
    assert calls == [1]
