# SPDX-License-Identifier: Apache-2.0
"""How tests under the TSN kernel are reported on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
CONFTEST: Final = """\
import os
from tests.testbed import plugin

def pytest_configure(config):
    plugin.install(config, set(os.environ.get("REQUIRED", "").split()))
"""
TESTS: Final = """\
import os
from pathlib import Path
import pytest

@pytest.fixture(scope="module")
def once():
    Path("once").write_text(str(os.getpid()))
    return os.getpid()

def test_on_the_host():
    assert "QOS_IN_TSN_KERNEL" not in os.environ

@pytest.mark.tsn_kernel
def test_passes(once):
    assert "QOS_IN_TSN_KERNEL" in os.environ

@pytest.mark.tsn_kernel
@pytest.mark.parametrize("number", [1, 2])
def test_fails(once, number):
    assert number == 2, "not two"

@pytest.mark.tsn_kernel
def test_skips():
    pytest.skip("for a reason")

def test_on_the_host_too():
    assert not Path("once").exists()

@pytest.mark.tsn_kernel
def test_ends_it():
    os._exit(3)

@pytest.mark.tsn_kernel
def test_never_came():
    pass
"""


def outcomes(folder: Path, environment: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """What became of each of TESTS, and what pytest printed."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "--junitxml=junit",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [*command, "-rs"], cwd=folder, env=environment, capture_output=True, text=True, timeout=55, check=False
    )
    cases = ElementTree.parse(folder / "junit").iter("testcase")
    return {case.attrib["name"]: case[0].tag if len(case) else "passed" for case in cases}, done.stdout + done.stderr


@pytest.mark.needs_tsn
def test_outcomes_are_those_under_the_kernel(tmp_path: Path) -> None:
    found, printed = outcomes(tmp_path, {})
    assert found == {
        "test_on_the_host": "passed",
        "test_passes": "passed",
        "test_fails[1]": "failure",
        "test_fails[2]": "passed",
        "test_skips": "skipped",
        "test_on_the_host_too": "passed",
        "test_ends_it": "failure",
        "test_never_came": "failure",
    }
    assert "AssertionError: not two" in printed
    assert "for a reason" in printed
    assert "the TSN kernel ended before this test had" in printed


def test_without_a_kernel_they_are_skipped_and_where_it_is_required_they_fail(tmp_path: Path) -> None:
    nowhere = {"QOS_TSN_KERNEL": "/does/not/exist"}
    names = ("test_on_the_host", "test_passes", "test_never_came")
    found, printed = outcomes(tmp_path, nowhere)
    assert [found[name] for name in names] == [
        "passed",
        "skipped",
        "skipped",
    ]
    assert "needs the TSN kernel" in printed
    found, printed = outcomes(tmp_path, {**nowhere, "REQUIRED": "tsn"})
    assert [found[name] for name in names] == [
        "passed",
        "failure",
        "failure",
    ]
    assert "QOS_REQUIRE names tsn" in printed
