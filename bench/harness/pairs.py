# SPDX-License-Identifier: Apache-2.0
"""Baseline and project, alternating in random order, compared pair by pair.

Each round runs the baseline twice and the project once, in random order. The project is compared with the first of
the baseline's runs; the second against the first is the null test, so that it saw the same minutes of the same machine.
Nothing that drifts (clock frequency, a neighbour on the hypervisor) can then favour one side.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.procs import Record, RunError
from harness.stats import Target, bootstrap_interval, median, null_holds, rounded, verdict

Role = Literal["baseline", "project", "null"]
ROLES: tuple[Role, ...] = ("baseline", "project", "null")
Run = Callable[[], Record]


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
    """The records of one round, by role, and the order in which they were made."""

    order: tuple[Role, ...]
    records: dict[Role, Record]


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


def run_rounds(
    comparison: Comparison, count: int, rng: random.Random, seen: Callable[[int, Round], None]
) -> list[Round]:
    """Run ``count`` rounds, each side once before them unmeasured; ``seen`` is told each. Raises RunError."""
    runs: dict[Role, Run] = {
        "baseline": comparison.run_baseline,
        "project": comparison.run_project,
        "null": comparison.run_baseline,
    }
    comparison.run_baseline()
    comparison.run_project()
    rounds = []
    for number in range(count):
        order = tuple(rng.sample(ROLES, len(ROLES)))
        rounds.append(Round(order, {role: runs[role]() for role in order}))
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
    }


def absolute(bench: str, row: Absolute, metric: Metric, records: Sequence[Record]) -> Record:
    """Return the result of one metric of a row without a baseline. Raises RunError if the records lack its field."""
    values = [metric.alone(record) for record in records]
    return {**_judged(bench, metric, values, None), "baseline": None, **row.labels, "runs": len(values)}
