"""Any pair of programs that upload and download as a host, such as plowshare's.

Nothing here goes through a shell. A program is told what to do by its arguments alone (see
`command_template`), and is believed only as far as it can be checked: a URL counts when the
option ``owns`` covers it, bytes count when whoever asked for them has hashed them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import IO, Any
from urllib.parse import urlsplit

from cloudmanager.errors import (
    ConfigurationError,
    HostError,
    HostUnavailable,
    ObjectNotFound,
    SourceChanged,
    Unsupported,
)
from cloudmanager.hashing import BLOCK
from cloudmanager.hosts.base import Host, OnBytes
from cloudmanager.hosts.command_process import Lines, Program
from cloudmanager.hosts.command_template import Template, one_line, safe_name
from cloudmanager.model import Capabilities, Checksum, ObjectInfo
from cloudmanager.source import HashedReader, Source, open_regular

__all__ = ["CommandHost", "CommandOptions", "open_command"]

_TEMPORARY = "cloudmanager-command-"
_EX_TEMPFAIL = 75  # sysexits.h
_PLACEHOLDERS = {
    "get": ("url", "dir", "path"),
    "put": ("path", "name", "key", "sha256", "size"),
    "delete": ("url",),
    "stat": ("url",),
    "check": (),
}
_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[!-~]+")
_LONGEST_URL = 4096
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\\\s]+/[!-\[\]-~]*")
# RFC 3986, section 2: neither white space nor quotes, braces, bars or backslashes.
_CHARACTERS = re.compile(r"[\w.~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_DOTS = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
_TRANSIENT = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """What can be set for a command host.

    The five command lines do not show in a repr: somebody may have put a password there.

    Attributes
    ----------
    get:
        Downloads ``{url}``: into ``{dir}``, an empty folder; to ``{path}``, a file in it; or,
        with neither, to its standard output.
    owns:
        The beginnings of the URLs that `put` prints and `get` takes. No other URL is ever
        handed to a program, wherever it comes from.
    put:
        Uploads ``{path}`` (or its standard input) and prints the URL on a line of its own, the
        last such line counts. None: a host to read from.
    delete, check:
        Deletes ``{url}``; tells by its exit code whether the service can be used.
    stat:
        Prints the size of ``{url}`` in bytes on a line of its own.
    time_limit, total_time_limit:
        Seconds that a program may show no sign of life, and that it may take in all.
    retry_codes, missing_codes:
        The exit codes that mean "try again" and "there is no such file".
    """

    get: Template = field(repr=False)
    owns: tuple[str, ...]
    put: Template | None = field(default=None, repr=False)
    delete: Template | None = field(default=None, repr=False)
    stat: Template | None = field(default=None, repr=False)
    check: Template | None = field(default=None, repr=False)
    time_limit: float = 300
    total_time_limit: float | None = None
    retry_codes: frozenset[int] = frozenset({_EX_TEMPFAIL})
    missing_codes: frozenset[int] = frozenset()


def open_command(name: str, url: str, options: Mapping[str, Any]) -> CommandHost:
    """``command:``; the programs are in the options. Starts nothing.

    Raises
    ------
    ConfigurationError
        For an unknown or missing option, or one that does not fit; command lines are never
        shown.
    """
    if url.lower() != "command:":
        raise ConfigurationError(
            f"host {name}: the URL of a command host is command: and no more; its programs are "
            "options"
        )
    known = [each.name for each in fields(CommandOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigurationError(
            f"host {name}: unknown option {', '.join(unknown)}; a command host takes: "
            f"{', '.join(known)}"
        )
    values = {key: value for key, value in options.items() if value is not None}
    if missing := [key for key in ("get", "owns") if key not in values]:
        raise ConfigurationError(f"host {name}: a command host needs {' and '.join(missing)}")
    for key, placeholders in _PLACEHOLDERS.items():
        if key in values:
            about = f"host {name}: {key}"
            values[key] = Template.parse(about, values[key], known=placeholders)
            if "url" in placeholders and not values[key].uses("url"):
                raise ConfigurationError(f"{about} needs {{url}}: which file it is about")
    values["owns"] = _prefixes(name, values["owns"])
    for key in ("time_limit", "total_time_limit"):
        number = values.get(key, 1)
        if isinstance(number, bool) or not isinstance(number, int | float) or not number > 0:
            raise ConfigurationError(f"host {name}: {key} must be a number of seconds above 0")
    for key in ("retry_codes", "missing_codes"):
        if key in values:
            values[key] = _codes(f"host {name}: {key}", values[key])
    return CommandHost(name, CommandOptions(**values))


class CommandHost(Host):
    """Files behind URLs that only programs can make and follow.

    There is no telling where `put` will store a file, so `location` is `Unsupported`; nor
    whether one that failed has stored it after all: then a copy remains that nobody knows.
    """

    def __init__(self, name: str, options: CommandOptions) -> None:
        self.name = name
        self.options = options
        self.capabilities = Capabilities(
            put=options.put is not None,
            list=False,
            delete=options.delete is not None,
            atomic_put=False,
            range_read=False,
        )

    # -- the contract ------------------------------------------------------------------

    def put(
        self,
        key: str,
        source: Source,
        *,
        sha256: str,
        filename: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        template = self._template("put", key)
        name = safe_name(filename, sha256)

        def beat() -> None:
            if on_bytes is not None:
                on_bytes(0)  # nothing that we know of went out, but the transfer may be ended

        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self._scratch("put", key))
            # Where the name is told apart, the path is kept free of what it may hold: plowup reads
            # "file:name", curl -F reads "file;type=".
            path = os.path.join(folder, sha256 if template.uses("name") else name)
            self._stage(path, source, sha256, key, beat)
            values = {
                "path": path,
                "name": name,
                "key": key,
                "sha256": sha256,
                "size": str(source.size),
            }
            stdin = None if template.uses("path") else stack.enter_context(open_regular(path))
            printed = self._last_line("put", key, values, _URL, stdin=stdin, beat=beat)
        location = self._printed_location(printed, key)
        if on_bytes is not None:
            on_bytes(source.size)
        return ObjectInfo(location=location, key=key, size=source.size, filename=filename)

    def get(self, location: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        self._require(location, "get")
        if offset or length is not None:
            raise self._unsupported("get", _shown(location))
        return self._fetched(location, "get")

    def stat(self, location: str) -> ObjectInfo:
        """Size by the program for it; without one, or when it prints none, by reading it all.

        Then the checksum is the SHA-256 of what was read.
        """
        self._require(location, "stat")
        if self.options.stat is not None:
            values = {"url": location}
            found = self._last_line("stat", location, values, re.compile(rb"[0-9]{1,19}"))
            if found is not None:
                return ObjectInfo(location=location, key=self._key(location), size=int(found))
        digest, size = hashlib.sha256(), 0
        for block in self._fetched(location, "stat"):
            digest.update(block)
            size += len(block)
        checksum = Checksum("sha256", digest.hexdigest())
        return ObjectInfo(location, self._key(location), size, checksum)

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        raise self._unsupported("list", prefix)

    def delete(self, locations: Iterable[str]) -> None:
        self._template("delete", "")
        for location in locations:
            self._require(location, "delete")
            with contextlib.suppress(ObjectNotFound):
                for _ in self._output("delete", location, {"url": location}):
                    continue

    def owns(self, location: str) -> bool:
        return _is_plain(location) and any(_below(location, each) for each in self.options.owns)

    def location(self, key: str) -> str:
        raise Unsupported(
            "only the program knows where it will store a file",
            host=self.name,
            operation="location",
            location=key,
        )

    def check(self) -> None:
        """The programs are there; where one is set for it, it says that all is well."""
        for operation in _PLACEHOLDERS:
            template: Template | None = getattr(self.options, operation)
            if template is not None and shutil.which(template.program) is None:
                raise self._error(HostError, _missing_program(template), "check", "")
        if self.options.check is not None:
            for _ in self._output("check", "", {}):
                continue

    def clean(self, *, older_than: timedelta) -> Iterator[str]:
        """Remove the temporary folders that killed processes of any command host left."""
        limit = time.time() - older_than.total_seconds()
        try:
            with os.scandir(tempfile.gettempdir()) as entries:
                ours = sorted(each.path for each in entries if each.name.startswith(_TEMPORARY))
            for path in ours:
                with contextlib.suppress(FileNotFoundError):  # its owner was faster
                    found = os.lstat(path)
                    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                        continue
                    if found.st_mtime > limit:
                        continue
                    with _locked(path) as free:
                        if free:
                            shutil.rmtree(path)
                            yield f"removed the unfinished transfer {path}"
        except OSError as exc:
            raise self._disk_error(exc, "clean", "") from exc

    # -- running programs ----------------------------------------------------------------

    def _output(
        self,
        operation: str,
        about: str,
        values: Mapping[str, str],
        *,
        program: str = "",
        stdin: IO[bytes] | None = None,
        beat: Callable[[], None] | None = None,
        watch: Callable[[], int] | None = None,
    ) -> Iterator[bytes]:
        """What the program of an operation (or another one's `program`) prints, until its end."""
        template = self._template(program or operation, about)
        running = Program(
            template.fill(values),
            time_limit=self.options.time_limit,
            total_time_limit=self.options.total_time_limit,
            stdin=stdin,
        )
        shown = os.path.basename(template.program)
        try:
            with running:
                yield from running.blocks(beat=beat, watch=watch)
        except TimeoutError as exc:
            said = one_line(running.errors, template.secrets)
            message = f"{shown!r} was ended: {exc}{f'; it said: {said}' if said else ''}"
            raise self._error(HostUnavailable, message, operation, about) from exc
        except OSError as exc:
            if isinstance(exc, FileNotFoundError | PermissionError | NotADirectoryError):
                kind, message = HostError, _missing_program(template)
            else:
                kind = HostUnavailable if exc.errno in _TRANSIENT else HostError
                message = f"{shown!r} cannot be run: {exc.strerror or exc}"
            raise self._error(kind, message, operation, about) from exc
        code = running.returncode
        if code:
            said = one_line(running.errors, template.secrets)
            ended = f"ended with exit code {code}" if code > 0 else f"was ended by {_signal(-code)}"
            message = f"{shown!r} {ended}: {said or 'it does not say why'}"
            kind = HostError
            if code in self.options.retry_codes:
                kind = HostUnavailable
            elif code in self.options.missing_codes and operation in ("get", "stat", "delete"):
                kind = ObjectNotFound
            raise self._error(kind, message, operation, about)

    def _last_line(
        self,
        operation: str,
        about: str,
        values: Mapping[str, str],
        pattern: re.Pattern[bytes],
        *,
        stdin: IO[bytes] | None = None,
        beat: Callable[[], None] | None = None,
    ) -> str | None:
        """The last line that a program prints and that is nothing but `pattern`."""
        lines, last = Lines(), None
        for block in self._output(operation, about, values, stdin=stdin, beat=beat):
            for line in lines.feed(block):
                last = line.strip() if pattern.fullmatch(line.strip()) else last
        for line in lines.end():
            last = line.strip() if pattern.fullmatch(line.strip()) else last
        return None if last is None else last.decode("ascii")

    def _fetched(self, location: str, operation: str) -> Iterator[bytes]:
        template = self.options.get
        if not (template.uses("dir") or template.uses("path")):
            yield from self._output(operation, location, {"url": location}, program="get")
            return
        with self._scratch(operation, location) as folder:
            values = {"url": location, "dir": folder, "path": os.path.join(folder, "object")}
            for _ in self._output(
                operation, location, values, program="get", watch=lambda: _size_of(folder)
            ):
                continue
            try:
                with self._only_file(folder, operation, location) as file:
                    while data := file.read(BLOCK):
                        yield data
            except OSError as exc:
                raise self._disk_error(exc, operation, location) from exc

    def _only_file(self, folder: str, operation: str, location: str) -> IO[bytes]:
        names = os.listdir(folder)
        program = os.path.basename(self.options.get.program)
        if len(names) != 1:
            found = f"left {len(names)} files" if names else "left no file"
            message = f"{program!r} ended well, but {found} where one was expected"
            raise self._error(HostError, message, operation, location)
        path = os.path.join(folder, names[0])
        # Looked at before it is opened, and no symlink followed: what a server sends may
        # decide what lies there, and opening a pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            message = f"what {program!r} left is no file"
            raise self._error(HostError, message, operation, location)
        return os.fdopen(fd, "rb", buffering=0)

    # -- the folder of a transfer ----------------------------------------------------------

    @contextlib.contextmanager
    def _scratch(self, operation: str, about: str) -> Iterator[str]:
        """An empty folder of our own; locked, so that `clean` knows that somebody uses it."""
        try:
            folder = tempfile.mkdtemp(prefix=_TEMPORARY)
        except OSError as exc:
            raise self._disk_error(exc, operation, about) from exc
        try:
            with _locked(folder):
                yield folder
        finally:
            # What cannot be removed must not hide how the transfer went; `clean` tries again.
            shutil.rmtree(folder, ignore_errors=True)

    def _stage(
        self, path: str, source: Source, sha256: str, key: str, beat: Callable[[], None]
    ) -> None:
        """Lay the bytes under `path` for a program: only a link to them where they cannot change.

        Else a copy of our own, hashed before any program sees it: one that was given the
        user's file would send whatever is in it at that moment.
        """
        if source.trusted and source.path is not None:
            with contextlib.suppress(OSError):  # another file system, or one without links
                os.link(source.path, path)
                return
        try:
            reader = source.open() if source.trusted else HashedReader(source, sha256)
        except OSError as exc:
            raise _unreadable(source, exc) from exc
        left = source.size
        try:
            with reader, open(path, "xb", buffering=0) as file:
                while True:
                    try:
                        data = reader.read(min(BLOCK, left) if left else 1)
                    except OSError as exc:
                        raise _unreadable(source, exc) from exc
                    if not data:
                        break
                    left -= len(data)
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                    beat()
        except OSError as exc:
            raise self._disk_error(exc, "put", key) from exc
        if left:
            raise SourceChanged(f"{source} does not have the size it should have")

    # -- URLs and errors -------------------------------------------------------------------

    def _printed_location(self, printed: str | None, key: str) -> str:
        assert self.options.put is not None
        program = os.path.basename(self.options.put.program)
        if printed is None:
            message = f"{program!r} ended well, but printed no line with a URL"
            raise self._error(HostError, message, "put", key)
        if not self.owns(printed):
            begin = re.match(r"[^:]+://[^/?#]*@?[^/?#@]*", printed)
            origin = re.sub(r"//.*@", "//", begin.group() if begin else "")
            raise self._error(
                HostError,
                f"{program!r} stored it under a URL at {origin:.100} that the option owns does not "
                "cover; add the beginning of such URLs there",
                "put",
                key,
            )
        return printed

    def _key(self, location: str) -> str:
        """What follows the longest beginning that fits."""
        prefix = max((each for each in self.options.owns if _below(location, each)), key=len)
        return location[len(prefix) :].lstrip("/") or location

    def _template(self, operation: str, about: str) -> Template:
        template: Template | None = getattr(self.options, operation)
        if template is None:
            raise Unsupported(
                f"no program is set for it; see the option {operation}",
                host=self.name,
                operation=operation,
                location=about,
            )
        return template

    def _require(self, location: str, operation: str) -> None:
        if not self.owns(location):
            raise self._error(HostError, "the location is not on this host", operation, location)

    def _error(self, kind: type[HostError], message: str, operation: str, about: str) -> HostError:
        return kind(message, host=self.name, operation=operation, location=_shown(about))

    def _disk_error(self, exc: OSError, operation: str, about: str) -> HostError:
        message = (
            f"the folder for temporary files, {tempfile.gettempdir()!r}, cannot be used: "
            f"{exc.strerror or exc}; make room there, or set TMPDIR to another"
        )
        return self._error(HostError, message, operation, about)


def _unreadable(source: Source, exc: OSError) -> SourceChanged:
    return SourceChanged(
        f"{source} cannot be read any more: {exc.strerror or exc}; upload it again"
    )


def _missing_program(template: Template) -> str:
    return (
        f"there is no program {template.program!r} that can be run; install it, or write its "
        "whole path"
    )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown(location: str) -> str:
    """A location without what may give access: file lockers put keys behind ``?`` and ``#``."""
    return re.sub(r"([?#]).*", r"\1***", location, flags=re.DOTALL) if ":" in location else location


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Whether nobody else holds the folder; then we do."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _size_of(folder: str) -> int:
    """The bytes of the files in a folder, as far as they stay there while they are counted."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _is_plain(location: str) -> bool:
    """Whether a location is a URL that means the same to everybody who reads it."""
    if len(location) > _LONGEST_URL or not _CHARACTERS.fullmatch(location):
        return False
    path = re.split(r"[?#]", location, maxsplit=1)[0].partition("://")[2]
    return not any(_DOTS.fullmatch(segment) for segment in path.split("/"))


def _below(location: str, prefix: str) -> bool:
    scheme, _, rest = location.partition("://")
    authority, slash, path = rest.partition("/")
    same = f"{scheme.lower()}://{authority.lower()}{slash}{path}"
    if not same.startswith(prefix) or same == prefix:
        return same == prefix and prefix[-1] not in "/?#=&"
    # "/files" owns "/files/x" and "/files?x", never "/files-of-others".
    return prefix[-1] in "/?#=&!" or same[len(prefix)] in "/?#"


def _prefixes(name: str, value: object) -> tuple[str, ...]:
    prefixes = [value] if isinstance(value, str) else value
    if not isinstance(prefixes, list | tuple) or not prefixes:
        raise ConfigurationError(f"host {name}: owns must be one or several beginnings of URLs")
    found = []
    for each in prefixes:
        if (
            not isinstance(each, str)
            or not _PREFIX.fullmatch(each)
            or not _is_plain(each)
            or urlsplit(each).scheme in ("file", "command")
        ):
            raise ConfigurationError(
                f"host {name}: owns must hold beginnings of URLs with a server and a slash, such "
                "as https://example.org/f/ (not file:, and without a user)"
            )
        scheme, _, rest = each.partition("://")
        authority, _, path = rest.partition("/")
        found.append(f"{scheme.lower()}://{authority.lower()}/{path}")
    return tuple(found)


def _codes(about: str, value: object) -> frozenset[int]:
    codes = [value] if isinstance(value, int) else value
    if not isinstance(codes, list | tuple) or not all(
        isinstance(code, int) and not isinstance(code, bool) and 0 < code < 256 for code in codes
    ):
        raise ConfigurationError(f"{about} must be exit codes from 1 to 255")
    return frozenset(codes)
