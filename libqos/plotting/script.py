# SPDX-License-Identifier: Apache-2.0
"""gnuplot files: PREFIX.dat with the points, PREFIX.gp that draws them to PREFIX.png or .svg.

Needs neither matplotlib nor gnuplot to be written. Data are in nanoseconds and commented, so that they serve other
programs too; series are blocks with two empty lines between them (gnuplot's `index`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from libqos.plotting import series as data
from libqos.plotting.series import PlotError, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

_COLUMNS: Final = {
    "cdf": "value_ns share",
    "box": "position p1_ns p25_ns p50_ns p75_ns p99_ns p999_ns max_ns",
    "timeline": "seconds low_ns middle_ns high_ns",
}
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write(
    series: Sequence[Series], kind: str, metric: str, prefix: str, image: str, *, title: str | None, log: bool
) -> list[str]:
    """Write both files and give their names. `image` is what gnuplot makes of them, `png` or `svg`; a gnuplot without a
    PNG terminal makes an SVG in any case. Raises PlotError when one cannot be written."""
    names = [f"{prefix}.dat", f"{prefix}.gp"]
    texts = [_data(series, kind), _script(series, kind, metric, prefix, image, title, log)]
    for name, text in zip(names, texts, strict=True):
        try:
            Path(name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise PlotError(f"{name}: cannot be written: {error.strerror}") from error
    return names


def _data(series: Sequence[Series], kind: str) -> str:
    if kind == "stack":
        names = " ".join(_one_line(share).replace(" ", "_") + "_ns" for share in series[0].shares)
        rows = [f"{number} {' '.join(map(str, one.shares.values()))} {one.whole}" for number, one in enumerate(series)]
        labels = [f"# {number}: {_one_line(one.label)}" for number, one in enumerate(series)]
        return "\n".join([*labels, f"# position {names} measured_ns", *rows]) + "\n"
    start = data.start_ns(series)
    blocks = []
    for number, one in enumerate(series):
        lines = [f"# {_one_line(one.label)}", f"# {_COLUMNS[kind]}"]
        if one.from_summary and kind == "box":
            lines[1] = "# position min_ns p50_ns p50_ns p90_ns p99_ns p999_ns max_ns (from a summary)"
        if kind == "cdf":
            lines += [f"{value} {share:.9g}" for value, share in data.cdf(one)]
        elif kind == "box":
            box = data.box(one)
            row = (number, box.low, box.first, box.median, box.third, box.high, box.p999, box.maximum)
            lines.append(" ".join(map(str, row)))
        else:
            lines += [f"{each.at:.9f} {each.low} {each.middle} {each.high}" for each in data.timeline(one, start)]
        blocks.append("\n".join(lines) + "\n")
    return "\n\n".join(blocks)


def _script(
    series: Sequence[Series], kind: str, metric: str, prefix: str, image: str, title: str | None, log: bool
) -> str:
    scale, unit = data.unit(series)
    axis = "x" if kind == "cdf" else "y"
    wanted = "1" if image == "png" else "0"
    lines = [
        f"# Draws {_one_line(prefix)}.dat: gnuplot {_one_line(prefix)}.gp",
        "set encoding utf8",
        f"if ({wanted} && strstrt(GPVAL_TERMINALS, 'pngcairo') > 0) {{",
        "    set terminal pngcairo size 1260,690 noenhanced font 'sans,11'",
        f"    set output {_quoted(f'{prefix}.png')}",
        "} else {",
        "    set terminal svg size 1260,690 noenhanced font 'sans,11' background rgb 'white'",
        f"    set output {_quoted(f'{prefix}.svg')}",
        "}",
        f"set title {_quoted(title or f'{metric}: {kind}')}",
        "set grid lc rgb '#e0e0e0'",
        "set border 3 lc rgb '#5f6368'",
        "set tics nomirror",
        f"set {axis}label {_quoted(f'{metric} ({unit})')}",
        f"scale = {scale}.0",
        f"data = {_quoted(f'{prefix}.dat')}",
    ]
    if log:
        lines.append(f"set logscale {axis}")
    elif kind in ("cdf", "box") and (end := data.axis_end(series)) is not None:
        lines.append(f"set {axis}range [*:{end / scale:g}]  # the maximum lies beyond")
    lines += _PLOTS[kind](series)
    return "\n".join(lines) + "\n"


def _cdf(series: Sequence[Series]) -> list[str]:
    parts = []
    for number, one in enumerate(series):
        how = f"linespoints pt 7 lw 1 {_colour(number)}" if one.from_summary else f"steps lw 2 {_colour(number)}"
        parts.append(f"data index {number} using ($1/scale):2 with {how} title {_quoted(one.label)}")
    return ["set ylabel 'share of samples'", "set yrange [0:1.02]", "set key bottom right", _plot(parts)]


def _box(series: Sequence[Series]) -> list[str]:
    tics = ", ".join(f"{_quoted(one.label)} {number}" for number, one in enumerate(series))
    parts = []
    for number in range(len(series)):
        block = f"data index {number} using"
        parts += [
            f"{block} 1:($3/scale):($2/scale):($6/scale):($5/scale) with candlesticks whiskerbars 0.5 "
            f"{_colour(number)} fs solid 0.5 border lc rgb '#5f6368' notitle",
            f"{block} 1:($4/scale):($4/scale):($4/scale):($4/scale) with candlesticks lw 2 lc rgb '#202124' notitle",
            f"{block} 1:($7/scale) with points pt 6 lc rgb '#5f6368' notitle",
            f"{block} 1:($8/scale) with points pt 6 lc rgb '#5f6368' notitle",
        ]
    return [
        "# box p25 to p75, line p50, whiskers p1 to p99, points p99.9 and maximum",
        f"set xtics ({tics})", f"set xrange [-0.7:{len(series) - 0.3:g}]", "set boxwidth 0.4", _plot(parts),
    ]  # fmt: skip


def _timeline(series: Sequence[Series]) -> list[str]:
    parts = []
    for number, one in enumerate(series):
        block, title = f"data index {number} using", f"title {_quoted(one.label)}"
        if one.from_summary or len(one.values) > data.TIMELINE_POINTS:
            band = f"filledcurves fs transparent solid 0.25 noborder {_colour(number)} notitle"
            parts.append(f"{block} 1:($2/scale):($4/scale) with {band}")
            parts.append(f"{block} 1:($3/scale) with lines lw 1.5 {_colour(number)} {title}")
        else:
            parts.append(f"{block} 1:($3/scale) with points pt 7 ps 0.4 {_colour(number)} {title}")
    label = "number of the summary" if all(one.from_summary for one in series) else "time (s)"
    return [f"set xlabel {_quoted(label)}", "set key top right", _plot(parts)]


def _stack(series: Sequence[Series]) -> list[str]:
    tics = ", ".join(f"{_quoted(one.label)} {number}" for number, one in enumerate(series))
    shares = list(series[0].shares)
    parts = [
        f"data using (${number}/scale) {_colour(number - 2)} title {_quoted(share)}"
        for number, share in enumerate(shares, 2)
    ]
    measured = f"data using 1:(${len(shares) + 2}/scale) with points pt 2 lc rgb '#202124' title 'measured'"
    return [
        "set style data histograms", "set style histogram rowstacked", "set style fill solid 0.8", "set boxwidth 0.5",
        f"set xtics ({tics})", f"set xrange [-0.7:{len(series) - 0.3:g}]", "set yrange [0:*]",
        "set key outside right", _plot([*parts, measured]),
    ]  # fmt: skip


_PLOTS: Final = {"cdf": _cdf, "box": _box, "timeline": _timeline, "stack": _stack}


def _plot(parts: Sequence[str]) -> str:
    return "plot " + ", \\\n     ".join(parts)


def _colour(number: int) -> str:
    return f"lc rgb '{_COLOURS[number % len(_COLOURS)]}'"


def _quoted(text: str) -> str:
    """gnuplot's literal string: only the quote itself is special in it."""
    return "'" + _one_line(text).replace("'", "''") + "'"


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
