# SPDX-License-Identifier: Apache-2.0
"""Gathers samples into statistics: what `qos-stat` prints.

Quantiles are exact as long as all samples are kept: always, unless `bounded`; then for the first 65,536 samples of a
metric. After that they come from a histogram of fixed size and are off by at most 1/128 of their value; count,
extremes, mean and standard deviation stay exact. So memory is constant however long a stream runs.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from libqos.telemetry import QUANTILES, Reader, Record, TelemetryError, quantile, summary_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXACT_SAMPLES: Final = 65_536
MAX_GROUPS: Final = 1024
REORDER_WINDOW: Final = 4096
_MAX_MISSING: Final = 65_536
_MAX_KINDS: Final = 16  # that an error names
_NO_SAMPLES: Final = ("summary", "breakdown", "loss", "log", "result", "error")


class Metric:
    """The distribution of one quantity of one group, in nanoseconds.

    `add` takes one sample (an integer of 64 bits with sign, else OverflowError); the arithmetic is done for thousands
    at a time, or a stream of 100,000 samples a second would not be kept up with. `bounded` ends exact quantiles at
    EXACT_SAMPLES. `late_above` counts samples above it, by magnitude for the jitter."""

    _BATCH: Final = 4096

    def __init__(self, name: str, *, bounded: bool, late_above: int | None) -> None:
        self.name = name
        self._bounded = bounded
        self._late_above = late_above
        self._count = self._late = self._total = self._squares = self._minimum = self._maximum = 0
        self._samples = array("q")
        self._histogram: SignedHistogram | None = None
        self._start()

    def _start(self) -> None:
        self._new = array("q")
        self._append = self._new.append

    def add(self, value: int) -> None:
        self._append(value)
        if len(self._new) >= self._BATCH:
            self._take()

    @property
    def count(self) -> int:
        return self._count + len(self._new)

    def summary(self, lost: int) -> Record:
        """The summary record so far; there must have been a sample."""
        self._take()
        if self._histogram is not None:
            within = self._histogram.quantiles([q for _, q in QUANTILES])
            # The middle of a bucket can lie outside what was seen, by less than the stated error.
            values = [min(max(value, self._minimum), self._maximum) for value in within]
        else:
            ordered = sorted(self._samples)
            values = [quantile(ordered, q) for _, q in QUANTILES]
        return summary_record(
            self.name, count=self._count, lost=lost, late=self._late, minimum=self._minimum, maximum=self._maximum,
            total=self._total, squares=self._squares,
            quantiles={key: value for (key, _), value in zip(QUANTILES, values, strict=True)},
        )  # fmt: skip

    def _take(self) -> None:
        new = self._new
        if not new:
            return
        low, high, limit = min(new), max(new), self._late_above
        self._minimum = min(low, self._minimum) if self._count else low
        self._maximum = max(high, self._maximum) if self._count else high
        self._count += len(new)
        self._total += sum(new)
        self._squares += sum(value * value for value in new)
        if limit is not None:
            magnitudes = map(abs, new) if self.name == "jitter" else new
            self._late += sum(value > limit for value in magnitudes)
        if self._histogram is None:
            self._samples += new
            if self._bounded and len(self._samples) > EXACT_SAMPLES:
                self._histogram = SignedHistogram()
                self._histogram.add(self._samples)
                self._samples = array("q")
        else:
            self._histogram.add(new)
        self._start()


class SignedHistogram:
    """Two histograms of `libqos.hist`, since jitter is negative as often as not and they count magnitudes."""

    def __init__(self) -> None:
        from libqos.hist import Histogram

        self._negative = Histogram()
        self._positive = Histogram()

    def add(self, values: array[int]) -> None:
        """Count values of 64 bits with sign."""
        self._negative.record_many([-value for value in values if value < 0])
        self._positive.record_many([value for value in values if value >= 0])

    def quantiles(self, shares: list[float]) -> list[int]:
        """The nearest-rank quantiles, each within 1/128 of its value."""
        below, count = len(self._negative), len(self._negative) + len(self._positive)
        values = []
        for share in shares:
            rank = max(1, math.ceil(share * count * (1 - 1e-12)))
            # Half a rank off the edge, so that rounding cannot move to the neighbour.
            if rank <= below:
                values.append(-self._negative.quantile((below - rank + 0.5) / below))
            else:
                values.append(self._positive.quantile((rank - below - 0.5) / (count - below)))
        return values


@dataclass
class Sequence:
    """Losses from gaps in sequence numbers, in constant memory.

    A number that comes late is no longer lost; one that comes twice is a duplicate. A step back by more than
    REORDER_WINDOW is a source that started again. Some 100,000 missing numbers are remembered; of older
    ones only how many."""

    lost: int = 0
    duplicates: int = 0
    restarts: int = 0
    _next: int | None = None
    _missing: dict[int, None] = field(default_factory=dict)

    def add(self, number: int) -> None:
        expected = self._next
        if expected is None or number == expected:
            self._next = number + 1
        elif number > expected:
            self.lost += number - expected
            self._missing.update(dict.fromkeys(range(max(expected, number - _MAX_MISSING), number)))
            if len(self._missing) > 2 * _MAX_MISSING:  # seldom, and then half of it: the cost per gap stays the same
                self._missing = dict.fromkeys(list(self._missing)[-_MAX_MISSING:])
            self._next = number + 1
        elif number in self._missing:
            del self._missing[number]
            self.lost -= 1
        elif expected - number > REORDER_WINDOW:
            self.restart(number + 1)
            self.restarts += 1
        else:
            self.duplicates += 1

    def restart(self, following: int | None = None) -> None:
        """Forget where we are; what was lost stays lost."""
        self._next = following
        self._missing.clear()


@dataclass
class Group:
    """The samples that share one value of the `--by` key."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    adders: dict[str, Callable[[int], None]] = field(default_factory=dict)  # `add` of each metric, looked up once
    sequence: Sequence = field(default_factory=Sequence)
    counted_loss: int | None = None  # from loss records: the sink's own count stands above gaps
    last_arrival_ns: int | None = None

    @property
    def lost(self) -> int:
        return self.sequence.lost if self.counted_loss is None else self.counted_loss


