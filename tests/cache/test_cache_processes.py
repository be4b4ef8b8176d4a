"""Several processes in one cache directory, and processes that are killed in it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_worker import data_of

from cloudmanager.cache import Cache

WORKER = str(Path(__file__).with_name("cache_worker.py"))
MIB = 1024 * 1024


def start(
    work: str,
    directory: Path,
    capacity: int,
    *,
    seed: int = 0,
    threads: int = 1,
    seconds: float = 60,
    files: int = 1,
    size: int = 1000,
) -> subprocess.Popen[str]:
    numbers = (capacity, seed, threads, seconds, files, size)
    return subprocess.Popen(
        [sys.executable, WORKER, work, str(directory), *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def content_bytes(directory: Path) -> int:
    total = 0
    for root in ("objects", "tmp"):
        for folder, _, names in os.walk(directory / root):
            total += sum(os.stat(os.path.join(folder, name)).st_size for name in names)
    return total


def frozen_bytes(workers: list[subprocess.Popen[str]], directory: Path) -> int:
    """The bytes of all content files at one instant: nobody runs while they are added up."""
    running = []
    try:
        for worker in workers:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGSTOP)
                running.append(worker)
        for worker in running:
            os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return content_bytes(directory)
    finally:
        for worker in running:
            os.kill(worker.pid, signal.SIGCONT)


def hammer(
    directory: Path,
    *,
    capacity: int,
    processes: int,
    threads: int,
    seconds: float,
    files: int,
    size: int,
) -> None:
    Cache(directory, capacity).close()
    workers = [
        start(
            "hammer",
            directory,
            capacity,
            seed=seed,
            threads=threads,
            seconds=seconds,
            files=files,
            size=size,
        )
        for seed in range(processes)
    ]
    most = looks = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        most = max(most, frozen_bytes(workers, directory))
        looks += 1
        time.sleep(0.01)
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes
    assert [output.splitlines()[-1] for output in outputs] == ["wrong 0"] * processes
    done = [int(line.split()[1]) for o in outputs for line in o.splitlines() if "done" in line]
    assert len(done) == processes * threads
    assert min(done) > 0
    assert looks > 5
    assert most <= capacity
    assert most > capacity * 0.8  # it was full: the bound was put to the test
    with Cache(directory, capacity) as cache:
        assert list(cache.check()) == []
        assert cache.used_space() == content_bytes(directory)


def test_processes_and_threads_never_exceed_the_capacity_nor_read_a_wrong_byte(
    tmp_path: Path,
) -> None:
    hammer(tmp_path, capacity=2 * MIB, processes=3, threads=4, seconds=3, files=400, size=40_000)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_minute_of_32_threads_never_exceeds_the_capacity(tmp_path: Path) -> None:
    seconds = float(os.environ.get("CLOUDMANAGER_TEST_SECONDS", "60"))
    hammer(
        tmp_path,
        capacity=50 * MIB,
        processes=4,
        threads=8,
        seconds=seconds,
        files=400,
        size=MIB,
    )


def kill_at_random(directory: Path, *, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    capacity = MIB
    required: set[str] = set()
    for round_number in range(kills):
        workers = [
            start(
                "hammer",
                directory,
                capacity,
                seed=seed + 10 * round_number + i,
                threads=3,
                seconds=60,
                files=300,
                size=20_000,
            )
            for i in range(2)
        ]
        first = workers[0].stdout
        assert first is not None
        began = first.readline()
        time.sleep(chance.uniform(0.0, 0.25))
        for worker in workers:
            worker.kill()
        # Who settled what the other owed cannot be told from two pipes: what either
        # announced to settle is not required any more.
        settled: set[str] = set()
        lines = [began]
        for worker in workers:
            # Not communicate(): it forgets what readline() had buffered.
            assert worker.stdout is not None
            lines += worker.stdout.read().splitlines(keepends=True)
            worker.communicate()
        for line in lines:
            if line.startswith("owed ") and line.endswith("\n"):
                required.add(line.split()[1])
            elif line.startswith("settling ") and line.endswith("\n"):
                settled.add(line.split()[1])
        required -= settled
        with Cache(directory, capacity) as cache:
            assert os.listdir(directory / "tmp") == []
            assert len(os.listdir(directory / "live")) <= 1
            assert cache.used_space() == content_bytes(directory) <= capacity
            assert required <= set(cache.owed())
            assert list(cache.check()) == []
            for digest in required:
                path = cache.path(digest)
                assert path is not None
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_killing_at_random_instants_loses_nothing_owed_and_leaves_nothing_stray(
    tmp_path: Path,
) -> None:
    kill_at_random(tmp_path, kills=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_fifty_kills_lose_nothing_owed_and_leave_nothing_stray(tmp_path: Path) -> None:
    kill_at_random(tmp_path, kills=50, seed=2)


def test_processes_and_threads_that_miss_the_same_hashes_fill_each_once(tmp_path: Path) -> None:
    files = 20
    workers = [start("fetch", tmp_path, MIB, threads=4, files=files, size=1000) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    lines = [line for output in outputs for line in output.splitlines()]
    assert sorted(lines) == sorted(f"fill {number}" for number in range(files))


def test_the_fetch_of_a_process_that_dies_is_taken_over(tmp_path: Path) -> None:
    data = data_of(0, 1000)
    digest = hashlib.sha256(data).hexdigest()
    worker = start("stall", tmp_path, 10_000)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "stalled\n"
    filled = []
    with Cache(tmp_path, 10_000) as cache:
        assert cache.used_space() == len(data)
        waiter = start("fetch", tmp_path, 10_000)
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        assert waiter.stdin is not None
        waiter.stdin.write("go\n")
        waiter.stdin.flush()
        worker.kill()
        worker.communicate()

        path = cache.fetch(
            digest, len(data), lambda r: filled.append(r.path.write_bytes(data)) or None
        )
        assert path.read_bytes() == data
        rest, _ = waiter.communicate(timeout=30)
    assert len(rest.splitlines()) + len(filled) == 1
    with Cache(tmp_path, 10_000) as cache:
        assert os.listdir(tmp_path / "tmp") == []
        assert cache.used_space() == len(data)


def test_what_a_dead_process_reserved_is_freed_when_the_space_is_needed(tmp_path: Path) -> None:
    with Cache(tmp_path, 1_000) as cache:
        worker = start("stall", tmp_path, 1_000)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "stalled\n"
        worker.kill()
        worker.communicate()
        assert cache.used_space() > 0
        with cache.reserve(1_000):
            assert os.listdir(tmp_path / "tmp") == []
            assert cache.used_space() == 1_000


def test_processes_that_start_at_once_on_an_empty_directory_all_work(tmp_path: Path) -> None:
    workers = [
        start("hammer", tmp_path / "new" / "cache", MIB, seed=i, seconds=0.2, files=20)
        for i in range(6)
    ]
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 6
    assert [output.splitlines()[-1] for output in outputs] == ["wrong 0"] * 6
