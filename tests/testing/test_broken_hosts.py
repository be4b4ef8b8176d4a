"""The kit catches lies: every broken host fails the test of the kit that it must fail.

All of them are run once, in one process of their own; what failed is judged here. Were a
test taken out of the kit, or did it no longer see anything, a lie would go uncaught.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest
from testing.lies import LIES

from cloudmanager.testing import HostConformance

ROOT = Path(__file__).resolve().parents[2]


def run_kit(report: Path) -> dict[str, set[str]]:
    """For each broken host, the tests of the kit that it fails."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests/testing/lies.py"),
            *("-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=no", "-r", ""),
            # What fails is all that counts: no time for saying how two values differ.
            "--assert=plain",
            *("-o", "junit_family=xunit1", f"--junitxml={report}"),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout[-3000:]
    failed: dict[str, set[str]] = defaultdict(set)
    for case in ET.parse(report).iter("testcase"):
        name = case.attrib["classname"].rpartition(".")[2]
        failed[name].update()
        if case.find("failure") is not None or case.find("error") is not None:
            failed[name].add(case.attrib["name"].partition("[")[0])
    return failed


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    return run_kit(tmp_path_factory.mktemp("kit") / "report.xml")


@pytest.mark.parametrize("name", sorted(LIES))
def test_the_lie_is_caught_by_the_test_that_is_about_it(
    failed: dict[str, set[str]], name: str
) -> None:
    assert LIES[name].catcher in failed[name]
    if LIES[name].only:
        assert failed[name] == {LIES[name].catcher}


def test_every_test_of_the_kit_catches_a_lie() -> None:
    tests = {name for name in dir(HostConformance) if name.startswith("test_")}
    assert tests == {each.catcher for each in LIES.values()}
