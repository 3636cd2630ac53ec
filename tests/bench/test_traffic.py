# SPDX-License-Identifier: Apache-2.0
"""What bench/tsn-traffic makes of what talker and listener say, and its picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import traffic, traffic_plot  # noqa: E402


def records(received: int, lost: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    sent = [{"kind": "talker", "stream": "S1", "final": True, "sent": 10, "skipped": 0, "failed": 0}]
    heard: list[dict[str, Any]] = [
        {"kind": "latency", "stream": "S1", "latency_ns": 100 + number, **({"jitter_ns": number} if number else {})}
        for number in range(received)
    ]
    heard.append({"kind": "latency", "stream": "S2", "latency_ns": 10**9})
    heard.append({
        "kind": "listener", "stream": "S1", "final": True, "received": received, "lost": lost, "late": 1, "early": 0,
        "timestamps": {"software": received},
    })  # fmt: skip
    return sent, heard


@pytest.mark.parametrize(("received", "lost", "unaccounted"), [(10, 0, 0), (8, 2, 2), (9, 0, 1)])
def test_what_is_missing_is_counted(received: int, lost: int, unaccounted: int) -> None:
    found = traffic.summary("S1", 64, 10, *records(received, lost))
    assert (found["unaccounted"], found["lost"], found["outside"]) == (unaccounted, lost, 1)
    assert (found["latency_min_ns"], found["latency_max_ns"]) == (100, 99 + received)
    assert found["jitter_min_ns"] == 1


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    made = [
        {**traffic.summary("S1", size, 10, *records(10, 0)), "path": path} for size in (32, 64) for path in ("S1", "S2")
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made[:-1]))
    (tmp_path / "environment.json").write_text(json.dumps({"count": 10, "link": "none"}))
    assert traffic_plot.draw(tmp_path).read_bytes().startswith(b"\x89PNG")
