# SPDX-License-Identifier: Apache-2.0
"""What is drawn: series of samples or summaries, thinned so that no quantile moves.

A million samples would make a figure of a hundred megabytes that looks like one of three thousand points. A thinned CDF
keeps real samples at their real rank: all quantiles that anybody quotes are among them, the tails are dense, and
between two kept ranks the curve is off by less than 1/2000. A thinned time line keeps minimum, median and maximum of
each of a thousand slices of time, so that no spike is lost.
"""

from __future__ import annotations

import functools
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from libqos.errors import InputError
from libqos.table import unit_of
from libqos.telemetry import QUANTILES, Reader, Record, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

CDF_ALL: Final = 10_000  # up to this a CDF has every sample
CDF_POINTS: Final = 3000
TIMELINE_POINTS: Final = 4000  # above this a time line is drawn as slices
TIMELINE_SLICES: Final = 1000
MAX_SERIES: Final = 32
MAX_SHARES: Final = 7  # as many as there are colours
QUOTED: Final = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 1.0)


class PlotError(InputError):
    """What was given cannot be drawn."""


@dataclass
class Series:
    """One line, box or cloud of a figure. Values in nanoseconds, in order of arrival."""

    label: str
    values: array[int] = field(default_factory=lambda: array("q"))
    times_ns: array[int] = field(default_factory=lambda: array("q"))
    summaries: list[Record] = field(default_factory=list)
    shares: dict[str, int] = field(default_factory=dict)  # of a breakdown, in ns, by name
    whole: int = 0  # what the shares are of, as it was measured

    @functools.cached_property
    def ordered(self) -> Sequence[int]:
        """The samples in ascending order."""
        return sorted(self.values)

    @property
    def from_summary(self) -> bool:
        """Whether only summaries are known. Samples say more, so they stand above summaries."""
        return not self.values

    def at(self, q: float) -> int:
        """The q-quantile: of the samples, or what the last summary says (minimum, p50, p90, p99, p999, maximum)."""
        if self.shares:
            return max(self.whole, sum(self.shares.values()))
        if not self.from_summary:
            return quantile(self.ordered, q)
        return int(self.summaries[-1][_SUMMARY_KEYS[q]])

    @property
    def count(self) -> int:
        return int(self.summaries[-1]["count"]) if self.from_summary else len(self.values)


_SUMMARY_KEYS: Final = {0.0: "min_ns", **{q: key for key, q in QUANTILES}, 1.0: "max_ns"}
SUMMARY_QUANTILES: Final = tuple(_SUMMARY_KEYS)


def load(
    files: Sequence[str], metric: str, *, by: str | None, labels: Sequence[str], stack: bool = False
) -> list[Series]:
    """The series of the files, one per file, or one per file and value of the key `by`: samples and summaries, or for a
    `stack` the last breakdown. Raises PlotError or TelemetryError (with file and line)."""
    if labels and len(labels) != len(files):
        raise PlotError(f"--label: found {len(labels)} labels, accepted one for each of the {len(files)} files")
    names = list(labels) or _names(files)
    series: dict[tuple[str, str], Series] = {}
    found: dict[str, None] = {}
    truncated = []
    for file, name in zip(files, names, strict=True):
        with Reader(file) as reader:
            for record in reader:
                found[record["kind"]] = None
                if _wanted(reader, record, metric, stack):
                    _take(reader, record, metric, _series_of(reader, record, by, name, len(files) > 1, series))
            truncated += [reader.name] * reader.truncated
    if not series:
        what = f"records of kind {', '.join(list(found)[:16])}" if found else "no record"
        accepted = f"{'breakdowns' if stack else 'samples or summaries'} of {metric}"
        raise PlotError(f"{', '.join(files)}: nothing to draw: found {what}, accepted {accepted}")
    for name in truncated:
        from libqos import cli

        cli.warn(f"{name}: the last line is cut off and was left out: its writer did not end well")
    return list(series.values())


