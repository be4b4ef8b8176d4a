"""The group, its options, and the border where errors become a line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cloudmanager._version import __version__
from cloudmanager.cli.codes import FAILED, USAGE, code_for
from cloudmanager.cli.display import (
    LineHandler,
    error_line,
    print_traceback,
    say,
    say_what_was_held,
    silence_stdout,
)
from cloudmanager.errors import CloudManagerError
from cloudmanager.model import parse_bytes

if TYPE_CHECKING:
    from cloudmanager.config import Settings
    from cloudmanager.manager import CloudManager

__all__ = ["Session", "app", "pass_session", "run"]

PROGRAM = "cloudmanager"
_WORKERS = ("upload", "download", "sync")
"""How the threads are called that move files."""
_MOMENT = 1.0
"""Seconds that they get to clean up after a signal."""


@dataclass(slots=True)
class Session:
    """The options before the command, and the pool once a command asks for it."""

    flags: dict[str, Any] = field(default_factory=dict)
    json: bool = False
    debug: bool = False
    code: int = 0
    stopped_by: int = 0
    """The signal that told the program to stop, or 0."""
    _pool: CloudManager | None = None

    def settings(self) -> Settings:
        """The settings, from flags, environment and file."""
        from cloudmanager import config

        return config.load(**self.flags)

    def pool(self) -> CloudManager:
        """The pool of these settings, opened once."""
        if self._pool is None:
            from cloudmanager import config
            from cloudmanager.manager import CloudManager
            from cloudmanager.manager.pool import JOBS

            settings = self.settings()
            for folder in (settings.database, settings.storage):
                _make_default_folder(folder, config.data_folder())
            self._pool = CloudManager(
                settings.database,
                settings.storage,
                settings.capacity,
                config.open_hosts(settings.hosts),
                redundancy=_redundancy(settings),
                jobs=settings.jobs or JOBS,
                bwlimit=settings.bwlimit,
            )
        return self._pool

    def cancel(self) -> None:
        """Stop what runs, now."""
        if self._pool is not None:
            self._pool.cancel()

    def close(self) -> None:
        """Close the pool if it was opened."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _redundancy(settings: Settings) -> int | None:
    """The redundancy for the hosts of --host: one that was set for all hosts asks for no more.

    Else ``--host nas rebuild`` would fail for everybody who keeps two copies.
    """
    wanted = settings.redundancy
    if wanted is not None and settings.sources["redundancy"] != "flag":
        picked = settings.sources["hosts"] == "flag"
        return min(wanted, len(settings.hosts)) if picked else wanted
    return wanted


pass_session = click.make_pass_decorator(Session)


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Bytes as ``1048576``, ``500MiB``, ``20GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class Commands(click.Group):
    """Imports the module of a command when it is asked for, so that --help stays light."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        import importlib

        module, _, attribute = where.partition(":")
        command = getattr(importlib.import_module(f"cloudmanager.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        # Before click meets it, which makes exit code 1 of a reader that has gone.
        try:
            return super().invoke(ctx)
        except BrokenPipeError as exc:
            raise ReaderGone from exc


_COMMANDS = {
    "cache": "care:cache",
    "cat": "files:cat",
    "config": "settings:config",
    "download": "files:download",
    "host": "hosts:host",
    "info": "files:info",
    "link": "files:link",
    "ls": "files:ls",
    "rebuild": "care:rebuild",
    "remove": "files:remove",
    "repair": "healing:repair",
    "status": "care:status",
    "sync": "care:sync",
    "upload": "files:upload",
    "verify": "healing:verify",
}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=PROGRAM)
@click.option(
    "--database", metavar="PATH-or-URL", help="The catalog: a SQLite file or an SQLAlchemy URL."
)
@click.option("--storage", metavar="DIR", help="The directory of the cache.")
@click.option(
    "--capacity", type=Size(), metavar="SIZE", help="What the cache may hold: 20GiB, 500MiB, bytes."
)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="URL-or-NAME",
    help="A host, by URL (s3://bucket/prefix, azure://container, /path, …) or configured name. "
    "Repeat it in order of preference.",
)
@click.option(
    "--redundancy",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many hosts must hold each file.",
)
@click.option(
    "--bwlimit",
    type=Size(),
    metavar="RATE",
    help="Bytes a second for all transfers together, such as 10M; 0 for no limit.",
)
@click.option("--config", metavar="FILE", help="The configuration file (see `config path`).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("-v", "--verbose", is_flag=True, help="Say more of what is done, on stderr.")
@click.option("--debug", is_flag=True, help="Everything in the log, and a traceback for errors.")
@click.pass_context
def app(
    ctx: click.Context,
    database: str | None,
    storage: str | None,
    capacity: int | None,
    hosts: Sequence[str],
    redundancy: int | None,
    bwlimit: int | None,
    config: str | None,
    as_json: bool,
    verbose: bool,
    debug: bool,
) -> None:
    """A content-addressed pool of files on many clouds.

    Give it files: they are hashed with SHA-256 and stored on several hosts. Ask for a hash:
    you get the right bytes, from the cache or from whichever host still has them.
    """
    session = ctx.ensure_object(Session)
    session.json = as_json
    session.debug = debug
    session.flags = {
        "database": database,
        "storage": storage,
        "capacity": capacity,
        "hosts": tuple(hosts),
        "redundancy": redundancy,
        "bwlimit": bwlimit,
        "config": config,
    }
    _log_to_stderr(
        logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING,
        hold=not (debug or verbose),
    )


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived; its argument is the number."""


