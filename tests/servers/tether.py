"""Runs a server for as long as somebody holds the other end of its standard input.

``python tether.py [--signal NAME] [--patience SECONDS] [--user NAME] [--remove DIR]… --
PROGRAM ARGUMENT…``

A test process that is killed cannot stop its servers. The kernel closes its end of the pipe
though, and this program, which sees that, stops the server and removes its directories.
Linux could do it with PR_SET_PDEATHSIG, but macOS could not, it is tied to the thread that
forked, and it is lost when a program changes its user, which PostgreSQL as root needs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(prog="tether")
    parser.add_argument("--signal", default="TERM", help="asks the server to end: TERM, INT, …")
    parser.add_argument("--user", help="run the server as this user (needs root)")
    parser.add_argument("--remove", action="append", default=[], help="directory to remove")
    parser.add_argument("--patience", type=float, default=5, help="seconds from asking to killing")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    identity: dict[str, Any] = {}
    if options.user:
        account = pwd.getpwnam(options.user)
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    server = subprocess.Popen(
        options.command, stdin=subprocess.DEVNULL, start_new_session=True, **identity
    )

    def stop(*_: object) -> None:
        # The server may end by itself at any moment: then there is nothing left to signal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.Signals[f"SIG{options.signal}"])
        deadline = threading.Timer(options.patience, kill)
        deadline.daemon = True
        deadline.start()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, signal.SIGKILL)

    def until_let_go() -> None:
        while os.read(0, 4096):
            continue
        stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=until_let_go, daemon=True).start()
    code = server.wait()
    kill()  # whatever the server itself had started
    for directory in options.remove:
        shutil.rmtree(directory, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
