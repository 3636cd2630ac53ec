# SPDX-License-Identifier: Apache-2.0
"""demo/: the readings, how they are shown, and the whole demo for a second."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
PYTHON: Final = (sys.executable, "-P")


def test_readings() -> None:
    before = time.time_ns()
    command = [*PYTHON, str(ROOT / "demo/readings.py"), "--rate", "100000", "--count", "500"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=30)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 500
    metrics = {record["metric"] for record in records}
    assert {"cpu.0.busy_percent", "interrupts.count", "memory.available_bytes", "load.1min"} <= metrics
    times = [record["ts_ns"] for record in records]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < time.time_ns()
    for record in records:
        assert list(record) == ["kind", "ts_ns", "metric", "value"]
        assert record["kind"] == "reading"
        assert record["value"] >= 0
    busy = [record["value"] for record in records if record["metric"].endswith("busy_percent")]
    assert all(value <= 100 for value in busy)


def test_readings_end_with_their_reader() -> None:
    with subprocess.Popen(
        [*PYTHON, ROOT / "demo/readings.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_show() -> None:
    lines = b"".join(b"line %d\n" % number for number in range(100))
    done = subprocess.run([*PYTHON, ROOT / "demo/show.py", "3"], input=lines, capture_output=True, check=True)
    *shown, last = done.stdout.decode().splitlines()
    assert shown == ["  line 0", "  line 1", "  line 2"]
    assert last.startswith("  ... 100 lines in ")


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folder and environment of a demo, which must leave nothing behind."""
    out, temporary = tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    yield out, {
        **os.environ, "QOS_DEMO_SECONDS": "1", "QOS_DEMO_OUT": str(out), "QOS_DEMO_BIN": str(BIN),
        "TMPDIR": str(temporary),
    }  # fmt: skip
    assert list(temporary.iterdir()) == []


def test_demo(demo: tuple[Path, dict[str, str]]) -> None:
    out, environment = demo
    done = subprocess.run(
        [ROOT / "demo/run"], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(text) for line in done.stdout.splitlines() if (text := line.strip()).startswith("{")]
    assert [record["kind"] for record in records] == ["reading"] * 30 + ["summary"]
    assert (records[-1]["metric"], records[-1]["count"], records[-1]["lost"]) == ("latency", 1000, 0)
    assert f"picture: {out / 'latency-cdf.png'}" in done.stdout
    assert (out / "latency-cdf.png").read_bytes().startswith(b"\x89PNG")
    if names := re.findall(r"qosdemo-\d+-[ab]", done.stdout):
        listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
        assert not any(name in listing for name in names)
    else:
        assert "both on loopback" in done.stdout


def test_demo_without_set_up(demo: tuple[Path, dict[str, str]]) -> None:
    environment = {**demo[1], "QOS_DEMO_BIN": "/nonexistent"}
    done = subprocess.run([ROOT / "demo/run"], env=environment, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert 'run "make setup" first' in done.stderr


@pytest.mark.parametrize("seconds", ["0", "1.5", "-1", "ten"])
def test_demo_with_wrong_seconds(demo: tuple[Path, dict[str, str]], seconds: str) -> None:
    environment = {**demo[1], "QOS_DEMO_SECONDS": seconds}
    done = subprocess.run([ROOT / "demo/run"], env=environment, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1
    assert "accepted a whole number above 0" in done.stderr