class ReaderGone(Exception):
    """Whoever read our output has closed it (`| head`)."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, do the work, exit."""
    session = Session()
    _watch_signals(session)
    code = 0
    try:
        try:
            app.main(
                args=None if arguments is None else list(arguments),
                prog_name=PROGRAM,
                standalone_mode=False,
                obj=session,
            )
            code = session.code
        finally:
            if not session.stopped_by:
                session.close()
                say_what_was_held()
        _flush_stdout()
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.UsageError as exc:
        say(_usage(exc))
        code = USAGE
    except (KeyboardInterrupt, click.Abort):
        _end_now(session, signal.SIGINT)
    except Stopped as exc:
        _end_now(session, exc.args[0])
    except (ReaderGone, BrokenPipeError):
        # No message, and no second error when the interpreter flushes stdout at its end.
        silence_stdout()
    except Exception as exc:  # noqa: BLE001 - the border: nothing gets past it as a traceback
        if session.stopped_by:  # the workers were faster to notice than this thread
            _end_now(session, session.stopped_by)
        known = isinstance(exc, CloudManagerError | OSError | ValueError)
        code = _report(exc, session, internal=not known)
        _flush_stdout()
    sys.exit(code)


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


def _usage(exc: click.UsageError) -> str:
    """What is wrong with the command line, and where to read how it is right."""
    if isinstance(exc, click.NoSuchOption) and exc.ctx is not None and exc.ctx.parent is not None:
        ours = {name for option in app.params for name in option.opts}
        if exc.option_name in ours:
            return f"{exc.option_name} goes before the command: {PROGRAM} {exc.option_name} …"
    hint = f" (see `{exc.ctx.command_path} --help`)" if exc.ctx is not None else ""
    return f"{exc.format_message()}{hint}"


def _report(exc: BaseException, session: Session, *, internal: bool = False) -> int:
    if session.debug:
        print_traceback(exc)
    if internal:
        say(
            f"internal error: {type(exc).__name__}: {exc}; "
            "run it again with --debug for a traceback"
        )
        return FAILED
    error_line(exc)
    return code_for(exc)


def _end_now(session: Session, signum: int) -> NoReturn:
    """Stop the workers and leave without waiting for their running requests.

    What was acknowledged is in the catalog; half-written files in the cache are freed by the
    next start. The workers get a moment to delete those that lie beside downloads, which
    nothing else would ever delete.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    session.cancel()
    limit = time.monotonic() + _MOMENT
    while time.monotonic() < limit and any(
        thread.name.startswith(_WORKERS) for thread in threading.enumerate()
    ):
        time.sleep(0.01)
    _flush_stdout()
    say("interrupted" if signum == signal.SIGINT else "terminated")
    os._exit(128 + signum)


def _watch_signals(session: Session) -> None:
    """SIGTERM ends like Ctrl-C; and both end also while the main thread is in a long call."""

    def stopped(signum: int, _frame: FrameType | None) -> None:
        # What is still said of work that was told to stop, as by an executor whose lock the
        # exception interrupted, helps nobody.
        session.stopped_by = signum
        logging.disable(logging.CRITICAL)
        threading.excepthook = lambda _: None
        raise Stopped(signum)

    signal.signal(signal.SIGINT, stopped)
    signal.signal(signal.SIGTERM, stopped)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while data := os.read(reader, 1):
            if data[0] in (signal.SIGINT, signal.SIGTERM):
                session.stopped_by = data[0]
                session.cancel()
                time.sleep(2.0)
                os._exit(128 + data[0])

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _log_to_stderr(level: int, *, hold: bool) -> None:
    logger = logging.getLogger("cloudmanager")
    logger.handlers[:] = [LineHandler(hold=hold)]
    logger.setLevel(level)
    logger.propagate = False


def _make_default_folder(path: str, data: os.PathLike[str]) -> None:
    """The user's data directory is ours to make; other folders must exist."""
    base = os.fspath(data)
    if "://" not in path and os.path.abspath(path).startswith(base + os.sep):
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
