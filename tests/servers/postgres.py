"""A PostgreSQL server with its data in a temporary directory."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import uuid
from pathlib import Path

import psycopg

from servers.process import ServerFailed, ServerMissing, server_process
from servers.programs import postgres_programs

__all__ = ["Postgres"]

_USER = "tests"


class Postgres:
    """A running PostgreSQL. Nothing is flushed to disk: a test does not need it back."""

    def __init__(self) -> None:
        programs = postgres_programs()
        if programs is None:
            raise ServerMissing("PostgreSQL", "python tests/install_servers.py")
        # It refuses to run as root.
        user = "nobody" if os.geteuid() == 0 else None

        def prepare(directory: Path) -> None:
            if user is not None:
                account = pwd.getpwnam(user)
                os.chown(directory, account.pw_uid, account.pw_gid)
            _initialise(programs / "initdb", directory / "data", user)

        self._process = server_process(
            "postgres",
            lambda port, directory: [
                *(str(programs / "postgres"), "-D", str(directory / "data"), "-p", str(port)),
                # Only TCP: the name of a Unix socket may not be longer than 103 bytes, and the
                # temporary folder of macOS nearly is.
                *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                *("-c", "fsync=off", "-c", "synchronous_commit=off"),
                *("-c", "full_page_writes=off", "-c", "max_connections=200"),
            ],
            prepare=prepare,
            ready=lambda port: _answers(f"postgresql://{_USER}@127.0.0.1:{port}/postgres"),
            # A fast shutdown: TERM would wait until every client has gone.
            signal="INT",
            user=user,
        )
        self._server = f"{_USER}@127.0.0.1:{self._process.port}"

    def make_database(self) -> str:
        """Create an empty database; its SQLAlchemy URL."""
        name = f"database_{uuid.uuid4().hex[:20]}"
        with psycopg.connect(f"postgresql://{self._server}/postgres", autocommit=True) as admin:
            admin.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql+psycopg://{self._server}/{name}"

    def stop(self) -> None:
        self._process.stop()


def _initialise(initdb: Path, data: Path, user: str | None) -> None:
    account = pwd.getpwnam(user) if user is not None else None
    made = subprocess.run(
        [
            *(str(initdb), "-D", str(data), "-U", _USER, "--auth=trust"),
            *("--encoding=UTF8", "--no-locale", "--no-sync"),
        ],
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
        cwd=data.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if made.returncode != 0:
        shutil.rmtree(data.parent, ignore_errors=True)
        raise ServerFailed(f"initdb failed; it said: {made.stdout.strip()[-2000:]}")


def _answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:  # not listening yet, or still starting up
        return False
    return True
