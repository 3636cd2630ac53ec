# SPDX-License-Identifier: Apache-2.0
"""What cannot work is refused with a sentence that names the parameter, before the kernel is asked."""

from __future__ import annotations

import errno
from typing import Any, Final

import pytest

from libqos.codec.rtnl.refusals import RefusedError, check_taprio, explain

GOOD: Final[dict[str, Any]] = {
    "num_tc": 2,
    "map": [0, 1],
    "queues": [(1, 0), (1, 1)],
    "base_time": 0,
    "clockid": 11,
    "sched_entries": [(0x1, 300_000), (0x2, 300_000)],
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cycle_time": 600_000},
        {"cycle_time": 700_000, "cycle_time_extension": 1000},
        {"flags": 1, "txtime_delay": 200_000},
        {"flags": 2, "clockid": None},
        {"sched_entries": [(2, 0x3, 1)], "max_sdu": [0, 1500]},
        {"queues": [(2, 0), (2, 2)]},
        {"queues": [(1, 0), (1, 3)], "map": [1] * 16},
    ],
)
def test_what_can_work(changes: dict[str, Any]) -> None:
    check_taprio({**GOOD, **changes}, tx_queues=4)


def test_a_change_of_the_list_alone() -> None:
    check_taprio({"clockid": 11, "base_time": 10**18, "sched_entries": [(0xFF, 500_000)]})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sched_entries": [(0x1, 5), (0x4, 5)]}, r"sched_entries\[1\]: found gate mask 0x4, accepted 0x0 to 0x3"),
        ({"sched_entries": [(-1, 5)]}, r"sched_entries\[0\]: found gate mask -0x1"),
        ({"sched_entries": [(9, 0x1, 5)]}, r"sched_entries\[0\]: found command 9, accepted 0 \(set gates\)"),
        ({"sched_entries": [(0x1, 0)]}, r"sched_entries\[0\]: found an interval of 0 ns"),
        ({"sched_entries": [(0x1, 1 << 32)]}, r"interval of 4294967296 ns, accepted 1 to 4294967295"),
        ({"sched_entries": []}, "sched_entries: found 0 entries, accepted 1 to 400"),
        ({"sched_entries": [(1, 5)] * 401}, "sched_entries: found 401 entries"),
        ({"cycle_time": 599_999}, "cycle_time: found 599999 ns, less than the 600000 ns of all intervals"),
        ({"cycle_time": 1 << 31}, "cycle_time: found 2147483648 ns, accepted 2147483647 ns at most"),
        ({"sched_entries": [(1, 1 << 30)] * 2}, "cycle_time: found 2147483648 ns"),
        ({"cycle_time_extension": 600_001}, "cycle_time_extension: found 600001 ns, accepted 0 to the cycle time"),
        ({"base_time": -1}, "base_time: found -1"),
        ({"num_tc": 5}, r"num_tc: found 5, accepted 1 to 4 traffic classes, as many as .* transmit queues \(4\)"),
        ({"num_tc": 0}, "num_tc: found 0"),
        ({"map": [0, 2]}, r"map\[1\]: found class 2, accepted 0 to 1"),
        ({"map": [0] * 17}, "map: found 17 priorities, accepted at most 16"),
        ({"queues": [(1, 0)]}, "queues: found those of 1 classes"),
        ({"queues": [(1, 0), (0, 1)]}, r"queues\[1\]: found 0 queues"),
        ({"queues": [(1, 0), (1, 4)]}, r"queues\[1\]: found 1@4, accepted within the 4"),
        ({"queues": [(2, 0), (1, 1)]}, r"queues\[1\]: found offset 1, accepted 2 or more"),
        ({"queues": [(1, 3), (3, 0)]}, r"queues\[1\]: found offset 0, accepted 4 or more"),
        ({"clockid": 0}, r"clockid: found 0, accepted 11 \(CLOCK_TAI\)"),
        ({"clockid": None}, "clockid: found none"),
        ({"flags": 2}, "clockid: found 11, accepted none with full offload"),
        ({"flags": 3}, "flags: found 0x3, accepted 0"),
        ({"flags": 4}, "flags: found 0x4"),
        ({"txtime_delay": 5}, "txtime_delay: found 5, accepted none without txtime-assist"),
        ({"max_sdu": [0, 70_000]}, r"max_sdu\[1\]: found 70000"),
    ],
)
def test_what_cannot_work(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as refused:
        check_taprio({**GOOD, **changes}, tx_queues=4)
    assert refused.value.exit_code == 2


def test_queues_beyond_all_interfaces() -> None:
    with pytest.raises(RefusedError, match=r"queues\[1\]: found 1000000000@1, accepted within 65535"):
        check_taprio({**GOOD, "queues": [(1, 0), (10**9, 1)]})


def test_one_queue_is_not_enough() -> None:
    with pytest.raises(RefusedError, match=r"one transmit queue, accepted two or more: ethtool -L .*numtxqueues"):
        check_taprio(GOOD, tx_queues=1)


def test_a_saying_nobody_knows_is_passed_on() -> None:
    assert str(explain("taprio", "eth0", errno.EINVAL, "the moon is full")) == (
        "eth0: taprio: the kernel refuses it, and says the moon is full (EINVAL)"
    )
    assert "(4000)" in str(explain("taprio", "eth0", 4000, "?"))


def test_a_missing_privilege_has_its_remedy() -> None:
    assert "CAP_NET_ADMIN" in str(explain("etf", "eth0", errno.EPERM, "Operation not permitted"))
