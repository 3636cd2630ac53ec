# SPDX-License-Identifier: Apache-2.0
"""Baseline and project, alternating in random order, compared pair by pair.

Each round runs the baseline twice and the project once, in random order. The project is compared with the first of
the baseline's runs; the second against the first is the null test, so that it saw the same minutes of the same machine.
Nothing that drifts (clock frequency, a neighbour on the hypervisor) can then favour one side. A round during which the
hypervisor gave our processors to others is made again, while it may be.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from harness.procs import Record, RunError
from harness.stats import Target, bootstrap_interval, median, null_holds, rounded, verdict

Role = Literal["baseline", "project", "null"]
ROLES: tuple[Role, ...] = ("baseline", "project", "null")
Run = Callable[[], Record]
T = TypeVar("T")
STOLEN_MAX = 0.01  # of a processor's time during a round
TRIES = 4  # for a round; the last one counts, whatever was stolen
STOLEN_PAUSE_S = 1.0  # neighbours come in bursts


@dataclass(frozen=True)
class Metric:
    """One figure taken from both sides' records.

    ``key`` is the field of the records. ``how`` says what is made of them: ``ratio`` (project / baseline),
    ``difference`` (project − baseline) or ``project`` (its own figure, beside the baseline's). All but a ratio are
    multiplied by ``scale`` and given in ``unit``. ``base_unit`` is the unit of the baseline's own figure. ``target`` is
    written as :class:`harness.stats.Target` reads it.
    """

    name: str
    key: str
    target: str | None = None
    how: Literal["ratio", "difference", "project"] = "ratio"
    unit: str = "ratio"
    base_unit: str = "ns"
    scale: float = 1.0

    def compare(self, project: Record, baseline: Record) -> float:
        """Return the figure of one pair; raises RunError if a record lacks the field or a ratio's baseline is 0."""
        mine, theirs = figure(project, self.key), figure(baseline, self.key)
        match self.how:
            case "ratio":
                return _ratio(mine, theirs, self.key)
            case "difference":
                return (mine - theirs) * self.scale
            case "project":
                return self.alone(project)

    def alone(self, record: Record) -> float:
        """Return the figure of one record; raises RunError if it lacks the field."""
        return figure(record, self.key) * self.scale


@dataclass(frozen=True)
class Comparison:
    """A row of the table of targets: two sides, and what is read from them.

    ``labels`` (size, session, CPUs …) go into every line printed for it; ``burn`` names the CPUs to keep awake.
    """

    name: str
    baseline: str
    run_baseline: Run
    run_project: Run
    metrics: Sequence[Metric]
    labels: dict[str, Any] = field(default_factory=dict)
    burn: Sequence[int] = ()


@dataclass(frozen=True)
class Absolute:
    """A row without a baseline: the median of at least three runs of ``run``; a metric's ``how`` is not read."""

    name: str
    run: Run
    metrics: Sequence[Metric]
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """The records of one round, by role, the order in which they were made, and the share of a processor that the
    hypervisor stole meanwhile. ``again``: how many tries before it were thrown away for that."""

    order: tuple[Role, ...]
    records: dict[Role, Record]
    stolen: float = 0.0
    again: int = 0


def figure(record: Record, key: str) -> float:
    """Return the number under ``key``; raises RunError if the record has none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RunError(f"the record has no number {key!r}: {record}")
    return float(value)


def _ratio(mine: float, theirs: float, key: str) -> float:
    if theirs <= 0:
        raise RunError(f"the baseline's {key} is {theirs}: no ratio can be taken")
    return mine / theirs


def stolen_s() -> float:
    """Return the seconds that the hypervisor has kept runnable processors of this machine waiting (proc(5), steal)."""
    try:
        with open("/proc/stat") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _share(stolen: float, began: float) -> float:
    """Of a processor, what was stolen since two clocks showed this."""
    return (stolen_s() - stolen) / (time.monotonic() - began)


def undisturbed(run: Callable[[], T], tries: int) -> tuple[T, float, int]:
    """Run it until the hypervisor stole no more than STOLEN_MAX of a processor meanwhile, ``tries`` times at most. What
    it gave the last time, the share that was stolen then, and how often it was run before. What fails then (a watchdog
    that ends a side) is run again in any case; RunError for the last time, and where nothing was stolen."""
    again = 0
    while True:
        stolen, began = stolen_s(), time.monotonic()
        try:
            made = run()
        except RunError:
            if _share(stolen, began) <= STOLEN_MAX or again + 1 >= TRIES:
                raise
        else:
            if (lost := _share(stolen, began)) <= STOLEN_MAX or again + 1 >= tries:
                return made, lost, again
        again += 1
        time.sleep(STOLEN_PAUSE_S)


def run_rounds(
    comparison: Comparison, count: int, rng: random.Random, seen: Callable[[int, Round], None], tries: int = 1
) -> list[Round]:
    """Run ``count`` rounds, each side once before them unmeasured; ``seen`` is told each. One with stolen time is made
    again, up to ``tries`` times in all. Raises RunError."""
    runs: dict[Role, Run] = {
        "baseline": comparison.run_baseline,
        "project": comparison.run_project,
        "null": comparison.run_baseline,
    }
    undisturbed(comparison.run_baseline, 1)
    undisturbed(comparison.run_project, 1)

    def one() -> tuple[tuple[Role, ...], dict[Role, Record]]:
        order = tuple(rng.sample(ROLES, len(ROLES)))
        return order, {role: runs[role]() for role in order}

    rounds = []
    for number in range(count):
        (order, records), stolen, again = undisturbed(one, tries)
        rounds.append(Round(order, records, stolen, again))
        seen(number, rounds[-1])
    return rounds


def _judged(bench: str, metric: Metric, values: Sequence[float], nulls: Sequence[float] | None) -> Record:
    spread = bootstrap_interval(values)
    target = Target.parse(metric.target) if metric.target else None
    return {
        "kind": "result",
        "bench": bench,
        "metric": metric.name,
        "value": rounded(median(values)),
        "spread": [rounded(end) for end in spread],
        "unit": metric.unit,
        "target": str(target) if target else None,
        "ok": verdict(target, spread, nulls, len(values)),
        "values": values,
    }


def compared(bench: str, comparison: Comparison, metric: Metric, rounds: Sequence[Round]) -> Record:
    """Return the result of one metric; ``values`` is for the files, not the line.

    Raises RunError if the records lack its field.
    """
    values = [metric.compare(round_.records["project"], round_.records["baseline"]) for round_ in rounds]
    base = [figure(round_.records["baseline"], metric.key) for round_ in rounds]
    again = [figure(round_.records["null"], metric.key) for round_ in rounds]
    # A count that may be 0 has no ratio; then there is nothing to repeat either.
    own = metric.how == "project"
    nulls = None
    if not (own and 0.0 in base):
        nulls = [_ratio(second, first, metric.key) for first, second in zip(base, again, strict=True)]
    return {
        # A figure that is not relative to the baseline stands whether or not the baseline repeats itself.
        **_judged(bench, metric, values, None if own else nulls),
        "baseline": comparison.baseline,
        **comparison.labels,
        "base": rounded(median(base + again)),
        "base_unit": metric.base_unit,
        "null": rounded(median(nulls)) if nulls else None,
        "null_ok": null_holds(nulls) if nulls else None,
        "pairs": len(values),
        "disturbed": sum(round_.stolen > STOLEN_MAX for round_ in rounds),
        "again": sum(round_.again for round_ in rounds),
    }


def absolute(bench: str, row: Absolute, metric: Metric, records: Sequence[Record], disturbed: int = 0) -> Record:
    """Return the result of one metric of a row without a baseline, ``disturbed`` of whose runs lost time.

    Raises RunError if the records lack its field.
    """
    values = [metric.alone(record) for record in records]
    return {**_judged(bench, metric, values, None), "baseline": None, **row.labels, "runs": len(values),
            "disturbed": disturbed}  # fmt: skip
