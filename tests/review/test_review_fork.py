"""What a child that was forked from a working pool can do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from manager.world import World, sha

from cloudmanager.cache import bulk
from cloudmanager.hosts import open_host
from cloudmanager.manager import staging
from servers.azurite import Azurite
from servers.moto import MotoS3


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def in_a_child(work: Callable[[], int], *, within: float) -> int | None:
    """What `work` returned in a forked child; None when it did not end within seconds."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def test_a_child_forked_while_another_thread_was_reading_can_upload_and_download(
    world: World,
) -> None:
    host = world.folder("a")
    cm = world.pool([host])
    kept = cm.upload(world.file(b"kept"))
    assert kept == sha(b"kept")
    cm.cache.clear()
    new = world.file(b"new")
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with staging.one_at_a_time, bulk._one_batch_at_a_time:
            taken.set()
            done.wait(60)

    def work() -> int:
        with world.pool([world.folder("a")]) as mine:
            stored = mine.upload(new) == sha(b"new")
            [(_, path)] = mine.fetch_many([(kept, None)])
            return 0 if stored and isinstance(path, Path) else 1

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert taken.wait(10)
        assert in_a_child(work, within=20) == 0
    finally:
        done.set()
        thread.join()
        cm.close()


def test_a_child_that_opens_its_own_s3_host_stores_and_reads_with_it(
    world: World, moto_s3: MotoS3
) -> None:
    bucket = moto_s3.make_bucket()
    options = {
        "endpoint_url": moto_s3.endpoint,
        "access_key_id": moto_s3.access_key,
        "secret_access_key": moto_s3.secret_key,
    }
    _stores_in_parent_and_child(world, f"s3://{bucket}", options)


def test_a_child_that_opens_its_own_azure_host_stores_and_reads_with_it(
    world: World, azurite: Azurite
) -> None:
    container = azurite.make_container()
    options = {"connection_string": azurite.connection_string}
    _stores_in_parent_and_child(world, f"azure://{container}", options)


def _stores_in_parent_and_child(world: World, url: str, options: dict[str, str]) -> None:
    def store(data: bytes) -> bool:
        host = open_host(url, options, name="cloud")
        with world.pool([host], storage=world.root / sha(data)) as cm:
            stored = cm.upload(world.file(data))
            cm.cache.clear()
            path = cm.download(sha(data))
            return stored == sha(data) and isinstance(path, Path) and path.read_bytes() == data

    assert store(b"parent")
    assert in_a_child(lambda: 0 if store(b"child") else 1, within=30) == 0
