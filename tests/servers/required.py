"""Whether a server may be missing and a test be skipped, and what happens when it may not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from servers.process import ServerMissing

__all__ = ["pytest_sessionfinish", "running"]


class Stoppable(Protocol):
    def stop(self) -> None: ...


_Server = TypeVar("_Server", bound=Stoppable)


def _everything_is_required() -> bool:
    names = ("CI", "CLOUDMANAGER_TEST_REQUIRE_SERVERS")
    return any(os.environ.get(name, "").lower() not in ("", "0", "false") for name in names)


def running(start: Callable[[], _Server]) -> Iterator[_Server]:
    """For a fixture: a server while it is needed. Without its program the test is skipped."""
    try:
        server = start()
    except ServerMissing as exc:
        if _everything_is_required():
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))
    yield server
    server.stop()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where everything is required, a test that was skipped for any reason is a failure."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not _everything_is_required() or exitstatus != pytest.ExitCode.OK:
        return
    skipped = len(reporter.stats.get("skipped", []))
    if skipped:
        reporter.write_line("")
        reporter.write_line(f"{skipped} skipped, and here nothing may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
