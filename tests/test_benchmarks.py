"""The benchmarks run: every case, in small, yields its ratios. Nothing here looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASES = [
    "small-up",
    "large-up",
    "small-down",
    "large-down",
    "two-hosts",
    "cached-hit",
    "exists",
    "full-cache",
    "memory",
]
MISSING = 3


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def measure(case: str, folder: Path) -> tuple[dict[str, object], str]:
    """Run one case in small; what it wrote as JSON, and as a page."""
    figures, page = folder / "figures.json", folder / "page.md"
    outputs = ("--json", str(figures), "--markdown", str(page), "--folder", str(folder))
    done = run("--quick", "--rounds", "1", "--cases", case, *outputs)
    if done.returncode == MISSING:
        needed = any(os.environ.get(n) for n in ("CI", "CLOUDMANAGER_TEST_REQUIRE_SERVERS"))
        (pytest.fail if needed else pytest.skip)(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_a_case_yields_a_ratio_for_each_of_its_goals(case: str, tmp_path: Path) -> None:
    figures, page = measure(case, tmp_path)
    goals = figures["goals"]
    assert isinstance(goals, list)
    assert goals
    for goal in goals:
        assert goal["case"] == case
        assert goal["ratio"] > 0
        assert goal["verdict"] in ("reached", "missed")
        assert f"| {goal['title']} |" in page
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"figures.json", "page.md"}, "what a run made is deleted"


def test_an_unknown_case_is_refused_with_the_names_of_those_there_are() -> None:
    done = run("--cases", "small-up,nothing")
    assert done.returncode == 2
    assert "'nothing'" in done.stderr
    # So a case that is added must be added to the list of this file too.
    assert f"there are {', '.join(CASES)}\n" in done.stderr
