"""Starting a server program on a free loopback port, and stopping it for certain."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = [
    "ServerFailed",
    "ServerMissing",
    "ServerProcess",
    "accepts_connections",
    "free_port",
    "private_directory",
    "server_process",
]

_START_WITHIN = 60.0
"""Seconds. Generous: the machine may be busy with other tests."""


class ServerMissing(Exception):
    """A server program is not installed. The message names it and how to install it."""

    def __init__(self, what: str, how: str) -> None:
        super().__init__(f"{what} is not installed: {how}")


class ServerFailed(Exception):
    """A server program did not start. The message ends with what it had to say."""


def private_directory(name: str) -> Path:
    """A new directory for a server's data; whoever asks for it has it removed.

    Not one of pytest's: those lie below a directory that only the test's own user may
    enter, and PostgreSQL runs as another user when the tests run as root.
    """
    return Path(tempfile.mkdtemp(prefix=f"cloudmanager-{name}-"))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens.

    From below the range out of which the kernel numbers outgoing connections: one of those,
    of a test running at the same time, could take the port before the server does. Not from
    `random` itself, which a test may have seeded.
    """
    generator = random.SystemRandom()
    while True:
        port = generator.randrange(15000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # taken: try another one
                continue
            return port


def accepts_connections(port: int) -> bool:
    """Whether something listens on the port by now."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class ServerProcess:
    """A running server. `port` is where it listens on 127.0.0.1."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        directory: Path,
        signal: str = "TERM",
        patience: float = 5.0,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.directory = directory
        tether = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py"))]
        tether += ["--signal", signal, "--patience", str(patience), "--remove", str(directory)]
        if user is not None:
            tether += ["--user", user]
        # A file without a name: whoever is killed, nothing stays behind.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server runs
        self._process = subprocess.Popen(
            [*tether, "--", *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=dict(env) if env is not None else None,
            cwd=directory,
            # Ctrl-C is for the tests; they stop their servers afterwards.
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process that holds the server; the server ends with it."""
        return self._process.pid

    def said(self) -> str:
        """The last lines that the server wrote."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 4096, max(0, size - 4096))
        return text.decode(errors="replace").strip() or "nothing"

    def stop(self) -> None:
        """End the server and wait until it has. More than once is no error."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def server_process(
    name: str,
    command: Callable[[int, Path], Sequence[str]],
    *,
    prepare: Callable[[Path], None] = lambda _: None,
    ready: Callable[[int], bool] = accepts_connections,
    signal: str = "TERM",
    patience: float = 5.0,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
) -> ServerProcess:
    """Start a server on a free port, in a directory that is removed when it stops.

    `command` is given port and directory and answers with the command line; `prepare` fills
    the directory; `ready` is asked until it answers true. A port that somebody else took
    meanwhile costs another try. `signal` stops it; what still runs `patience` seconds later
    is killed.
    """
    said = ""
    for _ in range(3):
        directory = private_directory(name)
        prepare(directory)
        port = free_port()
        process = ServerProcess(
            command(port, directory),
            port=port,
            directory=directory,
            signal=signal,
            patience=patience,
            user=user,
            env=env,
        )
        deadline = time.monotonic() + _START_WITHIN
        while process.alive and time.monotonic() < deadline:
            # Alive after it was ready: else the one that answered was somebody else.
            if ready(port) and process.alive:
                return process
            time.sleep(0.02)
        said = process.said()
        process.stop()
    raise ServerFailed(f"{name} does not start; it said: {said}")