def _wanted(reader: Reader, record: Record, metric: str, stack: bool) -> bool:
    kind = record["kind"]
    if stack or kind in ("summary", "breakdown"):
        return kind == ("breakdown" if stack else "summary") and record.get("metric") == metric
    if kind == "latency" and metric == "latency":
        reader.integer(record, "latency_ns")  # a sample without its value: say where
    return f"{metric}_ns" in record


def _series_of(
    reader: Reader, record: Record, by: str | None, name: str, several: bool, series: dict[tuple[str, str], Series]
) -> Series:
    group = ""
    if by is not None:
        if by not in record:
            raise reader.error(f"{by}: found nothing, accepted a value to group by in each record")
        group = str(record[by])
    one = series.get((name, group))
    if one is None:
        if len(series) == MAX_SERIES:
            raise reader.error(f"found more than {MAX_SERIES} series, accepted what one figure can show; use fewer")
        label = name if by is None else f"{name}: {group}" if several else f"{by} {group}"
        one = series[(name, group)] = Series(label)
    return one


def _take(reader: Reader, record: Record, metric: str, one: Series) -> None:
    key = f"{metric}_ns"
    if record["kind"] == "summary":
        for needed in ("count", *_SUMMARY_KEYS.values()):
            reader.integer(record, needed)
        one.summaries.append(record)
        return
    if record["kind"] == "breakdown":
        names = record.get("shares")
        if not isinstance(names, list) or not 0 < len(names) <= MAX_SHARES or not all(type(x) is str for x in names):
            raise reader.error(f"shares: accepted a list of 1 to {MAX_SHARES} names (record of kind 'breakdown')")
        one.shares = {share: reader.integer(record, f"{share}_ns") for share in names}
        one.whole = reader.integer(record, key)
        return
    try:
        one.values.append(reader.integer(record, key))
        one.times_ns.append(reader.integer(record, "ts_ns"))
    except OverflowError:
        raise reader.error(f"{key}, ts_ns: found an integer of more than 64 bits, accepted 64") from None


