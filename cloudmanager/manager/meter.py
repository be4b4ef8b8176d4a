"""The traffic of this process on its way into the catalog's meter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cloudmanager.catalog import Catalog
from cloudmanager.errors import CatalogError

__all__ = ["Meter"]

log = logging.getLogger(__name__)


class Meter:
    """Collects payload bytes and writes them about once a second, and when it is closed.

    A transaction for each of thousands of small downloads would cost more than they do; a
    killed process loses at most its last second of the statistics.
    """

    def __init__(
        self, catalog: Catalog, *, every: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalog = catalog
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        self._incoming = 0
        self._outgoing = 0
        self._flushed = clock()

    def add(self, *, incoming: int = 0, outgoing: int = 0) -> None:
        """Count payload bytes from (`incoming`) and to (`outgoing`) hosts."""
        with self._lock:
            self._incoming += incoming
            self._outgoing += outgoing
            due = self._clock() - self._flushed >= self._every
        if due:
            self.flush_if_possible()

    def flush_if_possible(self) -> None:
        """`flush`, but what the catalog cannot take now waits: bytes matter more than their count.

        A catalog that is locked for writing must not fail the download of a file that it
        told us where to find.
        """
        try:
            self.flush()
        except CatalogError as exc:
            log.info("the meter is written later: %s", exc)

    def flush(self) -> None:
        """Write what was collected.

        Raises
        ------
        CatalogError
            When it cannot be written; it stays collected.
        """
        with self._lock:
            incoming, outgoing = self._incoming, self._outgoing
            self._incoming = self._outgoing = 0
            self._flushed = self._clock()
        if not (incoming or outgoing):
            return
        try:
            self._catalog.meter_add(incoming, outgoing)
        except BaseException:
            with self._lock:
                self._incoming += incoming
                self._outgoing += outgoing
                # The attempt may have waited for long: the next is due a while after its end.
                self._flushed = self._clock()
            raise
