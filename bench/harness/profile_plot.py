# SPDX-License-Identifier: Apache-2.0
"""Draw what bench/profile found: a picture for each row, as PNG and as SVG.

``cd bench && python -m harness.profile_plot DIR`` draws it again; ``python -m harness.profile_plot PICTURE DIR...``
draws what each CPU did in all rows of several folders, side by side. Needs matplotlib, which is imported only here.
"""

import json
import sys
from pathlib import Path
from typing import Any

from harness.procs import Record
from harness.profile import SIDES
from harness.stacks import AWAY, GROUPS

COLOURS = {
    "application": "#4c78a8", "library": "#f58518", "datapath": "#e45756", "libc": "#9d755d", "system_call": "#b279a2",
    "network": "#54a24b", "event": "#72b7b2", "scheduler": "#eeca3b", "interrupt": "#ff9da6", "kernel": "#79706e",
    "idle": "#e8e8e8", "other": "#bab0ac",
}  # fmt: skip
FUNCTIONS = 24
PALE = 0.35


def _micros(ns: float) -> str:
    return f"{ns / 1000:.2f} µs" if abs(ns) >= 1000 else f"{ns:.0f} ns"


def _sum(records: list[Record], **wanted: str) -> float:
    return float(sum(r["ns"] for r in records if wanted.items() <= r.items()))


def _columns(axis: Any, shares: list[Record], of: dict[str, Record]) -> None:
    """What each CPU did, to the full height of a round trip or message."""
    cpus = sorted({r["cpu"] for r in shares})
    bars = [(cpu, side) for cpu in cpus for side in SIDES]
    for place, (cpu, side) in enumerate(bars):
        x, bottom = place + 0.5 * (place // 2), 0.0
        for group in GROUPS:
            ns = sum(r["ns"] for r in shares if (r["cpu"], r["side"], r["group"]) == (cpu, side, group))
            axis.bar(x, ns / 1000, 0.85, bottom / 1000, color=COLOURS[group], edgecolor="white", linewidth=0.5)
            bottom += ns
        axis.text(x, bottom / 1000, f"{_micros(bottom)}\n", ha="center", va="center", fontsize=8)
    axis.set_xticks([place + 0.5 * (place // 2) for place in range(len(bars))],
                    [f"{of[side]['program']}\nCPU {cpu}" for cpu, side in bars],
                    fontsize=8)  # fmt: skip
    axis.set_ylabel(f"µs per {of['project']['operation']}, mean")
    axis.set_ylim(0, 1.06 * axis.get_ylim()[1])  # the figure on the highest bar stays below the title
    axis.set_title("what each CPU did", fontsize=10)


def _pairs(axis: Any, rows: list[Any]) -> None:
    """Two bars for each of ``rows`` (name, group, baseline's ns, project's ns), and the difference in words.

    The time of idling and of others may be longer than all else, and is cut off then.
    """
    most = max((max(pair) for _, group, *pair in rows if group not in AWAY), default=1.0) / 1000
    for y, (_, group, before, after) in enumerate(rows):
        axis.barh(y - 0.2, before / 1000, 0.36, color=COLOURS[group], alpha=PALE, edgecolor="black", linewidth=0.4)
        axis.barh(y + 0.2, after / 1000, 0.36, color=COLOURS[group], edgecolor="black", linewidth=0.4)
        sign = "+" if after >= before else "−"
        axis.text(
            min(max(before, after) / 1000, most) + most * 0.02,
            y,
            f"{sign}{_micros(abs(after - before))}",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.7},
        )
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=8)
    axis.set_xlim(0, most * 1.25)
    axis.invert_yaxis()


def draw_row(row: str, records: list[Record], environment: Record, folder: Path) -> list[Path]:
    """Draw one row into ``folder`` and return the pictures; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    of = {r["side"]: r for r in records if r["kind"] == "profile"}
    shares = [r for r in records if r["kind"] == "share"]
    functions = [r for r in records if r["kind"] == "function"]
    present = [group for group in GROUPS if any(r["group"] == group for r in shares)]
    named = dict.fromkeys((r["function"], r["group"]) for r in functions if r["group"] not in AWAY)
    pairs = [
        (name, group, *(_sum(functions, side=side, group=group, function=name) for side in SIDES))
        for name, group in named
    ]
    pairs = sorted(pairs, key=lambda pair: (-abs(pair[3] - pair[2]), pair[0]))[:FUNCTIONS]
    figure, (columns, groups, detail) = pyplot.subplots(
        1, 3, figsize=(17, 7.5), width_ratios=(1 + 0.5 * (len({r["cpu"] for r in shares}) - 1), 1.5, 1.8)
    )
    _columns(columns, shares, of)
    _pairs(groups, [(GROUPS[g], g, *(_sum(shares, side=side, group=g) for side in SIDES)) for g in reversed(present)])
    groups.set_title(
        f"the same by group, all CPUs (pale: {of['baseline']['program']}, full: {of['project']['program']})",
        fontsize=10,
    )
    _pairs(detail, pairs)
    detail.set_title(f"the {len(pairs)} functions that differ most", fontsize=10)
    for axis in (groups, detail):
        axis.set_xlabel(f"µs per {of['project']['operation']}")
    for axis in (columns, groups, detail):
        axis.spines[["top", "right"]].set_visible(False)
    counted = ", ".join(f"{r['program']} {r['runs']} runs, {r['samples']} samples"
                        for r in of.values())  # fmt: skip
    figure.suptitle(f"{environment['bench']} {row}: where the time goes\n{counted}; {environment['cpu_model']}, "
                    f"Linux {environment['kernel']}", fontsize=11)  # fmt: skip
    figure.tight_layout()
    files = [folder / f"{row}.{suffix}" for suffix in ("png", "svg")]
    for file in files:
        figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return files


def _read(folder: Path) -> tuple[Record, dict[str, list[Record]]]:
    """The environment, and the records of each row."""
    environment, *records = [json.loads(line) for line in (folder / "profile.jsonl").read_text().splitlines()]
    rows = dict.fromkeys(record["row"] for record in records)
    return environment, {row: [r for r in records if r["row"] == row] for row in rows}


def draw(folder: Path) -> list[Path]:
    """Draw every row in ``folder``/profile.jsonl, and return the pictures; raises ImportError without matplotlib."""
    environment, rows = _read(folder)
    return [file for row, records in rows.items() for file in draw_row(row, records, environment, folder)]


def draw_together(picture: Path, folders: list[Path]) -> None:
    """Draw what each CPU did in every row of ``folders`` into one picture; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    rows = [
        (f"{environment['bench']}\n{row}", records)
        for environment, of_folder in map(_read, folders)
        for row, records in of_folder.items()
    ]
    wide = min(5, len(rows))
    high = -(-len(rows) // wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(3.6 * wide, 3.9 * high + 0.8), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, (title, records) in zip(axes.flat, rows, strict=False):
        _columns(
            axis,
            [r for r in records if r["kind"] == "share"],
            {r["side"]: r for r in records if r["kind"] == "profile"},
        )
        axis.set_title(title, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    present = [group for group in GROUPS if any(r.get("group") == group for _, records in rows for r in records)]
    figure.legend(handles=[patches.Patch(color=COLOURS[group], label=GROUPS[group]) for group in present],
                  loc="lower center", ncols=6, fontsize=9, frameon=False)  # fmt: skip
    figure.tight_layout(rect=(0, 0.7 / (3.9 * high + 0.8), 1, 1))
    figure.savefig(picture, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        draw_together(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
    else:
        for file in draw(Path(sys.argv[1])):
            print(file)
