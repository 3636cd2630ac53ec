# SPDX-License-Identifier: Apache-2.0
"""bench/report: what it reads, what it says of it, and where it puts that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import report  # noqa: E402
from harness.procs import Record  # noqa: E402

DOCUMENT = "before\n<!-- bench/report: begin -->\nold\n<!-- bench/report: end -->\nafter\n"


def result(**changes: object) -> Record:
    return {"kind": "result", "bench": "demo", "metric": "rtt_p50_ratio", "value": 1.06, "spread": [1.04, 1.08],
            "unit": "ratio", "target": "<=1.1", "ok": True, "baseline": "udp", "size_bytes": 64, "mode": "busy",
            "cpus": 2, "base": 21430.0, "base_unit": "ns", "null": 0.99, "null_ok": True, "pairs": 15,
            "values": [1.06], **changes}  # fmt: skip


def write(folder: Path, *results: Record, **environment: object) -> Path:
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"bench": folder.name, "kernel": "6.1", **environment}))
    (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in results))
    return folder


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(21430.0, "ns", "21.4 µs"), (87.0, "ns", "87 ns"), (1.2346, "ratio", "1.23"), (8.1e9, "bits_per_s", "8.1 Gbit/s"),
     (26e6, "per_s", "26 M/s"), (0.06, "percent", "0.06 %"), (0.0, "messages", "0"), (None, "ns", "–")],
)  # fmt: skip
def test_quantities_are_for_a_person(value: float | None, unit: str, text: str) -> None:
    assert report.quantity(value, unit) == text


def test_table_has_a_line_for_each_result_and_says_what_became_of_it() -> None:
    missed = result(ok=False, target=">=0.9", value=0.5, spread=[0.4, 0.6])
    failed = result(ok=None, value=None, spread=None, error="ZeroMQ is not | installed")
    lines = report.table([result(), missed, failed]).splitlines()
    assert len(lines) == 5
    assert lines[2] == (
        "| rtt_p50_ratio | 64 B, busy, 2 CPUs | udp | 1.06 | 1.04 to 1.08 | 21.4 µs | 0.99 | <=1.1 | kept |"
    )
    assert lines[3].endswith("| **missed** |")
    assert "ZeroMQ is not / installed" in lines[4]
    assert lines[4].endswith("| undecided |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("target", "value", "spread", "wanted"),
    [("<=2", 1.0, [0.5, 4.0], (0.5, 0.25, 2.0)), (">=2", 4.0, [1.0, 8.0], (0.5, 0.25, 2.0)),
     ("<=0", 1.0, [1.0, 1.0], None), (None, 1.0, [1.0, 1.0], None), ("<=2", 1.0, [-1.0, 2.0], None)],
)  # fmt: skip
def test_distance_is_below_one_where_the_target_is_kept(
    target: str | None, value: float, spread: list[float], wanted: tuple[float, float, float] | None
) -> None:
    assert report.distance(result(target=target, value=value, spread=spread)) == wanted


def test_only_what_is_between_the_marks_is_replaced() -> None:
    filled = report.fill(DOCUMENT, r"new \1")
    assert filled == DOCUMENT.replace("old\n", "\nnew \\1\n")
    assert report.fill(filled, "newer").count("newer") == 1
    with pytest.raises(report.ReportError, match="begin"):
        report.fill("no marks", "new")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "report"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": "Agg"}, timeout=60)


def test_report_collects_several_benches(tmp_path: Path) -> None:
    one = write(tmp_path / "one", *(result(size_bytes=size) for size in (16, 64, 1024)), timed="All of it.")
    two = write(tmp_path / "two", result(ok=False), result(ok=None, value=None, spread=None, error="none"))
    docs = tmp_path / "performance.md"
    docs.write_text(DOCUMENT)
    done = run(two, one, "--out", tmp_path / "out", "--docs", docs)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"kind": "report", "benches": ["one", "two"], "kept": 3, "missed": 1, "undecided": 1}
    assert "values" not in lines[0]
    assert (tmp_path / "out" / "report.jsonl").read_text() == done.stdout
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index("### `bench/one`") < text.index("Timed: All of it.") < text.index("### `bench/two`")
    filled = docs.read_text()
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert "### `bench/two`" in filled
    if "no pictures" not in done.stderr:
        for picture in (report.TARGETS_FILE, report.SIZES_FILE):
            assert (tmp_path / "out" / picture).stat().st_size > 0
            assert f"](images/{picture})" in filled


def test_report_says_what_it_cannot_read(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}: not what --out of a bench wrote" in done.stderr
    docs = tmp_path / "plain.md"
    docs.write_text("no marks")
    assert run(write(tmp_path / "one", result()), "--docs", docs).returncode == 2
    assert docs.read_text() == "no marks"
