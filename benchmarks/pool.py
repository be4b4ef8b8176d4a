"""The project as a contender: a fresh pool, and the command lines that use it."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import BUCKET, CONTAINER, Azurite, S3Server

__all__ = ["Pool", "azure_host", "folder_host", "s3_host"]

_numbers = itertools.count()

Host = Mapping[str, str]
"""A host's name, URL and options, as ``config.toml`` has them."""


def s3_host(server: S3Server, *, port: int | None = None, prefix: str = "pool") -> Host:
    """An S3 host; `port` when something lies in between."""
    return {
        "name": "s3",
        "url": f"s3://{BUCKET}/{prefix}",
        "endpoint_url": f"http://127.0.0.1:{port or server.port}",
        "region": "us-east-1",
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
    }


def azure_host(server: Azurite, *, port: int | None = None) -> Host:
    return {
        "name": "azure",
        "url": f"azure://{CONTAINER}/pool",
        "connection_string": server.connection_string(port),
    }


def folder_host(folder: Path) -> Host:
    folder.mkdir(parents=True, exist_ok=True)
    return {"name": "folder", "url": str(folder)}


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool with a database, a cache and a configuration file in a folder of its own."""

    folder: Path
    config: Path

    @classmethod
    def make(
        cls, below: Path, hosts: Sequence[Host], *, capacity: int, database: Path | None = None
    ) -> Pool:
        """A pool with an empty cache, and a new catalog unless `database` is one."""
        folder = below / f"pool{next(_numbers)}"
        folder.mkdir(parents=True)
        lines = [
            f"database = {json.dumps(str(database or folder / 'catalog.sqlite3'))}",
            f"storage = {json.dumps(str(folder / 'storage'))}",
            f"capacity = {capacity}",
        ]
        for host in hosts:
            lines.append(f"[hosts.{host['name']}]")
            lines += [f"{key} = {json.dumps(host[key])}" for key in host if key != "name"]
        config = folder / "config.toml"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return cls(folder, config)

    @property
    def database(self) -> Path:
        return self.folder / "catalog.sqlite3"

    def cli(self, *arguments: str | Path) -> list[str]:
        """The command line program, as a user starts it."""
        program = Path(sys.executable).parent / "cloudmanager"
        return [str(program), "--config", str(self.config), *map(str, arguments)]

    def upload(self, source: Path, *, manifest: Path | None = None) -> list[str]:
        extra: list[str | Path] = [] if manifest is None else ["--manifest", manifest]
        return self.cli("upload", "-r", source, *extra)

    def download(self, manifest: Path, target: Path) -> list[str]:
        return self.cli("download", "--manifest", manifest, "-o", target)

    def library(self, *arguments: str | Path) -> list[str]:
        """The library, used by a program of a few lines."""
        return [
            *(sys.executable, "-m", "benchmarks.library", "--config", str(self.config)),
            *map(str, arguments),
        ]
