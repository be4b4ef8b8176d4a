"""The library used by a small program, which is measured as a whole.

``python -m benchmarks.library``
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cloudmanager import CloudManager, config

__all__ = ["main"]


def _open(path: str) -> CloudManager:
    settings = config.load(config=path)
    return CloudManager(
        settings.database,
        settings.storage,
        settings.capacity,
        config.open_hosts(settings.hosts),
    )


def upload(pool: CloudManager, folder: str) -> int:
    """Store all files below `folder`; the number of failures."""
    paths = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in sorted(names))
    return sum(not result.hash or bool(result.waiting) for result in pool.upload_many(paths))


def download(pool: CloudManager, manifest: str, folder: str) -> int:
    """Bring all files of a manifest into `folder`, named by their hash; the number of failures."""
    lines = Path(manifest).read_text(encoding="utf-8").splitlines()
    hashes = [line.split(maxsplit=1)[0] for line in lines]
    os.makedirs(folder, exist_ok=True)
    wanted = ((sha256, os.path.join(folder, sha256)) for sha256 in hashes)
    results = pool.fetch_many(wanted, fill_cache=False)
    return sum(isinstance(outcome, Exception) for _, outcome in results)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.library")
    parser.add_argument("--config", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("upload").add_argument("folder")
    down = commands.add_parser("download")
    down.add_argument("manifest")
    down.add_argument("folder")
    options = parser.parse_args()
    with _open(options.config) as pool:
        if options.command == "upload":
            failures = upload(pool, options.folder)
        else:
            failures = download(pool, options.manifest, options.folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