@dataclass(kw_only=True)
class Statistics:
    """Gathers records into groups. `metrics` empty: latency, and jitter where there is one."""

    metrics: tuple[str, ...] = ()
    by: str | None = None
    deadline_ns: int | None = None
    period_ns: int | None = None
    bounded: bool = False
    kinds: dict[str, None] = field(default_factory=dict)
    groups: dict[Any, Group] = field(default_factory=dict)

    def add(self, reader: Reader, record: Record) -> None:
        """Count one record, of which `reader` knows the place. Raises TelemetryError."""
        kind = record["kind"]
        if kind not in self.kinds and len(self.kinds) < _MAX_KINDS:
            self.kinds[kind] = None
        if kind in _NO_SAMPLES:
            if kind == "loss":
                group = self._group(reader, record)
                group.counted_loss = (group.counted_loss or 0) + reader.integer(record, "lost")
            return
        values = self._values(reader, record, kind)
        if not values and self.period_ns is None:
            return
        group = self._group(reader, record)
        if self.period_ns is not None:
            self._add_jitter(reader, record, group, values)
        number = record.get("seq")
        if number is not None:
            group.sequence.add(number if type(number) is int else reader.integer(record, "seq"))
        for name, value in values:
            try:
                group.adders[name](value)
            except KeyError:
                self._add_first(reader, group, name, value)
            except OverflowError:
                raise _too_large(reader, name, value) from None

    @property
    def samples(self) -> int:
        """Samples counted, over all groups and metrics."""
        return sum(metric.count for group in self.groups.values() for metric in group.metrics.values())

    def end_of_file(self) -> None:
        """The next record is of another run: no gap and no jitter between the two."""
        for group in self.groups.values():
            group.sequence.restart()
            group.last_arrival_ns = None

    def summaries(self) -> Iterator[Record]:
        """One summary per group and metric, in order of appearance; the group's key comes last."""
        for value, group in self.groups.items():
            for metric in group.metrics.values():
                record = metric.summary(group.lost)
                if self.by is not None:
                    record[self.by] = value
                yield record

    def remarks(self) -> Iterator[str]:
        """What a summary has no key for, and a person should know."""
        duplicates = sum(group.sequence.duplicates for group in self.groups.values())
        restarts = sum(group.sequence.restarts for group in self.groups.values())
        if duplicates:
            yield f"{duplicates} samples with a sequence number seen before: they are counted in the summary"
        if restarts:
            yield f"the sequence started again {restarts} times: losses across a restart cannot be seen"

    def _values(self, reader: Reader, record: Record, kind: str) -> list[tuple[str, int]]:
        if self.metrics:
            return [(name, reader.integer(record, f"{name}_ns")) for name in self.metrics if f"{name}_ns" in record]
        if kind != "latency":
            return []
        latency, jitter = record.get("latency_ns"), record.get("jitter_ns")
        values = [("latency", latency if type(latency) is int else reader.integer(record, "latency_ns"))]
        if jitter is not None and self.period_ns is None:
            values.append(("jitter", jitter if type(jitter) is int else reader.integer(record, "jitter_ns")))
        return values

    def _add_first(self, reader: Reader, group: Group, name: str, value: int) -> None:
        """The first sample of a metric of a group."""
        metric = Metric(name, bounded=self.bounded, late_above=self.deadline_ns)
        try:
            metric.add(value)
        except OverflowError:
            raise _too_large(reader, name, value) from None
        group.metrics[name], group.adders[name] = metric, metric.add

    def _add_jitter(self, reader: Reader, record: Record, group: Group, values: list[tuple[str, int]]) -> None:
        """The jitter from the time of arrival against the period."""
        if "ts_ns" not in record or (self.metrics and "jitter" not in self.metrics):
            return
        arrival = reader.integer(record, "ts_ns")
        if group.last_arrival_ns is not None:
            assert self.period_ns is not None
            values.append(("jitter", arrival - (group.last_arrival_ns + self.period_ns)))
        group.last_arrival_ns = arrival

    def _group(self, reader: Reader, record: Record) -> Group:
        value = None
        if self.by is not None:
            if self.by not in record:
                raise reader.error(f"{self.by}: found nothing, accepted a value to group by in each sample")
            value = record[self.by]
            if isinstance(value, dict | list):
                raise reader.error(f"{self.by}: found {type(value).__name__}, accepted text or a number to group by")
        group = self.groups.get(value)
        if group is None:
            if len(self.groups) == MAX_GROUPS:
                raise reader.error(f"{self.by}: found more than {MAX_GROUPS} values, accepted at most that many groups")
            group = self.groups[value] = Group()
        return group


def _too_large(reader: Reader, name: str, value: int) -> TelemetryError:
    return reader.error(f"{name}_ns: found {value}, accepted an integer of 64 bits")