def _names(files: Sequence[str]) -> list[str]:
    """A short name for each file: without folder and ending where that still tells them apart."""
    stems = ["stdin" if file == "-" else Path(file).stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    # The same name in several folders is the usual case: run1/selene.jsonl, run2/selene.jsonl.
    folders = [str(Path(file).parent / stem) for file, stem in zip(files, stems, strict=True)]
    return folders if len(set(folders)) == len(folders) else list(files)


def unit(series: Sequence[Series]) -> tuple[int, str]:
    """The unit of the values' axis: that of the largest p90 (99th percentiles of a few series would make the others
    small numbers)."""
    return unit_of(max((max(abs(one.at(0.9)), abs(one.at(0.5))) for one in series), default=1))


def cdf(one: Series) -> list[tuple[int, float]]:
    """Points (value, share of samples at most that), ascending, for a staircase that steps at each value."""
    if one.from_summary:
        return [(one.at(q), q) for q in SUMMARY_QUANTILES]
    ordered, count = one.ordered, len(one.ordered)
    points = [(ordered[0], 0.0)]
    for rank in _ranks(count):
        if rank == count or ordered[rank] != ordered[rank - 1] or count > CDF_ALL:
            points.append((ordered[rank - 1], rank / count))
    return points


def _ranks(count: int) -> list[int]:
    """The ranks (from 1) that a thinned CDF keeps."""
    if count <= CDF_ALL:
        return list(range(1, count + 1))
    ranks = {1 + round(step * (count - 1) / (CDF_POINTS - 1)) for step in range(CDF_POINTS)}
    ranks |= {max(1, math.ceil(q * count * (1 - 1e-12))) for q in QUOTED}
    tail = 1.0
    while tail < count:  # the same density in each decade of the tails
        ranks |= {min(count, math.ceil(tail)), max(1, count - math.floor(tail) + 1)}
        tail *= 1.03
    return sorted(ranks)


@dataclass(frozen=True)
class Box:
    """The figures of one box. From a summary, which has no quartiles, the box is p50 to p90 and the whisker starts at
    the minimum."""

    low: int
    first: int
    median: int
    third: int
    high: int
    p999: int
    maximum: int


def box(one: Series) -> Box:
    """The box of a series: p25 to p75 with whiskers p1 to p99; of a summary p50 to p90 with whiskers minimum to p99."""
    low, first, third = (0.0, 0.5, 0.9) if one.from_summary else (0.01, 0.25, 0.75)
    return Box(*(one.at(q) for q in (low, first, 0.5, third, 0.99, 0.999, 1.0)))


@dataclass(frozen=True)
class Slice:
    """One point of a time line: seconds (of summaries: their number, from 1), and what lies at it."""

    at: float
    low: int
    middle: int
    high: int


def timeline(one: Series, start_ns: int) -> list[Slice]:
    """The time line of a series: each sample, or slices of time with minimum, median and maximum; of summaries one
    slice each, with p50 in the middle, from minimum to p99."""
    if one.from_summary:
        return [
            Slice(number, int(record["min_ns"]), int(record["p50_ns"]), int(record["p99_ns"]))
            for number, record in enumerate(one.summaries, 1)
        ]
    pairs = sorted(zip(one.times_ns, one.values, strict=True))
    if len(pairs) <= TIMELINE_POINTS:
        return [Slice((at - start_ns) / 1e9, value, value, value) for at, value in pairs]
    first, last = pairs[0][0], pairs[-1][0]
    width = max(1, -(-(last - first + 1) // TIMELINE_SLICES))
    slices: dict[int, list[int]] = {}
    for at, value in pairs:
        slices.setdefault((at - first) // width, []).append(value)
    result = []
    for number, values in slices.items():
        values.sort()
        at_ns = first + (number + 0.5) * width - start_ns
        result.append(Slice(at_ns / 1e9, values[0], quantile(values, 0.5), values[-1]))
    return result


def start_ns(series: Sequence[Series]) -> int:
    """Time zero of a figure: the earliest sample."""
    return min((min(one.times_ns) for one in series if one.times_ns), default=0)


def axis_end(series: Sequence[Series]) -> int | None:
    """Where a linear axis of values should end: None for the maximum, or a little above the p99.9 when the maximum is
    so far off that everything else would be a line at the edge. What is cut off is said in the figure."""
    tail, maximum = max(one.at(0.999) for one in series), max(one.at(1.0) for one in series)
    body = max(one.at(0.99) for one in series)
    if tail > 4 * body > 0:  # the tail itself is the outlier
        tail = 2 * body
    return round(tail * 1.1) if maximum > 2 * tail > 0 else None


def check(series: Sequence[Series], kind: str, *, log: bool) -> None:
    """Whether these series can be drawn together in this way. Raises PlotError."""
    summaries = sum(one.from_summary for one in series)
    if kind == "timeline" and 0 < summaries < len(series):
        raise PlotError("timeline: found samples in some files and summaries in others, accepted one or the other")
    if kind == "stack":
        if log:
            raise PlotError("--log: found with --kind stack, accepted without: parts of a whole need a linear axis")
        for one in series:
            if list(one.shares) != list(series[0].shares):
                found, accepted = ", ".join(one.shares), ", ".join(series[0].shares)
                raise PlotError(
                    f"stack: found the shares {found} in {one.label!r}, accepted those of the first: {accepted}"
                )
            if any(value < 0 for value in one.shares.values()):
                raise PlotError(f"stack: found a negative share in {one.label!r}, accepted 0 or more")
    for one in series:
        if log and one.at(0.0) <= 0:
            raise PlotError(f"--log: found {one.at(0.0)} ns in {one.label!r}, accepted values above 0; leave out --log")
