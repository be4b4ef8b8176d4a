"""A disk with hosts and pools for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from manager.world import World


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever runs the tests may have hosts and credentials configured: none of them counts."""
    for name in list(os.environ):
        if name.startswith(("CLOUDMANAGER_", "AWS_", "AZURE_", "XDG_")) and "_TEST_" not in name:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()
