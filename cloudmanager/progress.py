"""How long work tells whoever waits for it, and how it is told to stop."""

from __future__ import annotations

import threading
from typing import Protocol

__all__ = ["SILENT", "Cancelled", "Progress", "Ticket"]


class Cancelled(Exception):
    """The work was told to stop; what was acknowledged before stays."""


class Progress(Protocol):
    """Told of what is to be done and of what is done. Called from many threads."""

    def expect(self, files: int, size: int) -> None:
        """So many more files and payload bytes are to be moved."""

    def moved(self, size: int) -> None:
        """So many payload bytes went to or came from a host."""

    def finished(self, files: int) -> None:
        """So many files are done, well or badly."""


class _Silent:
    def expect(self, files: int, size: int) -> None: ...

    def moved(self, size: int) -> None: ...

    def finished(self, files: int) -> None: ...


SILENT: Progress = _Silent()


class Ticket:
    """Counts the bytes of one piece of work, passes them on, and ends it when asked to."""

    def __init__(self, cancel: threading.Event, progress: Progress = SILENT) -> None:
        self._cancel = cancel
        self._progress = progress
        self._lock = threading.Lock()
        self.moved = 0

    def __call__(self, size: int) -> None:
        if self._cancel.is_set():
            raise Cancelled("stopped")
        with self._lock:
            self.moved += size
        self._progress.moved(size)
