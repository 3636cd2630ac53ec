# SPDX-License-Identifier: Apache-2.0
"""Places for streams in a gate control list: what is granted is checked frame by frame, nanosecond by nanosecond."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tsn_agent.admission import FOREVER, Grant, Need, admit, overlap, windows, wire_ns

from libqos.codec.rtnl.refusals import RefusedError


def schedule(*entries: tuple[int, int], cycle: int = 0) -> dict[str, Any]:
    return {
        "sched_entries": [[0, mask, interval] for mask, interval in entries],
        "cycle_time": cycle or sum(interval for _, interval in entries),
    }


def open_at(of: dict[str, Any], traffic_class: int, instant: int) -> bool:
    """The oracle: look the instant up in the list."""
    at = instant % of["cycle_time"]
    for _, mask, interval in of["sched_entries"][:-1]:
        if at < interval:
            return bool(mask >> traffic_class & 1)
        at -= interval
    return bool(of["sched_entries"][-1][1] >> traffic_class & 1)


def busy(grant: Grant, until: int) -> list[int]:
    """Every nanosecond in which a stream is on the wire."""
    return [
        begin + n for begin in range(grant.offset_ns, until, grant.period_ns) for n in range(grant.length_ns)
    ]  # fmt: skip


LISTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=5)
NEEDS = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 4, 6]), st.booleans(), st.integers(1, 8), st.integers(0, 1), st.integers(0, 40)
    ),
    min_size=1, max_size=6,
)  # fmt: skip


@given(LISTS, NEEDS)
@settings(max_examples=400, deadline=None)
def test_what_is_granted_holds_and_what_is_refused_has_no_place(
    entries: list[tuple[int, int]], needs: list[tuple[int, bool, int, int, int]]
) -> None:
    of = schedule(*entries)
    cycle = of["cycle_time"]
    granted: list[Grant] = []
    for factor, longer, length, traffic_class, deadline in needs:
        period = cycle * factor if longer else cycle // factor
        need = Need(period, 0, traffic_class, deadline)
        whole = math.lcm(cycle, period, *(grant.period_ns for grant in granted)) if period else 0
        if period == 0 or (cycle % period and period % cycle):
            continue
        taken = {at % whole for grant in granted for at in busy(grant, whole)}
        fits = [
            offset
            for offset in range(period)
            if (not deadline or offset + length <= min(deadline, period))
            and all(
                open_at(of, traffic_class, at) and at % whole not in taken
                for at in busy(Grant(offset, period, length), whole)
            )
            and length <= period
        ]
        try:
            grant = admit(need, of, length, granted)
        except RefusedError:
            assert not fits
            continue
        assert grant.offset_ns == fits[0]
        granted.append(grant)
    for index, one in enumerate(granted):
        assert not any(overlap(one, other) for other in granted[:index])


def test_windows() -> None:
    assert windows(schedule((1, 300), (2, 700)), 0) == [(0, 300)]
    assert windows(schedule((1, 300), (1, 100), (2, 600)), 0) == [(0, 400)]
    assert windows(schedule((1, 300), (2, 100), (1, 600)), 0) == [(400, 1300)]
    assert windows(schedule((1, 300), (2, 100), cycle=1000), 1) == [(300, 1000)]
    assert windows(schedule((3, 1000)), 0) == [(0, FOREVER)]
    assert windows(schedule((1, 1000)), 1) == []


def test_time_on_the_wire() -> None:
    assert wire_ns(1500, 1000, tagged=False) == (1500 + 14 + 24) * 8
    assert wire_ns(1500, 1000, tagged=True) == (1500 + 18 + 24) * 8
    assert wire_ns(1, 100, tagged=False) == (60 + 24) * 80
    assert wire_ns(46, 2500, tagged=False) == 269  # 268.8


@pytest.mark.parametrize(
    ("need", "length", "words"),
    [
        (
            Need(1500, 0, 0, 0),
            10,
            "period: found 1500 ns, accepted a multiple or a divisor of the schedule's cycle, 1000",
        ),
        (Need(1000, 0, 0, 0), 301, "size: a frame takes 301 ns, and the longest window of traffic class 0 is 300 ns"),
        (Need(500, 0, 0, 0), 10, "no window: with a period of 500 ns some frame would meet a closed gate"),
        (Need(1000, 0, 1, 200), 10, "no window: .* and the deadline of 200 ns"),
        (Need(1000, 0, 0, 0), 200, "no room: every place of 200 ns .* is taken by the 1 streams there"),
        (Need(1000 * 10**9, 0, 0, 0), 200, "period: .* accepted at most 10000"),
    ],
)
def test_why_not(need: Need, length: int, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        admit(need, schedule((1, 300), (2, 700)), length, [Grant(100, 1000, 100)])
