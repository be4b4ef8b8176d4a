"""The command line: `main` is the program ``cloudmanager``.

`app` holds the group, its options and the border where errors become one line and an exit
code; the commands lie in `files` (in and out, with `reports` of each file), `care` (status,
sync, rebuild, cache), `hosts` and `settings`. Nothing here is imported by the library.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit."""
    # Thousands of results, rows and modules live until the end, and the collector would go
    # through all of them again and again: a tenth of the time of 5,000 small files.
    gc.set_threshold(20_000, 50, 50)

    _open_what_is_closed()
    from cloudmanager.cli.app import run

    try:
        run()
    except SystemExit as exc:
        if isinstance(exc.code, int) and _nobody_is_left():
            # Taking the interpreter apart would take longer than many a command.
            with contextlib.suppress(OSError):  # nobody reads it any more
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(exc.code)
        raise


def _nobody_is_left() -> bool:
    """Whether no other thread works, no profiler or debugger watches."""
    busy = [each for each in threading.enumerate() if not each.daemon]
    return busy == [threading.main_thread()] and not (sys.gettrace() or sys.getprofile())


def _open_what_is_closed() -> None:
    """Put /dev/null in the place of a standard stream that the caller has closed (``>&-``).

    Else the first file that is opened, the database perhaps, would get its number, and what is
    written to the stream, by whatever library, would go into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest number that is free: that of the stream.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
