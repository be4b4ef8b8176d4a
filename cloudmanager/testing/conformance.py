"""The promises of the host contract, each a test."""

from __future__ import annotations

from cloudmanager.testing.listing import Listing
from cloudmanager.testing.manners import Manners, Sharing, Unreachable
from cloudmanager.testing.reading import Reading
from cloudmanager.testing.storing import Deleting, Storing

__all__ = ["HostConformance"]


class HostConformance(Storing, Deleting, Reading, Listing, Manners, Unreachable, Sharing):
    """Every promise of `cloudmanager.hosts.Host` as a test. Subclass it, and pytest runs them::

        class TestMyHost(HostConformance):
            capabilities = MyHost.capabilities

            @pytest.fixture
            def host(self, my_server):
                host = MyHost("mine", my_server.new_place())
                yield host
                host.close()

    Needed is a host that is fresh and empty for every test: `open_host`, or the fixture `host`
    where other fixtures are needed to make one. The rest says what kind of host it is. Tests
    of what a host does not declare are taken out, and others are put in, which see that it is
    `Unsupported`.

    Attributes
    ----------
    capabilities:
        What the host declares. Default: all but checksums and signed links.
    keys:
        Keys that must be kept as they are. Default: the pool's own, spaces, letters of many
        alphabets, ``%``, ``+``, ``~`` and more.
    unordered:
        Keys that are listed in the order of their bytes; with those that others sort otherwise.
        Take out only what the service itself cannot list in order.
    large:
        Bytes of a large object; above what the host sends in one block. Default: 3 MiB.
    many:
        Objects in a long listing; above what the host lists in one answer. Default: 40.
    patience:
        Seconds that a call may take before a test gives up. Default: 60.
    secrets:
        Texts that were given to the host and must not show anywhere. Default: none.
    keeps_filename:
        `stat` tells the original name. Default: False, it may.
    chooses_location:
        The location is known only after `put`, as with file lockers. Default: False.

    Hooks that may be left out, with the tests that need them: `open_unreachable` (a host whose
    server is not there), `raw_read` and `raw_write` (past the host, all the way to what stores the
    bytes). `arrange` is needed for a host without `put`; `digest` for kinds of checksums that
    hashlib does not know.
    """
