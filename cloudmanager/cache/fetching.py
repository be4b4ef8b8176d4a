"""One fetch for each hash, whatever number of threads and processes miss it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

__all__ = ["SharedFetches"]


class SharedFetches:
    """Lets the first thread that misses a key fetch, and the others wait for its result."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._running: dict[str, Future[Path | None]] = {}

    def run(self, key: str, fetch: Callable[[], Path]) -> Path | None:
        """The result of `fetch`, of this thread's or of the one that was first.

        What `fetch` raises is raised in every thread that waits. None when the
        thread that was first was interrupted (KeyboardInterrupt, SystemExit): that is its
        own affair, and the caller tries again.
        """
        with self._gate:
            running = self._running.get(key)
            if running is None:
                self._running[key] = Future()
        if running is not None:
            return running.result()
        outcome: Path | Exception | None = None
        try:
            outcome = fetch()
            return outcome
        except Exception as error:
            outcome = error
            raise
        finally:
            self.end(key, outcome)

    def begin(self, key: str) -> bool:
        """Become the one that fetches, until `end`; False when another thread is it."""
        with self._gate:
            if key in self._running:
                return False
            self._running[key] = Future()
            return True

    def end(self, key: str, outcome: Path | Exception | None) -> None:
        """Tell those that wait: the path, what went wrong, or None to have them try again."""
        with self._gate:
            mine = self._running.pop(key)
        if isinstance(outcome, Exception):
            mine.set_exception(outcome)
        else:
            mine.set_result(outcome)
