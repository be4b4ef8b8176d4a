"""The real program in a process of its own, with a home of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANGS = 120
"""Seconds after which a process is taken to hang. No test expects anything about time."""


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.decode("utf-8", "surrogateescape").splitlines()

    @property
    def objects(self) -> list[Any]:
        """Every line of stdout as the JSON object that it must be."""
        found = [json.loads(line) for line in self.stdout.decode().splitlines()]
        assert all(isinstance(each, dict) for each in found)
        return found

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("cloudmanager: ")
        return lines[0]


class Program:
    """``python -m cloudmanager`` with everything it keeps below `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.patience = HANGS
        self.work = home / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.data = home / "data" / "cloudmanager"
        self.config = home / "config" / "cloudmanager" / "config.toml"
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "LANG": "C.UTF-8",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(
        self,
        *arguments: str | bytes | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        module: str = "cloudmanager",
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start it; stdin is empty, stdout and stderr are pipes unless `options` say else."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-m", module, *(os.fsencode(each) for each in arguments)],
            env={**self.environment, **(env or {})},
            **{"cwd": self.work, **pipes, **options},
        )

    def __call__(
        self,
        *arguments: str | bytes | os.PathLike[str],
        code: int = 0,
        stdin: bytes = b"",
        **kw: Any,
    ) -> Done:
        """Run it to its end; the exit code must be `code`, and no traceback shown unasked."""
        process = self.start(*arguments, stdin=subprocess.PIPE, **kw)
        done = self.end(process, stdin)
        assert done.code == code, f"exit code {done.code}, stderr:\n{done.stderr}"
        assert "Traceback" not in done.stderr or "--debug" in arguments
        return done

    def end(self, process: subprocess.Popen[bytes], stdin: bytes = b"") -> Done:
        """Wait for the end of a started one."""
        try:
            stdout, stderr = process.communicate(stdin or None, timeout=self.patience)
        finally:
            process.kill()
        return Done(process.returncode, stdout or b"", (stderr or b"").decode())

    def file(self, name: str | bytes, content: bytes | str = b"content") -> str:
        """Write a file in the working folder; its SHA-256."""
        data = content.encode() if isinstance(content, str) else content
        path = self.work / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    def configure(self, text: str) -> None:
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(text)


def wait_until(what: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until `what()` is true; fails when the process ends before."""
    limit = time.monotonic() + HANGS
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)
