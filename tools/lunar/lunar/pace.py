# SPDX-License-Identifier: Apache-2.0
"""A steady rate that does not drift: message n is due n periods after the first, whatever happened to those before it.

What could not go in time goes at once, and how late it was is counted. Nothing here knows a clock: times come in, in
nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pace:
    """The schedule of `rate` messages a second.

    `late` counts messages that went more than a period after they were due, `late_max_ns` is the worst, `late_total_ns`
    the sum over all messages."""

    rate: float
    count: int = 0
    late: int = 0
    late_max_ns: int = 0
    late_total_ns: int = 0
    _start_ns: int | None = None

    def due_ns(self, now_ns: int) -> int:
        """When the next message is due; the first one is due now."""
        if self._start_ns is None:
            self._start_ns = now_ns
        return self._at(self.count)

    def take(self, available: int, now_ns: int) -> int:
        """How many of `available` messages go now; they are counted as sent."""
        period_ns = 1e9 / self.rate
        taken = 0
        while taken < available:
            lateness = now_ns - self.due_ns(now_ns)
            if lateness < 0:
                break
            taken += 1
            self.count += 1
            self.late_total_ns += lateness
            if lateness > self.late_max_ns:
                self.late_max_ns = lateness
            if lateness > period_ns:
                self.late += 1
        return taken

    def _at(self, number: int) -> int:
        assert self._start_ns is not None
        # From the start each time, never from the one before: a sum of rounded periods would drift.
        return self._start_ns + round(number * 1e9 / self.rate)
