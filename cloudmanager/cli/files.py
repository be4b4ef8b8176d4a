"""Files in and out: upload, download, cat, ls, info, remove, link."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudmanager.cli.app import Session, pass_session
from cloudmanager.cli.codes import FAILED, OK, TEMPORARY, code_for, combine
from cloudmanager.cli.display import (
    error_line,
    finish_without_reader,
    out,
    out_json,
    print_traceback,
    progress_bar,
    safe_text,
    say,
    say_what_was_held,
)
from cloudmanager.cli.manifest import read_manifest, target_below, write_manifest
from cloudmanager.cli.reports import DownloadReport, UploadReport
from cloudmanager.errors import (
    CloudManagerError,
    ConfigurationError,
    NotARegularFile,
    UnknownFile,
)
from cloudmanager.model import format_bytes

if TYPE_CHECKING:
    from cloudmanager.manager import CloudManager

__all__ = ["cat", "download", "info", "link", "ls", "remove", "upload"]

_DURATION = re.compile(r"\s*(\d+)\s*([smhdw])\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A span of time: ``90s``, ``15m``, ``1d12h``, ``1w``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        matches = list(_DURATION.finditer(value))
        if not matches or "".join(match.group() for match in matches) != value:
            self.fail(f"not a span of time (try 15m, 12h, 7d): {value!r}", param, ctx)
        return timedelta(
            seconds=sum(int(m.group(1)) * _SECONDS[m.group(2).lower()] for m in matches)
        )


def utc(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# -- upload -------------------------------------------------------------------------------------


@click.command()
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option(
    "-r", "--recursive", is_flag=True, help="Upload folders with all the files below them."
)
@click.option(
    "--files-from",
    metavar="FILE",
    help="Read more paths from FILE (- for standard input): one a line, or NUL-separated.",
)
@click.option(
    "--manifest",
    metavar="FILE",
    help="Write hash and path of every stored file, as sha256sum does.",
)
@click.option("--name", metavar="NAME", help="The name for what comes from standard input (-).")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Hash, and say what would be stored; change nothing."
)
@pass_session
def upload(
    session: Session,
    paths: Sequence[str],
    recursive: bool,
    files_from: str | None,
    manifest: str | None,
    name: str | None,
    dry_run: bool,
) -> None:
    """Store files in the pool. Prints hash and path, as sha256sum does.

    PATH can be - for standard input. The exit code is 0 when every file is on at least one
    host; copies that a host still owes are listed by `status` and delivered by `sync`.
    """
    if not paths and files_from is None:
        raise click.UsageError("nothing to upload: give a PATH, or --files-from")
    if files_from == "-" and "-" in paths:
        raise click.UsageError("standard input can be a file or a list of paths, not both")
    if name is not None and "-" not in paths:
        raise click.UsageError("--name is for standard input: give - as a PATH too")
    if manifest is not None:
        _require_can_write(manifest)
    finish_without_reader()
    report = UploadReport(session, keep=manifest is not None)
    found = _found(paths, files_from, recursive, report)
    if dry_run:
        _dry_upload(session, found, report)
    else:
        pool = session.pool()
        with progress_bar("upload") as progress:
            if "-" in paths:
                result = pool.upload_stream(sys.stdin.buffer, name or "stdin", progress=progress)
                report.add(dataclasses.replace(result, path=name or "-"))
            for result in pool.upload_many(found, progress=progress):
                report.add(result)
    if manifest is not None:
        write_manifest(Path(manifest), report.entries)
    session.code = report.finish()


def _found(
    paths: Sequence[str], files_from: str | None, recursive: bool, report: UploadReport
) -> Iterator[str]:
    """The files to upload, found as they are asked for."""

    def given() -> Iterator[str]:
        yield from (path for path in paths if path != "-")
        if files_from is not None:
            yield from _read_list(files_from)

    for path in given():
        if not os.path.isdir(path):
            yield path
        elif recursive:
            yield from _walk(path, report)
        else:
            report.failed(
                path,
                IsADirectoryError(
                    errno.EISDIR, "is a directory: add -r to upload what is in it", path
                ),
            )


def _walk(top: str, report: UploadReport) -> Iterator[str]:
    """All files below a folder, by name. Links to files are followed, links to folders not."""
    try:
        with os.scandir(top) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as exc:
        report.failed(top, exc)
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, report)
        elif entry.is_symlink() and entry.is_dir():
            say(f"skipped {entry.path!r}: a link to a folder (name it to upload what is in it)")
        else:
            yield entry.path


def _read_list(files_from: str) -> Iterator[str]:
    stream = sys.stdin.buffer if files_from == "-" else Path(files_from).open("rb")  # noqa: SIM115
    assert isinstance(stream, io.BufferedReader)
    with stream:
        rest = b""
        separator = b""
        while block := stream.read1(65536):  # a list can come from a pipe, bit by bit
            rest += block
            if not separator:
                separator = b"\0" if b"\0" in rest else b"\n"
            *lines, rest = rest.split(separator)
            yield from (os.fsdecode(line) for line in lines if line)
        if rest:
            yield os.fsdecode(rest)


def _dry_upload(session: Session, found: Iterable[str], report: UploadReport) -> None:
    from cloudmanager.hashing import sha256_of
    from cloudmanager.source import open_regular

    pool = session.pool()
    for path in found:
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                sha256 = sha256_of(file)
        except Exception as exc:  # noqa: BLE001 - one bad file does not stop the rest
            report.failed(path, exc)
            continue
        known = pool.exists(sha256)
        if session.json:
            out_json(
                {"path": path, "hash": sha256, "size": size, "new": not known, "dry_run": True}
            )
        else:
            out(f"{'known  ' if known else 'upload '} {sha256}  {safe_text(path)}")


# -- download -----------------------------------------------------------------------------------


@click.command()
@click.argument("hashes", nargs=-1, metavar="HASH...")
@click.option(
    "-o",
    "--output",
    "dest",
    metavar="DEST",
    help="A file, or a folder for the original names [default: .]",
)
@click.option(
    "--manifest", metavar="FILE", help="Restore the tree of a manifest below the folder DEST."
)
@click.option(
    "-f", "--force", is_flag=True, help="Replace files that are there with other content."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@pass_session
def download(
    session: Session,
    hashes: Sequence[str],
    dest: str | None,
    manifest: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    """Write files under their original names. Prints the path of each.

    Every byte is verified; a file appears whole or not at all. A hash can be shortened to a
    unique prefix of at least 6 digits.
    """
    if not hashes and manifest is None:
        raise click.UsageError("nothing to download: give a HASH, or --manifest")
    folder = Path(dest) if dest is not None else Path()
    if manifest is not None:
        if dest is None or (folder.exists() and not folder.is_dir()):
            raise click.UsageError("--manifest needs -o DIR, the folder to restore into")
    elif dest is not None and len(hashes) > 1 and not folder.is_dir():
        raise click.UsageError(f"{dest!r} is not a folder: several files need one")
    elif dest is not None and dest.endswith("/") and not folder.is_dir():
        raise click.UsageError(f"there is no folder {dest!r}")
    pool = session.pool()
    finish_without_reader()
    report = DownloadReport(session)
    wanted = _wanted(pool, hashes, dest, manifest, folder, report)
    plan = _plan(wanted, report, force=force, restore=manifest is not None, dry_run=dry_run)
    if dry_run:
        for sha256, target in plan:
            report.good(sha256, target)
    else:
        with progress_bar("download") as progress:
            for sha256, outcome in pool.fetch_many(
                plan, fill_cache=manifest is None, exact=True, progress=progress
            ):
                if isinstance(outcome, Exception):
                    report.failed(sha256, outcome)
                else:
                    report.good(sha256, outcome)
    session.code = report.finish()


def _wanted(
    pool: CloudManager,
    hashes: Sequence[str],
    dest: str | None,
    manifest: str | None,
    folder: Path,
    report: DownloadReport,
) -> Iterator[tuple[str, Path]]:
    """The whole hashes, each with the path it is to be written to."""
    from cloudmanager.manager.downloading import safe_name

    to_folder = dest is None or folder.is_dir()
    for given in hashes:
        try:
            sha256 = pool.resolve(given)
            info = pool.info(sha256)
            if info is None:
                raise UnknownFile(given)
        except Exception as exc:  # noqa: BLE001 - one bad item does not stop the rest
            report.failed(given, exc)
            continue
        yield sha256, folder / safe_name(info.file) if to_folder else folder
    if manifest is not None:
        for sha256, name in read_manifest(Path(manifest)):
            try:
                yield sha256, target_below(folder, name)
            except ConfigurationError as exc:
                report.failed(sha256, exc)


def _plan(
    wanted: Iterable[tuple[str, Path]],
    report: DownloadReport,
    *,
    force: bool,
    restore: bool,
    dry_run: bool,
) -> Iterator[tuple[str, Path]]:
    """What is to be written; what is there already with the right content is done."""
    claimed: dict[str, str] = {}
    ready: set[str] = set()
    made: set[str] = set()
    for sha256, target in wanted:
        try:
            if claimed.setdefault(str(target), sha256) != sha256:
                raise FileExistsError(
                    errno.EEXIST, "two files would get this name: give each its own -o", str(target)
                )
            folder = os.path.dirname(target)
            if folder not in made and _is_there(target, sha256, force=force):
                report.good(sha256, target)
                continue
            if folder not in ready:
                if restore and not dry_run and not os.path.isdir(folder):
                    os.makedirs(folder, exist_ok=True)
                    made.add(folder)  # nothing else is in it
                _require_folder(target.parent, may_be_missing=restore)
                ready.add(folder)
        except (OSError, CloudManagerError) as exc:
            report.failed(sha256, exc)
            continue
        yield sha256, target


def _is_there(target: Path, sha256: str, *, force: bool) -> bool:
    """Whether `target` has the right content already.

    Raises
    ------
    FileExistsError
        When it has other content and must not be replaced.
    IsADirectoryError, NotARegularFile
        When it can never be replaced: a folder, a device, a pipe.
    """
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(mode):
        raise NotARegularFile(f"{str(target)!r} is not a regular file: it is not replaced")
    if force:
        return False
    if _has_hash(target, sha256):
        return True
    raise FileExistsError(
        errno.EEXIST, "is there with other content: add --force to replace it", str(target)
    )


def _require_folder(folder: Path, *, may_be_missing: bool) -> None:
    if folder.is_dir():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    elif not may_be_missing:
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))


def _has_hash(path: Path, sha256: str) -> bool:
    from cloudmanager.hashing import sha256_of
    from cloudmanager.source import open_regular

    with open_regular(path) as file:
        return sha256_of(file) == sha256


@click.command()
@click.argument("hash_", metavar="HASH")
@pass_session
def cat(session: Session, hash_: str) -> None:
    """Write a file's bytes to standard output, verified."""
    pool = session.pool()
    with pool.open(pool.resolve(hash_)) as file:
        while block := file.read(8 * 1024 * 1024):
            sys.stdout.buffer.write(block)


