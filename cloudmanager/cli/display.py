"""What the commands print: results on stdout, all else on stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloudmanager.errors import CloudManagerError, HostError, NoGoodCopy
from cloudmanager.progress import SILENT, Progress

__all__ = [
    "error_line",
    "finish_without_reader",
    "flush_out",
    "names_for_people",
    "out",
    "out_bytes",
    "out_json",
    "print_traceback",
    "progress_bar",
    "safe_text",
    "say",
    "say_what_was_held",
    "silence_stdout",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CREDENTIALS = re.compile(
    r"((?:sig|signature|password|secret|token|accountkey|sharedaccesssignature|"
    r"x-amz-signature|x-amz-security-token|x-amz-credential)=)[^&\s;'\"]+",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(://[^/\s:@]+):[^/\s@]+@")


def safe_text(text: str) -> str:
    """Text for a terminal: control characters are escaped, unprintable bytes shown as ``\\xff``."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


def hide_secrets(text: str) -> str:
    """Blank out what looks like a credential, wherever a message got it from."""
    return _USERINFO.sub(r"\1:***@", _CREDENTIALS.sub(r"\1***", text))


def names_for_people(exc: BaseException) -> str:
    """An error as one line without secrets."""
    if isinstance(exc, OSError) and not isinstance(exc, CloudManagerError):
        about = f"{os.fsdecode(exc.filename)!r}: " if isinstance(exc.filename, str | bytes) else ""
        text = f"{about}{exc.strerror or exc}"
    else:
        text = str(exc) or type(exc).__name__
    return hide_secrets(safe_text(text))


def say(message: str) -> None:
    """One line on stderr."""
    line = f"cloudmanager: {hide_secrets(safe_text(message))}\n"
    if _held is not None:
        _held.drop_what_is_told_by(line)
    (_live_console or _to_stderr)(line)


def error_line(exc: BaseException, what: str = "") -> None:
    """One line on stderr for an error."""
    prefix = f"{what}: " if what else ""
    if isinstance(exc, NoGoodCopy):
        prefix = ""
    say(f"{prefix}{names_for_people(exc)}")


def print_traceback(exc: BaseException) -> None:
    """The traceback of an error on stderr, for --debug. Without secrets, as everything here."""
    for line in "".join(traceback.format_exception(exc)).splitlines():
        _to_stderr(f"{hide_secrets(line)}\n")


def out(line: str) -> None:
    """One line of results on stdout. Names that are not UTF-8 come out as their own bytes."""
    out_bytes(line.encode("utf-8", "surrogateescape"))


def out_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout. Bytes that are not UTF-8 become U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    out_bytes(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode())


def out_bytes(line: bytes) -> None:
    """One line of results on stdout, as it is.

    Into a pipe or a file those of a tenth of a second go together: a system call for each of
    thousands of small files is a good part of the time that they take.
    """
    global _flushing
    try:
        sys.stdout.buffer.write(line + b"\n")
        if sys.stdout.isatty():
            sys.stdout.flush()
        elif not _flushing:
            _flushing = True
            timer = threading.Timer(_LINGER, _flush_lines)
            timer.daemon = True
            timer.start()
    except BrokenPipeError:
        if not _goes_on_without_reader:
            raise
        silence_stdout()


_LINGER = 0.1
"""Seconds that a line may wait for others."""

_flushing = False


def _flush_lines() -> None:
    global _flushing
    _flushing = False
    with contextlib.suppress(OSError, ValueError):  # the next line, or the end, meets it too
        sys.stdout.buffer.flush()


def flush_out() -> None:
    """Show the results so far before what is said about them."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        if not _goes_on_without_reader:
            raise
        silence_stdout()


def finish_without_reader() -> None:
    """From now on the work goes on when the reader of stdout has gone.

    For commands that change something: ``upload -r tree | head -1`` stores the whole tree.
    """
    global _goes_on_without_reader
    _goes_on_without_reader = True


def silence_stdout() -> None:
    """Send what is still written to stdout nowhere, so that nothing complains at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


_goes_on_without_reader = False


def _to_stderr(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is left to be told
        sys.stderr.write(text)
        sys.stderr.flush()


class LineHandler(logging.Handler):
    """Log records as single lines on stderr, above a running progress bar.

    With `hold`, a warning about a host is held back for a moment: the error that comes
    of it mostly says the same, and one line is clearer than three.
    """

    def __init__(self, *, hold: bool = True) -> None:
        super().__init__()
        global _held
        _held = _Held() if hold else None

    def emit(self, record: logging.LogRecord) -> None:
        text = hide_secrets(safe_text(record.getMessage()))
        line = f"cloudmanager: {text}\n"
        first = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if _held is not None and isinstance(first, HostError):
            _held.add(names_for_people(first), line)
        else:
            (_live_console or _to_stderr)(line)


class _Held:
    """Warnings that wait to be told, or to be dropped for an error that tells the same."""

    def __init__(self, *, longest: float = 3.0) -> None:
        self._longest = longest
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[float, str]] = {}
        self._told: set[str] = set()

    def add(self, reason: str, line: str) -> None:
        with self._lock:
            if reason not in self._told:
                begun = self._lines.get(reason, (time.monotonic(), ""))[0]
                self._lines[reason] = (begun, line)
        self.tell(older_than=self._longest)

    def drop_what_is_told_by(self, line: str) -> None:
        with self._lock:
            for reason in [reason for reason in self._lines if reason in line]:
                del self._lines[reason]
                self._told.add(reason)

    def tell(self, *, older_than: float = 0.0) -> None:
        limit = time.monotonic() - older_than
        with self._lock:
            due = [reason for reason, (begun, _) in self._lines.items() if begun <= limit]
            lines = [self._lines.pop(reason)[1] for reason in due]
            if len(self._told) < 1000:
                self._told.update(due)
        for line in lines:
            (_live_console or _to_stderr)(line)


def say_what_was_held() -> None:
    """Tell the warnings that no error has told by now."""
    if _held is not None:
        _held.tell()


_live_console: Callable[[str], None] | None = None
_held: _Held | None = None


class _Bar:
    """A rich progress bar that shows itself when the work has taken a second."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._expected = [0, 0]
        self._done = [0, 0]

    def expect(self, files: int, size: int) -> None:
        with self._lock:
            self._expected[0] += files
            self._expected[1] += size
        self._update()

    def moved(self, size: int) -> None:
        with self._lock:
            self._done[1] += size
        self._update()

    def finished(self, files: int) -> None:
        with self._lock:
            self._done[0] += files
        self._update()

    def _update(self) -> None:
        if time.monotonic() - self._begun < 1.0:
            return
        with self._lock:
            if self._bar is None:
                self._start()
            self._bar.update(
                self._task,
                total=max(self._expected[1], 1),
                completed=min(self._done[1], self._expected[1]),
                files=f"{self._done[0]}/{self._expected[0]} files",
            )

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        global _live_console
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[files]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(self._title, total=None, files="")
        self._bar.start()
        _live_console = lambda line: console.print(line, end="", markup=False, highlight=False)  # noqa: E731

    def stop(self) -> None:
        global _live_console
        with self._lock:
            _live_console = None
            if self._bar is not None:
                self._bar.stop()


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar on stderr, when that is a terminal; else silence."""
    if not sys.stderr.isatty():
        yield SILENT
        return
    bar = _Bar(title)
    try:
        yield bar
    finally:
        bar.stop()
