"""For who writes a host: the promises of the contract as tests, and hosts that go wrong.

::

    from cloudmanager.testing import HostConformance

    class TestMyHost(HostConformance):
        def open_host(self):
            return MyHost("mine", ...)  # fresh and empty

- `HostConformance`: a class for pytest, with a test for every promise of `cloudmanager.hosts.Host`.
- `FaultyHost`: a host around a host that fails as a `FaultPlan` says, the same for the same seed.
- `MemoryHost`: a right host in memory.

Needs pytest (``pip install 'cloudmanager[testing]'``); nothing else of the package imports this.
"""

from __future__ import annotations

import pytest

# Before they are imported: an assertion that fails is to show what it compared.
pytest.register_assert_rewrite(
    "cloudmanager.testing.arrangement",
    "cloudmanager.testing.listing",
    "cloudmanager.testing.manners",
    "cloudmanager.testing.reading",
    "cloudmanager.testing.storing",
)

from cloudmanager.testing.conformance import HostConformance  # noqa: E402
from cloudmanager.testing.faulty import Fault, FaultPlan, FaultyHost  # noqa: E402
from cloudmanager.testing.memory import MemoryHost  # noqa: E402

__all__ = ["Fault", "FaultPlan", "FaultyHost", "HostConformance", "MemoryHost"]