# -- what is known ------------------------------------------------------------------------------


@click.command()
@click.argument("prefix", default="", metavar="[PREFIX]")
@pass_session
def ls(session: Session, prefix: str) -> None:
    """List the files of the pool by hash, or those whose hash starts with PREFIX."""
    if prefix.lower().strip("0123456789abcdef") or len(prefix) > 64:
        raise click.UsageError(f"not the beginning of a hash: {prefix!r}")
    for file in session.pool().files(prefix):
        if session.json:
            out_json(
                {
                    "hash": file.hash,
                    "size": file.size,
                    "created": utc(file.created),
                    "name": file.name,
                }
            )
        else:
            out(f"{file.hash}  {file.size:>12}  {utc(file.created)}  {safe_text(file.name)}")


@click.command()
@click.argument("hash_", metavar="HASH")
@pass_session
def info(session: Session, hash_: str) -> None:
    """Show what is known about a file: name, size, where its copies are."""
    pool = session.pool()
    found = pool.info(pool.resolve(hash_))
    if found is None:
        raise UnknownFile(hash_)
    file = found.file
    if session.json:
        out_json(
            {
                "hash": file.hash,
                "name": file.name,
                "size": file.size,
                "created": utc(file.created),
                "cached": found.cached,
                "uploads": [
                    {
                        **{k: v for k, v in dataclasses.asdict(upload).items() if k != "hash"},
                        "stored_at": utc(upload.stored_at),
                        "verified_at": utc(upload.verified_at),
                    }
                    for upload in found.uploads
                ],
            }
        )
        return
    out(f"hash     {file.hash}")
    out(f"name     {safe_text(file.name)}")
    out(f"size     {file.size} ({format_bytes(file.size)})")
    out(f"created  {utc(file.created)}")
    out(f"cached   {'yes' if found.cached else 'no'}")
    for upload in found.uploads:
        kind = "external" if upload.external else upload.status
        why = f"  ({safe_text(upload.error)})" if upload.error else ""
        out(f"{kind:<8} {upload.host}  {upload.location}{why}".rstrip())


