# SPDX-License-Identifier: Apache-2.0
"""What bench/tsn-failover reads of the commands it watches, and its picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from harness import failover, failover_plot  # noqa: E402


def test_half_a_line_waits_for_its_rest(tmp_path: Path) -> None:
    path = tmp_path / "heard"
    path.write_text('{"kind":"listener","received":1}\n{"kind":"lis')
    watched = failover.Watched(path)
    assert watched.counters()["received"] == 1
    with path.open("a") as file:
        file.write('tener","received":2}\n')
    assert watched.counters()["received"] == 2
    assert len(watched.read()) == 2


def test_the_agents_are_told_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    from tsn_agent import wanted

    from libqos import tomlfile

    class Host:
        def ip(self, *_: object) -> str:
            return '[{"address":"02:00:00:00:00:01"}]'

    told = {name: wanted.of_document(tomlfile.parse(text, name)) for name, text in failover.wanted(Host()).items()}
    (stream,) = told["talker"].streams
    assert [path.interface for path in stream.paths] == ["t1.10", "t2.20"]
    assert told["listener"].streams[0].tell == failover.AGENTS


def cut(cause: str, at_ms: int) -> dict[str, Any]:
    return {"kind": "cut", "row": f"{cause}-picture", "ts_ns": at_ms * 10**6, "from": "S1", "to": "S2",
            "downtime_ns": 10**7, "detected_ns": 10**6, "disturbed": False}  # fmt: skip


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records: list[dict[str, Any]] = []
    for cause in failover.CAUSES:
        records += [{"row": cause, "cuts": [cut(cause, number) for number in range(3)]}, cut(cause, 100)]
        records += [
            {"row": f"{cause}-picture", "kind": "latency", "ts_ns": at * 10**6, "latency_ns": 50_000}
            for at in (*range(50, 100), *range(110, 150))
        ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert failover_plot.draw(tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.tsn_kernel(simulated_time=True)
@pytest.mark.parametrize("cause", failover.CAUSES)
def test_a_stream_is_back_and_every_packet_known(cause: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A silent loss costs the packets that the listener waits for; a link that goes down one at most: that which leaves
    just then."""
    failover.inside(cause, 3, samples=False)
    *cuts, total = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert [(record["from"], record["to"]) for record in cuts] == [("S1", "S2"), ("S2", "S1"), ("S1", "S2")]
    lost = [record["lost"] for record in cuts]
    assert set(lost) <= ({failover.SILENCE, failover.SILENCE + 1} if cause == "silent-loss" else {0, 1})
    most = (failover.SILENCE + 1) * failover.CYCLE_NS if cause == "silent-loss" else 5_000_000
    assert max(record["detected_ns"] for record in cuts) < most
    assert max(record["downtime_ns"] for record in cuts) < 50_000_000
    assert (total["lost"], total["unaccounted"]) == (sum(lost), 0)
    assert (total["duplicated"], total["reordered"], total["failed"]) == (0, 0, 0)
