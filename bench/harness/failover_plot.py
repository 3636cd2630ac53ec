# SPDX-License-Identifier: Apache-2.0
"""Draw what bench/tsn-failover wrote as figure 4.8 of the thesis is drawn: latency of packets before and after a
fail-over; and beside it how long the stream was away, of all cuts.

``cd bench && python -m harness.failover_plot DIR`` draws it again. Needs matplotlib, which is imported only here.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = "failover.png"
COLOURS = {"S1": "#0072B2", "S2": "#D55E00"}  # Okabe and Ito's palette, as in qos-plot
AROUND_NS = 60_000_000


def _packets(axis: Any, records: list[dict[str, Any]], cause: str) -> None:
    """Draw the packets around the cut that was recorded for it."""
    (cut,) = [record for record in records if record["kind"] == "cut"]
    near = sorted(
        (record["ts_ns"] - cut["ts_ns"], record["latency_ns"]) for record in records
        if record["kind"] == "latency" and abs(record["ts_ns"] - cut["ts_ns"]) < AROUND_NS
    )  # fmt: skip
    # the gap is where the stream was away: what came before it took the first path
    gap = max(range(1, len(near)), key=lambda place: near[place][0] - near[place - 1][0])
    for name, part in ((cut["from"], near[:gap]), (cut["to"], near[gap:])):
        axis.plot([at / 1e6 for at, _ in part], [value / 1e3 for _, value in part], ".", markersize=4,
                  color=COLOURS[name], label=f"by {name}")  # fmt: skip
    axis.axvline(0, color="black", linewidth=1, linestyle=":")
    axis.set_title(f"{cause}: away for {cut['downtime_ns'] / 1e6:.1f} ms", fontsize=9)
    axis.set_xlabel("since the cut, ms")
    axis.set_ylabel("latency, µs")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")


def draw(folder: Path) -> Path:
    """Draw ``folder`` and return the picture's path; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    causes = [cause for cause in ("silent-loss", "link-down") if any(r["row"] == cause for r in records)]
    figure, axes = pyplot.subplots(1, len(causes) + 1, figsize=(5 * (len(causes) + 1), 4.2), squeeze=False)
    for axis, cause in zip(axes[0], causes, strict=False):
        _packets(axis, [record for record in records if record["row"] == f"{cause}-picture"], cause)
    last = axes[0][-1]
    for cause, colour in zip(causes, COLOURS.values(), strict=False):
        cuts = [cut for r in records if r["row"] == cause for cut in r["cuts"] if not cut["disturbed"]]
        for key, what, style in (("downtime_ns", "away", "-"), ("detected_ns", "until the alarm", "--")):
            values = sorted(cut[key] / 1e6 for cut in cuts)
            shares = [(place + 1) / len(values) for place in range(len(values))]
            last.step(values, shares, style, where="post", color=colour, label=f"{cause}: {what}")
    last.set_title("of all cuts", fontsize=9)
    last.set_xlabel("ms")
    last.set_ylabel("share of cuts")
    last.set_xlim(left=0)
    last.grid(alpha=0.3)
    last.legend(fontsize=8, loc="center right")
    figure.suptitle("tsn-failover: cycle 1 ms, two switches on each path; a point is a packet", fontsize=10)
    figure.tight_layout()
    figure.savefig(folder / FILE, dpi=120)
    pyplot.close(figure)
    return folder / FILE


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
