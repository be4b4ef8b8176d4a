"""The example of a third party's host: installed from its package, and used as any other."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cloudmanager

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "sqlite-host"
PAGE = ROOT / "docs" / "writing-a-host.md"


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example is installed, and nothing else is different."""
    base = tmp_path_factory.mktemp("example")
    source, site = base / "source", base / "site"
    shutil.copytree(EXAMPLE, source)  # setuptools writes beside what it builds
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-index", "--no-build-isolation", "--target", str(site)),
            str(source),
        ],
        check=True,
        timeout=250,
    )
    shutil.rmtree(source)
    package = Path(cloudmanager.__file__).parents[1]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return {
        **environment,
        "PYTHONPATH": f"{site}{os.pathsep}{package}",
        "HOME": str(base),
        "XDG_DATA_HOME": str(base / "data"),
        "XDG_CONFIG_HOME": str(base / "config"),
    }


def run(surroundings: dict[str, str], folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_the_example_passes_the_kit_untouched(surroundings: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "test_sqlite_host.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    printed = run(surroundings, tmp_path, "pytest", "-q", "-p", "no:cacheprovider")
    passed = re.search(r"^(\d+) passed in ", printed, re.MULTILINE)  # and none skipped
    assert passed, printed
    assert int(passed.group(1)) > 60


def test_the_pool_uses_the_example_through_its_entry_point(
    surroundings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"in an archive")
    (tmp_path / "config.toml").write_text(
        f'[hosts.archive]\nurl = "sqlite://{tmp_path}/archive.db"\ncreate = true\n'
    )
    sha256 = hashlib.sha256(b"in an archive").hexdigest()
    program = ("cloudmanager", "--config", "config.toml", "--database", "catalog.db")
    first = (*program, "--storage", "one")
    run(surroundings, tmp_path, *first, "host", "test")
    assert sha256 in run(surroundings, tmp_path, *first, "upload", "file")
    # Another cache: the bytes can only come from the host.
    other = (*program, "--storage", "two")
    assert run(surroundings, tmp_path, *other, "cat", sha256) == "in an archive"


def test_the_code_of_the_page_is_that_of_the_package() -> None:
    found = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    shown = [line for kind, text in found if kind == "python" for line in text.splitlines()]
    files = ("cloudmanager_sqlite.py", "test_sqlite_host.py")
    written = [line for name in files for line in (EXAMPLE / name).read_text("utf-8").splitlines()]
    assert [line for line in shown if line] == [line for line in written if line]
    (toml,) = [text for kind, text in found if kind == "toml"]
    assert toml == (EXAMPLE / "pyproject.toml").read_text("utf-8")