@click.command()
@click.argument("hashes", nargs=-1, required=True, metavar="HASH...")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@pass_session
def remove(session: Session, hashes: Sequence[str], dry_run: bool) -> None:
    """Delete files from all hosts, the cache and the catalog.

    When a host cannot be reached the exit code is 5, and `sync` finishes the removal later.
    """
    pool = session.pool()
    finish_without_reader()
    codes: set[int] = set()
    good = 0
    for given in hashes:
        try:
            sha256 = pool.resolve(given)
            known = pool.info(sha256)
            if known is None:
                raise UnknownFile(given)
            done = None if dry_run else pool.remove(sha256)
        except Exception as exc:  # noqa: BLE001 - one bad item does not stop the rest
            if session.debug:
                print_traceback(exc)
            error_line(exc, f"remove {given}")
            codes.add(code_for(exc))
            continue
        if done is False:
            codes.add(TEMPORARY)
            say_what_was_held()
            say(f"{sha256} is not gone from every host yet: `cloudmanager sync` finishes that")
        else:
            good += 1
        if session.json:
            out_json(
                {"hash": sha256, "name": known.file.name, "removed": bool(done), "dry_run": dry_run}
            )
        else:
            word = "would remove" if dry_run else "removed" if done else "removing"
            out(f"{word}  {sha256}  {safe_text(known.file.name)}")
    session.code = OK if not codes else FAILED if good else combine(codes)


@click.command()
@click.argument("hash_", metavar="HASH")
@click.option(
    "--expires",
    type=Duration(),
    default="1d",
    show_default=True,
    help="How long the link works: 15m, 12h, 7d.",
)
@pass_session
def link(session: Session, hash_: str, expires: timedelta) -> None:
    """Print a URL under which anybody can download a file for a while (S3, Azure)."""
    pool = session.pool()
    sha256 = pool.resolve(hash_)
    url = pool.link(sha256, expires)
    if url is None:
        raise UnknownFile(hash_)
    if session.json:
        out_json({"hash": sha256, "url": url, "expires": (datetime.now(UTC) + expires).isoformat()})
    else:
        out(url)


def _require_can_write(manifest: str) -> None:
    """Fail before the work, not after it, when the manifest cannot be written."""
    folder = os.path.dirname(os.path.abspath(manifest))
    if os.path.isdir(manifest):
        raise click.UsageError(f"the manifest {manifest!r} is a folder: name a file")
    if not os.path.isdir(folder):
        raise click.UsageError(f"there is no folder {folder!r} for the manifest")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
