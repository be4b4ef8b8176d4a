"""Real servers for every test that asks for one.

Each is started once per test process, at its first use, and stopped at the end, also when
the test process is killed. A server that is not installed skips the test, with its name and
how to install it; where CI or CLOUDMANAGER_TEST_REQUIRE_SERVERS is set, it fails it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from servers.azurite import Azurite
from servers.moto import MotoS3
from servers.postgres import Postgres
from servers.proxy import FaultProxy
from servers.rclone import RcloneS3
from servers.required import pytest_sessionfinish, running
from servers.strict_s3 import StrictS3
from servers.webdav import RcloneWebdav, WsgiDav

__all__ = ["pytest_sessionfinish"]  # pytest finds its hooks here

# What the developer's own shell, account and configuration say must not decide a test, nor a
# test touch them. Before any test, since children of the tests inherit it.
for _name in list(os.environ):
    if _name.startswith(("AWS_", "AZURE_STORAGE_", "CLOUDMANAGER_")) and not _name.startswith(
        "CLOUDMANAGER_TEST_"
    ):
        del os.environ[_name]
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
# The servers are all here: a proxy of the network is not the way to them.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get(_name)]))


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[MotoS3]:
    """An S3 server with the semantics of S3; it takes wrong checksums."""
    yield from running(MotoS3)


@pytest.fixture(scope="session")
def rclone_s3() -> Iterator[RcloneS3]:
    """An S3 server without conditional requests; its objects are files on disk."""
    yield from running(RcloneS3)


@pytest.fixture(scope="session")
def strict_s3() -> Iterator[StrictS3]:
    """An S3 server of ours that verifies every signature, hash, checksum and part."""
    yield from running(StrictS3)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """An Azure Blob server."""
    yield from running(Azurite)


@pytest.fixture(scope="session")
def rclone_webdav() -> Iterator[RcloneWebdav]:
    """A WebDAV server that tells SHA-256 checksums; its objects are files on disk."""
    yield from running(RcloneWebdav)


@pytest.fixture(scope="session")
def wsgidav() -> Iterator[WsgiDav]:
    """A WebDAV server that tells no checksums; its objects are files on disk."""
    yield from running(WsgiDav)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; every test makes its own databases."""
    yield from running(Postgres)


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str], FaultProxy]]:
    """Makes proxies in front of an endpoint, which inject faults; they end with the test."""
    made: list[FaultProxy] = []

    def make(upstream_endpoint: str) -> FaultProxy:
        made.append(FaultProxy(upstream_endpoint))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()
