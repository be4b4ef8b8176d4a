"""A fresh home for every test of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home")


@pytest.fixture
def another(tmp_path: Path) -> Callable[[str], Program]:
    """The program in one more home, that of another user or machine."""
    return lambda name: Program(tmp_path / name)
