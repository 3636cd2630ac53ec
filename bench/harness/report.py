# SPDX-License-Identifier: Apache-2.0
"""What several benches found, in one table and two pictures.

Reads the folders that ``--out`` wrote. The table is Markdown; between two marks in a document it replaces what was
there, so that docs/performance.md can be filled anew without touching its prose.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.procs import Record
from harness.stats import Target

LABELS = ("size_bytes", "session", "mode", "cpus", "sinks", "burst", "rate_per_s")
WORDS = {True: "kept", False: "**missed**", None: "undecided"}
UNITS = {"ratio": "", "percent": " %", "per_s": "/s", "messages_per_s": "/s", "bits_per_s": " bit/s", "messages": ""}
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
TARGETS_FILE, SIZES_FILE = "bench-targets.png", "bench-sizes.png"
MARKS = re.compile(r"(<!-- bench/report: begin -->\n).*?(<!-- bench/report: end -->)", re.DOTALL)


class ReportError(Exception):
    """A folder or document that cannot be used; the message says why."""


@dataclass(frozen=True)
class Findings:
    """What one bench left: its environment and its results."""

    environment: dict[str, Any]
    results: Sequence[Record]

    @property
    def name(self) -> str:
        """The name of the bench."""
        return str(self.environment["bench"])


def load(folder: Path) -> Findings:
    """Read the folder of a bench; raises ReportError if it is not one."""
    try:
        environment = json.loads((folder / "environment.json").read_text())
        results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
        return Findings(environment, results) if environment["bench"] else Findings({}, [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder}: not what --out of a bench wrote: {error}") from error


def quantity(value: float | None, unit: str) -> str:
    """Return ``value`` for a person: three digits, a prefix for large ones, the unit."""
    if value is None:
        return "–"
    if unit == "ns":
        return f"{value / 1000:.3g} µs" if abs(value) >= 1000 else f"{value:.3g} ns"
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{UNITS.get(unit, ' ' + unit).lstrip()}".rstrip()
    return f"{value:.3g}{UNITS.get(unit, ' ' + unit)}"


def row_of(result: Record) -> str:
    """Return what distinguishes a result from the others of its metric."""
    parts = []
    for key in LABELS:
        if key in result:
            value = result[key]
            parts.append({"size_bytes": f"{value} B", "cpus": f"{value} CPU{'s' if value != 1 else ''}",
                          "sinks": f"{value} sinks", "burst": f"bursts of {value}", "rate_per_s": f"{value}/s"}
                         .get(key, str(value)))  # fmt: skip
    return ", ".join(parts)


def verdict_of(result: Record) -> str:
    """Return the verdict in a word; empty where there is no target."""
    return WORDS[result["ok"]] if result.get("target") else ""


def table(results: Iterable[Record]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| figure | row | beside | value | 90 % interval | beside itself | null test | target | |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in results:
        unit = r.get("unit", "ratio")
        spread = " to ".join(quantity(end, unit) for end in r["spread"]) if r["spread"] else r.get("error", "–")
        base = quantity(r.get("base"), r.get("base_unit", "")) if "base" in r else "–"
        cells = [r["metric"], row_of(r), r["baseline"] or "–", quantity(r["value"], unit), spread, base,
                 quantity(r.get("null"), "ratio"), r.get("target") or "–", verdict_of(r)]  # fmt: skip
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def counted(findings: Sequence[Findings]) -> Counter[str]:
    """Return how many targets were kept, missed, and left undecided."""
    return Counter(verdict_of(r).strip("*") for f in findings for r in f.results if r.get("target"))


def markdown(findings: Sequence[Findings], pictures: Sequence[str] = ()) -> str:
    """Return the whole report; ``pictures`` are addresses of images to show."""
    count = counted(findings)
    parts = [f"Targets: {count['kept']} kept, {count['missed']} missed, {count['undecided']} undecided."]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in pictures]
    for f in findings:
        e = f.environment
        runs = sorted({r["pairs"] for r in f.results if "pairs" in r})
        spread = f"{runs[0]} pairs a row" if len(runs) == 1 else f"{runs[0]} to {runs[-1]} pairs a row" if runs else ""
        rows = {(row_of(r), r["baseline"]): r for r in f.results}.values()
        again, disturbed = (sum(r.get(key, 0) for r in rows) for key in ("again", "disturbed"))
        spread += f", {again} made again and {disturbed} disturbed by stolen time" if again or disturbed else ""
        revision = f"revision {str(e.get('revision'))[:12]}{' (changed)' if e.get('revision_changed') else ''}"
        facts = [e.get("cpu_model"), f"{len(e.get('cpus_usable', []))} CPUs", f"Linux {e.get('kernel')}",
                 e.get("compiler"), e.get("link"), spread, f"load {e['load'][0]:.2g}" if "load" in e else None,
                 revision]  # fmt: skip
        parts += [f"### `bench/{f.name}`", ", ".join(str(fact) for fact in facts if fact) + "."]
        parts += [f"{label}: {e[key]}" for label, key in (("Timed", "timed"), ("Placed", "placed")) if key in e]
        parts.append(table(f.results))
    return "\n\n".join(parts) + "\n"


def fill(document: str, text: str) -> str:
    """Return ``document`` with ``text`` between its marks; raises ReportError if it has none."""
    filled, times = MARKS.subn(lambda found: f"{found[1]}\n{text}\n{found[2]}", document)
    if times != 1:
        raise ReportError("one '<!-- bench/report: begin -->' and one '<!-- bench/report: end -->' are wanted")
    return filled


def distance(result: Record) -> tuple[float, float, float] | None:
    """Return value and interval relative to the target, where less than 1 keeps it; None if that cannot be said."""
    if not result.get("target") or not result["value"]:
        return None
    target = Target.parse(result["target"])
    ends = (result["value"], *result["spread"])
    if target.limit <= 0 or min(ends) <= 0:
        return None
    if target.operator in ("<", "<="):
        value, low, high = (end / target.limit for end in ends)
        return value, low, high
    value, high, low = (target.limit / end for end in ends)
    return value, low, high


def draw_targets(findings: Sequence[Findings], file: Path) -> None:
    """Draw every judged row as its distance from the target; raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(f.name, r, d) for f in findings for r in f.results if (d := distance(r)) is not None]
    figure, axis = pyplot.subplots(figsize=(11, 1.2 + 0.22 * max(1, len(rows))))
    colours = {True: "tab:green", False: "tab:red", None: "tab:gray"}
    for y, (_, result, (value, low, high)) in enumerate(rows):
        axis.plot([low, high], [y, y], color=colours[result["ok"]], lw=3, alpha=0.5)
        axis.plot([value], [y], "o", ms=4, color=colours[result["ok"]])
    axis.axvline(1, color="black", lw=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [f"{name}: {r['metric']}, {row_of(r)} / {r['baseline']}" for name, r, _ in rows],
                    fontsize=7)  # fmt: skip
    axis.invert_yaxis()
    axis.set_xlabel("distance from the target (left of 1: kept); band: 90 % interval; grey: undecided")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def draw_sizes(findings: Sequence[Findings], file: Path) -> bool:
    """Draw what was measured at three sizes or more over the size; whether there was anything."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    panels: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for f in findings:
        for r in f.results:
            if r["value"] is not None and "size_bytes" in r and r["metric"] != "lost":
                labels = [str(r[key]) for key in LABELS[1:] if key in r]
                name = f"{', '.join(labels)} / {r['baseline']}"
                panels.setdefault((f.name, r["metric"]), {}).setdefault(name, []).append(r)
    kept = {p: s for p, s in panels.items() if max(len({r["size_bytes"] for r in rows}) for rows in s.values()) >= 3}
    if not kept:
        return False
    figure, axes = pyplot.subplots(len(kept), 1, figsize=(9, 3.4 * len(kept)), squeeze=False)
    for axis, ((bench, metric), series) in zip(axes.flat, kept.items(), strict=True):
        for label, unsorted in series.items():
            rows = sorted(unsorted, key=lambda r: r["size_bytes"])
            values = [r["value"] for r in rows]
            errors = [[v - r["spread"][0] for v, r in zip(values, rows, strict=True)],
                      [r["spread"][1] - v for v, r in zip(values, rows, strict=True)]]  # fmt: skip
            axis.errorbar([r["size_bytes"] for r in rows], values, yerr=errors, marker="o", capsize=3, label=label)
        axis.set_xscale("log", base=2)
        axis.set_title(f"{bench}: {metric}", fontsize=9)
        axis.set_xlabel("message size, bytes", fontsize=8)
        axis.set_ylabel(next(iter(series.values()))[0]["unit"], fontsize=8)
        axis.yaxis.set_major_formatter(ticker.EngFormatter())
        axis.legend(fontsize=6)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
    return True


def draw(findings: Sequence[Findings], folder: Path) -> list[str]:
    """Draw both pictures into ``folder`` and return their names; raises ImportError without matplotlib."""
    draw_targets(findings, folder / TARGETS_FILE)
    return [TARGETS_FILE, SIZES_FILE] if draw_sizes(findings, folder / SIZES_FILE) else [TARGETS_FILE]
