"""What upload and download say of each file, and what becomes of it in the exit code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloudmanager.cli.app import Session
from cloudmanager.cli.codes import FAILED, OK, code_for, combine
from cloudmanager.cli.display import (
    error_line,
    flush_out,
    names_for_people,
    out,
    out_bytes,
    out_json,
    print_traceback,
    say,
    say_what_was_held,
)
from cloudmanager.cli.manifest import line_for
from cloudmanager.errors import ConfigurationError

if TYPE_CHECKING:
    from cloudmanager.manager import UploadResult

__all__ = ["DownloadReport", "UploadReport"]


class UploadReport:
    """Prints results as they come and remembers what the exit code needs."""

    def __init__(self, session: Session, *, keep: bool) -> None:
        self._session = session
        self._keep = keep
        self.entries: list[tuple[str, str]] = []
        self._good = 0
        self._bad: set[int] = set()
        self._waiting: dict[str, int] = {}
        self._stranded: dict[tuple[str, ...], int] = {}

    def add(self, result: UploadResult) -> None:
        if not result.hash:
            self.failed(result.path, result.error or ConfigurationError("nothing took it"))
            return
        if result.error is not None:
            # Safe in the cache, but on no host at all: the reader must learn why. Once for
            # the same hosts: what they say later is that they are being left alone.
            if result.waiting not in self._stranded:
                self._stranded[result.waiting] = code_for(result.error)
                error_line(result.error)
            self._bad.add(self._stranded[result.waiting])
        else:
            self._good += 1
        for host in result.waiting:
            self._waiting[host] = self._waiting.get(host, 0) + 1
        if self._keep:
            self.entries.append((result.hash, result.path))
        if self._session.json:
            out_json(
                {
                    "path": result.path,
                    "hash": result.hash,
                    "size": result.size,
                    "new": result.new,
                    "hosts": result.hosts,
                    "waiting": result.waiting,
                }
            )
        else:
            _out_line(result.hash, result.path)

    def failed(self, path: str, exc: BaseException) -> None:
        if self._session.debug:
            print_traceback(exc)
        self._bad.add(code_for(exc))
        if self._session.json:
            out_json({"path": path, "hash": None, "error": names_for_people(exc)})
        text = names_for_people(exc)
        # Most errors of the operating system name the file themselves.
        say(f"upload {text}" if text.startswith(repr(path)) else f"upload {path!r}: {text}")

    def finish(self) -> int:
        flush_out()
        if self._waiting:
            say_what_was_held()
        for host, count in self._waiting.items():
            say(
                f"{count} {'copies wait' if count > 1 else 'copy waits'} for host {host}; "
                "`cloudmanager sync` delivers when it is back"
            )
        if not self._bad:
            return OK
        return FAILED if self._good else combine(self._bad)


class DownloadReport:
    """Prints paths as they come and remembers what the exit code needs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._good = 0
        self._bad: set[int] = set()

    def good(self, sha256: str, path: str | os.PathLike[str] | None) -> None:
        self._good += 1
        if self._session.json:
            out_json({"hash": sha256, "path": os.fspath(path or "")})
        else:
            out(os.fspath(path or ""))

    def failed(self, sha256: str, exc: BaseException) -> None:
        if self._session.debug:
            print_traceback(exc)
        self._bad.add(code_for(exc))
        if self._session.json:
            out_json({"hash": sha256, "path": None, "error": names_for_people(exc)})
        text = names_for_people(exc)
        say(text if sha256 in text else f"download {sha256}: {text}")

    def finish(self) -> int:
        flush_out()
        if not self._bad:
            return OK
        return FAILED if self._good else combine(self._bad)


def _out_line(sha256: str, path: str) -> None:
    out_bytes(line_for(sha256, path))
