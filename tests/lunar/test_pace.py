# SPDX-License-Identifier: Apache-2.0
"""lunar.pace, in a time of the test's own."""

import pytest
from lunar.pace import Pace

START = 1_000_000_007


def test_first_message_is_due_at_once() -> None:
    pace = Pace(1000)
    assert pace.due_ns(START) == START
    assert pace.take(5, START) == 1
    assert pace.due_ns(START) == START + 1_000_000


@pytest.mark.parametrize("rate", [0.1, 3.0, 1000.0, 30_000.0, 999_999.0])
def test_no_drift(rate: float) -> None:
    pace = Pace(rate)
    now = START
    for _ in range(10_000):
        now = max(now, pace.due_ns(now))
        assert pace.take(1, now) == 1
    assert abs(pace.due_ns(now) - START - 10_000 * 1e9 / rate) <= 1
    assert pace.late == 0
    assert pace.late_max_ns == 0


def test_late_messages_go_at_once_and_are_counted() -> None:
    pace = Pace(1000)
    pace.take(1, START)
    # 3.5 periods later numbers 1, 2 and 3 are due; the last of them is half a period late.
    assert pace.take(10, START + 3_500_000) == 3
    assert pace.late == 2
    assert pace.late_max_ns == 2_500_000
    assert pace.late_total_ns == 2_500_000 + 1_500_000 + 500_000
    assert pace.due_ns(0) == START + 4_000_000


def test_takes_no_more_than_there_are() -> None:
    pace = Pace(1000)
    pace.take(1, START)
    assert pace.take(2, START + 5_000_000) == 2
    assert pace.take(9, START + 5_000_000) == 3
