# SPDX-License-Identifier: Apache-2.0
"""Figures by matplotlib, to PNG or SVG. Imported only when one is drawn: it costs half a second."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from libqos.plotting import series as data
from libqos.plotting.series import PlotError, Series
from libqos.table import format_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

# Okabe and Ito's palette: told apart with any colour vision. Beyond it the line style changes too.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: Final = ("-", "--", ":", "-.", (0, (5, 1)))
GREY: Final = "#5f6368"
_LABEL_LENGTH: Final = 40

MISSING: Final = (
    'figures need matplotlib, which is not installed; install it with: pip install "qos-continuum[plot]" '
    "(or write gnuplot files with --gnuplot, which needs nothing)"
)


class MissingError(PlotError):
    """matplotlib is not there: not the user's mistake."""

    exit_code = 1


def check_available() -> None:
    """Raises MissingError, before any time is spent on reading."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise MissingError(MISSING)


def draw(
    series: Sequence[Series], kind: str, metric: str, output: str, image: str, *, title: str | None, log: bool
) -> None:
    """Draw to a file, or to stdout (`-`); `image` is `png` or `svg`. Raises PlotError."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingError(f"{MISSING} ({error})") from error
    style: dict[Any, Any] = {
        "axes.edgecolor": GREY, "axes.grid": True, "axes.axisbelow": True, "axes.labelcolor": "#202124",
        "axes.spines.right": False, "axes.spines.top": False, "axes.titlelocation": "left", "axes.titlesize": 12,
        "axes.titleweight": "bold", "font.size": 10, "grid.color": "#e0e0e0", "grid.linewidth": 0.7,
        "legend.frameon": False, "svg.hashsalt": "qos-plot", "xtick.color": GREY, "ytick.color": GREY,
        "text.parse_math": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        rows = kind in ("box", "stack")
        height = max(3.2, 1.6 + 0.55 * len(series)) if rows else 4.6
        if not rows:
            height += 0.18 * max(0, len(series) - 3)
        figure = Figure(figsize=(8.4, height), layout="constrained")
        axes = figure.add_subplot()
        scale, unit = data.unit(series)
        lines = _KINDS[kind](axes, series, metric, scale, unit, log)
        # Axis and note are known now, so there is room for the lines of the note below the title.
        axes.set_title(title or f"{metric.capitalize()}: {_TITLES[kind]}", pad=6 + 12 * lines)
        # No date in the file: the same data give the same bytes.
        metadata: dict[str, Any] = {"Date": None} if image == "svg" else {}
        target: Any = sys.stdout.buffer if output == "-" else Path(output)
        try:
            figure.savefig(target, format=image, dpi=150, metadata=metadata)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise PlotError(f"{output}: cannot be written: {error.strerror}") from error


_TITLES: Final = {
    "cdf": "cumulative distribution", "box": "spread", "timeline": "over time", "stack": "where the time goes"
}  # fmt: skip


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number // len(COLOURS) % len(STYLES)]}


def _label(one: Series) -> str:
    """A label cut in the middle where the figure would have no room; matplotlib hides labels that begin with `_`."""
    text = one.label
    if len(text) > _LABEL_LENGTH:
        text = f"{text[: _LABEL_LENGTH // 2]}…{text[-_LABEL_LENGTH // 2 + 1 :]}"
    return f" {text}" if text.startswith("_") else text


def _cdf(axes: Any, series: Sequence[Series], metric: str, scale: int, unit: str, log: bool) -> int:
    for number, one in enumerate(series):
        points = data.cdf(one)
        values, shares = [value / scale for value, _ in points], [share for _, share in points]
        label = f"{_label(one)}\np50 {format_ns(one.at(0.5))}, p99 {format_ns(one.at(0.99))}\nn = {_n(one)}"
        if one.from_summary:
            axes.plot(values, shares, marker="o", markersize=4, linewidth=1, label=label, **_look(number))
        else:
            axes.plot(values, shares, drawstyle="steps-post", linewidth=1.8, label=label, **_look(number))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of samples")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 0.99], ["0", "0.25", "0.5", "0.75", "0.9", "0.99"])
    _legend(axes)
    return _value_axis(axes, axes.xaxis, series, metric, scale, unit, log)


def _box(axes: Any, series: Sequence[Series], metric: str, scale: int, unit: str, log: bool) -> int:
    boxes = [data.box(one) for one in series]
    # Drawn by hand: matplotlib's own box plot changed its arguments between the versions that we accept.
    for row, each in enumerate(boxes, 1):
        low, first, median, third, high = (
            value / scale for value in (each.low, each.first, each.median, each.third, each.high)
        )
        axes.hlines(row, low, high, color=GREY, linewidth=1)
        axes.vlines([low, high], row - 0.12, row + 0.12, color=GREY, linewidth=1)
        colour = COLOURS[(row - 1) % len(COLOURS)]
        axes.barh(row, third - first, 0.5, first, color="white", edgecolor="white", zorder=2)
        axes.barh(row, third - first, 0.5, first, color=colour, alpha=0.55, edgecolor=GREY, zorder=3)
        axes.vlines(median, row - 0.25, row + 0.25, color="#202124", linewidth=2, zorder=4)
        dots = [each.p999 / scale, each.maximum / scale]
        axes.plot(dots, [row, row], marker="o", markersize=4, linewidth=0, color=GREY, fillstyle="none")
    axes.set_yticks(range(1, len(series) + 1), [_label(one) for one in series])
    axes.invert_yaxis()  # the first series on top, as in the command
    axes.grid(visible=False, axis="y")
    for number, each in enumerate(boxes, 1):
        note = f"p50 {format_ns(each.median)}   p99 {format_ns(each.high)}   max {format_ns(each.maximum)}"
        text = axes.annotate(
            note, (1, number), xycoords=("axes fraction", "data"), xytext=(0, 15), textcoords="offset points",
            ha="right", va="bottom", fontsize=8, color=GREY,
        )  # fmt: skip
        text.set_in_layout(False)
    axes.set_ylim(len(series) + 0.5, 0.25)
    legend = "box p25–p75, line p50, whiskers p1–p99, dots p99.9 and maximum"
    if any(one.from_summary for one in series):
        legend += "; from a summary: box p50–p90, whiskers minimum–p99"
    return _value_axis(axes, axes.xaxis, series, metric, scale, unit, log, note=legend)


def _timeline(axes: Any, series: Sequence[Series], metric: str, scale: int, unit: str, log: bool) -> int:
    start = data.start_ns(series)
    summaries = all(one.from_summary for one in series)
    dense = summaries
    for number, one in enumerate(series):
        look = _look(number)
        slices = data.timeline(one, start)
        at = [each.at for each in slices]
        middle = [each.middle / scale for each in slices]
        if one.from_summary or any(each.low != each.high for each in slices):
            dense = True
            low, high = [each.low / scale for each in slices], [each.high / scale for each in slices]
            axes.fill_between(at, low, high, color=look["color"], alpha=0.35, linewidth=0.5)
            axes.plot(at, middle, linewidth=1.3, label=_label(one), marker="o" if len(at) == 1 else None, **look)
        else:
            axes.plot(at, middle, marker=".", markersize=4, linewidth=0, label=_label(one), color=look["color"])
    axes.margins(x=0.01)
    axes.set_xlabel("number of the summary" if summaries else "time (s)")
    if summaries:
        axes.xaxis.get_major_locator().set_params(integer=True)
    note = "line: p50, band: minimum to p99" if summaries else "line: median, band: minimum to maximum" if dense else ""
    if len(series) > 1:
        _legend(axes)
    return _value_axis(axes, axes.yaxis, series, metric, scale, unit, log, cut=False, note=note)


def _stack(axes: Any, series: Sequence[Series], metric: str, scale: int, unit: str, log: bool) -> int:
    rows = range(1, len(series) + 1)
    widest = max(one.at(0.5) for one in series)
    left = [0] * len(series)
    for number, share in enumerate(series[0].shares):
        widths = [one.shares[share] for one in series]
        starts = [start / scale for start in left]
        axes.barh(rows, [width / scale for width in widths], 0.5, starts, label=share, color=COLOURS[number], alpha=0.8)
        for row, start, width in zip(rows, left, widths, strict=True):
            if width > widest / 9:  # else there is no room for the figure
                middle = (start + width / 2) / scale
                axes.text(middle, row, format_ns(width), ha="center", va="center", fontsize=8, color="white")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.vlines(
        [one.whole / scale for one in series], [row - 0.35 for row in rows], [row + 0.35 for row in rows],
        color="#202124", linewidth=2,
    )  # fmt: skip
    axes.set_yticks(rows, [_label(one) for one in series])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    _legend(axes)
    note = f"line: {metric} as measured, " + ", ".join(format_ns(one.whole) for one in series)
    return _value_axis(axes, axes.xaxis, series, metric, scale, unit, log, cut=False, note=note)


_KINDS: Final = {"cdf": _cdf, "box": _box, "timeline": _timeline, "stack": _stack}


def _value_axis(
    axes: Any,
    axis: Any,
    series: Sequence[Series],
    metric: str,
    scale: int,
    unit: str,
    log: bool,
    *,
    cut: bool = True,
    note: str = "",
) -> int:
    """Unit, scale and end of the axis that carries the values, and a note in grey that says what was left out; gives
    the number of its lines."""
    axis.set_label_text(f"{metric} ({unit})")
    if log:
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    elif cut and (end := data.axis_end(series)) is not None:
        low = min(one.at(0.0) for one in series)
        axes.set_xlim((low - 0.04 * (end - low)) / scale, end / scale)
        beyond = f"cut off at {format_ns(end)}, the maximum is {format_ns(max(one.at(1.0) for one in series))}"
        note = f"{note}; {beyond}" if note else beyond
    if note:
        lines = textwrap.wrap(note[:1].upper() + note[1:], 110)
        text = axes.annotate(
            "\n".join(lines), (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", fontsize=8,
            color=GREY, linespacing=1.3,
        )  # fmt: skip
        text.set_in_layout(False)  # or the layout would make the axes narrower than a long line
        return len(lines)
    return 0


def _legend(axes: Any) -> None:
    """Below the axes, where it covers no curve."""
    labels = axes.get_legend_handles_labels()[1]
    longest = max(len(line) for label in labels for line in label.splitlines())
    columns = max(1, min(len(labels), 105 // (longest + 7)))  # what 8.4 inches hold at this size
    axes.figure.legend(loc="outside lower center", ncols=columns, fontsize=9)


def _n(one: Series) -> str:
    return f"{one.count:,}".replace(",", " ")
