"""The host keeps every promise: the tests are those of cloudmanager's conformance kit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudmanager.hosts import Host, open_host
from cloudmanager.testing import HostConformance


class TestSqliteHost(HostConformance):
    keeps_filename = True
    many = 600  # more than it lists at once

    @pytest.fixture
    def host(self, tmp_path: Path) -> Iterator[Host]:
        host = open_host(f"sqlite://{tmp_path}/archive.db", {"create": True}, name="archive")
        yield host
        host.close()

    def open_unreachable(self) -> Host:
        return open_host("sqlite:///nowhere/archive.db", name="unmounted")
