# SPDX-License-Identifier: Apache-2.0
"""Draw what bench/tsn-traffic wrote as figure 4.7 of the thesis is drawn: jitter and latency, a box per payload size
and path.

``cd bench && python -m harness.traffic_plot DIR`` draws it again. Needs matplotlib, which is imported only here.
"""

import json
import sys
from pathlib import Path
from typing import Any

FILE = "traffic.png"
COLOURS = {"S1": "#0072B2", "S2": "#D55E00"}  # Okabe and Ito's palette, as in qos-plot
WHISKERS = ("p1", "p25", "p50", "p75", "p99")


def _box(records: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return the figures of a box: the medians over the runs."""
    low, first, middle, third, high = (
        sorted(record[f"{metric}_{key}_ns"] for record in records)[len(records) // 2] / 1000 for key in WHISKERS
    )
    return {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "fliers": []}


def draw(folder: Path) -> Path:
    """Draw ``folder`` and return the picture's path; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    environment = json.loads((folder / "environment.json").read_text())
    sizes = sorted({record["size_bytes"] for record in records})
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for axis, metric in zip(axes, ("jitter", "latency"), strict=True):
        for place, (path, colour) in zip((-0.18, 0.18), COLOURS.items(), strict=True):
            found = {size: [r for r in records if (r["path"], r["size_bytes"]) == (path, size)] for size in sizes}
            at = [number + place for number, size in enumerate(sizes) if found[size]]
            if not at:
                continue
            boxes = [_box(found[size], metric) for size in sizes if found[size]]
            # In the colour of the path: where nothing varies, the line is all that is seen of a box.
            axis.bxp(boxes, positions=at, widths=0.3, patch_artist=True, showfliers=False, label=path,
                     boxprops={"facecolor": colour, "alpha": 0.5, "edgecolor": colour},
                     medianprops={"color": colour, "linewidth": 2.5}, whiskerprops={"color": colour},
                     capprops={"color": colour})  # fmt: skip
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set_xlabel("payload, bytes")
        axis.set_ylabel(f"{metric}, µs")
        axis.grid(alpha=0.3, axis="y")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="upper right", fontsize=9)
    axes[1].set_ylim(bottom=0)
    figure.suptitle(
        f"tsn-traffic: {environment['count']} packets a box, cycle 1 ms; {environment['link']}\n"
        "box p25 to p75, line p50, whiskers p1 to p99; S1 through one switch, S2 through two",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(folder / FILE, dpi=120)
    pyplot.close(figure)
    return folder / FILE


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
