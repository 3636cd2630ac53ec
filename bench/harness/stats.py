# SPDX-License-Identifier: Apache-2.0
"""Medians, bootstrap intervals, targets and verdicts.

A figure keeps its target only if the unfavourable end of its interval does, and a comparison that cannot tell its
baseline from itself decides nothing.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

NULL_LOW, NULL_HIGH = 0.95, 1.05
PAIRS_MIN = 15
RUNS_MIN = 3

Operator = Literal["<", "<=", ">", ">="]
Interval = tuple[float, float]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of ``values`` lie, linearly interpolated.

    Raises ValueError for no values, a NaN or infinity among them, or a share outside 0 to 1.
    """
    if not values or not 0.0 <= share <= 1.0 or not all(map(math.isfinite, values)):
        raise ValueError(f"percentile of {len(values)} values (all finite?) at share {share}")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def median(values: Sequence[float]) -> float:
    """Return the median of ``values``; raises ValueError as :func:`percentile` does."""
    return percentile(values, 0.5)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.9, resamples: int = 2000, seed: int = 1
) -> Interval:
    """Return the bootstrap percentile interval of the median of ``values`` (Efron 1979).

    The same values and seed give the same interval.
    """
    rng = random.Random(seed)
    medians = [median(rng.choices(values, k=len(values))) for _ in range(resamples)]
    tail = (1.0 - confidence) / 2.0
    return percentile(medians, tail), percentile(medians, 1.0 - tail)


def rounded(value: float) -> float:
    """Return ``value`` with four significant digits: more would be noise in a result line."""
    return float(f"{value:.4g}")


@dataclass(frozen=True)
class Target:
    """A limit that a figure must keep, written as in the table of targets: ``<=1.1``, ``>=5e6``, ``<0.5``."""

    operator: Operator
    limit: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``text``; raises ValueError if it is not an operator followed by a number."""
        operators: tuple[Operator, ...] = ("<=", ">=", "<", ">")
        for operator in operators:
            if text.startswith(operator):
                return cls(operator, float(text[len(operator) :]))
        raise ValueError(f"target {text!r}: one of {', '.join(operators)} and a number are wanted")

    def __str__(self) -> str:
        return f"{self.operator}{self.limit:g}"

    def kept_by(self, spread: Interval) -> bool:
        """Tell whether the unfavourable end of ``spread`` keeps the limit."""
        low, high = spread
        match self.operator:
            case "<":
                return high < self.limit
            case "<=":
                return high <= self.limit
            case ">":
                return low > self.limit
            case ">=":
                return low >= self.limit


def null_holds(ratios: Sequence[float]) -> bool:
    """Tell whether the baseline against itself came out as equal: median ratio within 0.95 to 1.05."""
    return NULL_LOW <= median(ratios) <= NULL_HIGH


def verdict(target: Target | None, spread: Interval, null_ratios: Sequence[float] | None, count: int) -> bool | None:
    """Return whether ``target`` is kept, or None if that is undecided.

    Undecided: there is no target, the null test failed, or there were fewer than 15 pairs (without a baseline, where
    ``null_ratios`` is None: fewer than 3 runs).
    """
    if target is None or count < (RUNS_MIN if null_ratios is None else PAIRS_MIN):
        return None
    if null_ratios is not None and not null_holds(null_ratios):
        return None
    return target.kept_by(spread)
