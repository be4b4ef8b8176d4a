"""Where the programs of the servers are. Only the standard library is needed to ask."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

__all__ = ["FOLDER", "azurite_program", "node_program", "postgres_programs", "program"]

FOLDER = Path(__file__).resolve().parents[2] / ".servers"
"""Where ``tests/install_servers.py`` puts what PyPI does not have."""


def program(name: str) -> Path | None:
    """A program next to the running Python, or on PATH; None when there is none."""
    beside = Path(sys.executable).with_name(name)
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which(name)
    return Path(found) if found else None


def azurite_program() -> Path | None:
    """``azurite-blob``: as CLOUDMANAGER_TEST_AZURITE says, from PATH, or as installed here."""
    said = os.environ.get("CLOUDMANAGER_TEST_AZURITE")
    if said:
        return Path(said)
    found = shutil.which("azurite-blob")
    if found:
        return Path(found)
    installed = FOLDER / "node_modules" / ".bin" / "azurite-blob"
    return installed if installed.exists() else None


def node_program() -> Path | None:
    """``node`` from PATH, or as ``tests/install_servers.py`` installed it."""
    found = shutil.which("node")
    if found:
        return Path(found)
    installed = FOLDER / "node" / "bin" / "node"
    return installed if installed.exists() else None


def postgres_programs() -> Path | None:
    """The folder with ``initdb`` and ``postgres``: of PATH, of Debian, or as installed here."""
    candidates = []
    initdb = shutil.which("initdb")
    if initdb:
        candidates.append(Path(initdb).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(debian, key=lambda path: _version(path.parent.name), reverse=True)
    candidates += FOLDER.glob("postgresql/lib/python*/site-packages/pgserver/pginstall/bin")
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
