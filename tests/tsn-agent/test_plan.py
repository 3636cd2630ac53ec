# SPDX-License-Identifier: Apache-2.0
"""Which changes lead from what there is to what is wanted, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from tsn_agent.kernel import Interface, next_base_time, same
from tsn_agent.plan import plan

from libqos.codec.rtnl.refusals import RefusedError

INTERFACES = {"eth0": Interface(2, "eth0", 4), "eth1": Interface(3, "eth1", 1)}
LINKS: dict[Any, Any] = {("link", "eth0"): {"up": True, "mtu": 1500}, ("link", "eth1"): {"up": True, "mtu": 1500}}
VLAN = ("vlan", "eth0.10")
TAPRIO = ("taprio", "eth0")
ADDRESS = ("address", "eth0.10", "192.0.2.1/24")


def vlan(number: int = 10) -> dict[str, Any]:
    return {"interface": "eth0", "id": number, "egress": []}


def taprio(**changes: Any) -> dict[str, Any]:
    return {
        "num_tc": 2, "map": [0, 1, *[0] * 14], "queues": [[1, 0], [1, 1]], "sched_entries": [[0, 1, 500], [0, 2, 500]],
        "base_time": 0, "cycle_time": 1000, "cycle_time_extension": 0, "flags": 0, "max_sdu": [0, 0], "clockid": 11,
        **changes,
    }  # fmt: skip


def actions(changes: list[Any]) -> list[tuple[str, str]]:
    return [(record["action"], record["resource"]) for record in (change.record() for change in changes)]


def test_what_is_as_wanted_is_left() -> None:
    found = {**LINKS, VLAN: vlan(), TAPRIO: taprio(base_time=7000)}
    assert plan(found, {VLAN: vlan(), TAPRIO: taprio(), ("link", "eth0"): {"up": True}}, {}, INTERFACES) == []


def test_what_others_stand_on_comes_first_and_goes_last() -> None:
    wanted: dict[Any, Any] = {
        ("etf", "eth0", 1): {"delta": 5}, TAPRIO: taprio(), ("route", "10.0.0.0/8", 0): {"interface": "eth0.10"},
        ADDRESS: {}, ("link", "eth0.10"): {"up": True}, VLAN: vlan(),
    }  # fmt: skip
    changes = plan(LINKS, wanted, {}, INTERFACES)
    order = ["vlan", "link", "address", "route", "taprio", "etf"]
    assert [resource for _, resource in actions(changes)] == order
    found = {**LINKS, **wanted}
    back = plan(found, {}, dict.fromkeys(wanted), INTERFACES)
    assert actions(back) == [("delete", name) for name in reversed(order)]


def test_what_was_there_before_is_given_back() -> None:
    changes = plan(LINKS, {}, {("link", "eth0"): {"up": False, "mtu": 9000}}, INTERFACES)
    assert [(change.key, change.new) for change in changes] == [(("link", "eth0"), {"up": False, "mtu": 9000})]


def test_what_somebody_else_has_set_is_not_taken_away() -> None:
    assert plan({**LINKS, ADDRESS: {}}, {}, {}, INTERFACES) == []


def test_a_list_is_changed_while_it_runs() -> None:
    found = {**LINKS, TAPRIO: taprio(), ("etf", "eth0", 1): {"delta": 5}}
    owned = {TAPRIO: None, ("etf", "eth0", 1): None}
    wanted = {TAPRIO: taprio(sched_entries=[[0, 3, 1000]]), ("etf", "eth0", 1): {"delta": 5}}
    assert actions(plan(found, wanted, owned, INTERFACES)) == [("change", "taprio")]


def test_classes_cannot_be_changed_so_all_of_it_is_made_anew() -> None:
    found = {**LINKS, TAPRIO: taprio(), ("etf", "eth0", 1): {"delta": 5}}
    wanted = {TAPRIO: taprio(queues=[[1, 0], [2, 1]]), ("etf", "eth0", 1): {"delta": 5}}
    assert actions(plan(found, wanted, dict.fromkeys(wanted), INTERFACES)) == [
        ("delete", "etf"), ("delete", "taprio"), ("add", "taprio"), ("add", "etf"),
    ]  # fmt: skip


def test_a_vlan_with_another_number_takes_along_what_stands_on_it() -> None:
    found = {**LINKS, VLAN: vlan(), ("link", "eth0.10"): {"up": True, "mtu": 1500}, ADDRESS: {}}
    wanted: dict[Any, Any] = {VLAN: vlan(11), ("link", "eth0.10"): {"up": True}, ADDRESS: {}}
    interfaces = {**INTERFACES, "eth0.10": Interface(4, "eth0.10", 1)}
    assert actions(plan(found, wanted, dict.fromkeys(wanted), interfaces)) == [
        ("delete", "address"), ("delete", "link"), ("delete", "vlan"),
        ("add", "vlan"), ("add", "link"), ("add", "address"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        ({}, {("link", "eth9"): {"up": True}}, ["no interface eth9", "eth0, eth1"]),
        ({}, {("route", "10.0.0.0/8", 0): {"interface": "eth9"}}, ["route 10.0.0.0/8", "no interface eth9"]),
        ({}, {("taprio", "eth1"): taprio()}, ["eth1", "one transmit queue"]),
        ({}, {TAPRIO: taprio(num_tc=5, queues=[[1, n] for n in range(5)])}, ["num_tc", "5", "1 to 4"]),
        ({TAPRIO: {"foreign": "htb"}}, {TAPRIO: taprio()}, ["eth0", "htb", "tc qdisc del dev eth0 root"]),
        ({TAPRIO: taprio(cycle_time=5000)}, {TAPRIO: taprio()}, ["eth0", "taprio of somebody else"]),
        ({VLAN: vlan(11)}, {VLAN: vlan()}, ["eth0.10", "another interface of that name"]),
    ],
)
def test_what_cannot_be(found: Any, wanted: Any, words: list[str]) -> None:
    with pytest.raises(RefusedError) as caught:
        plan({**LINKS, **found}, wanted, {}, INTERFACES)
    for word in words:
        assert word in str(caught.value)


def test_base_times_are_the_same_a_whole_cycle_apart() -> None:
    assert same(TAPRIO, taprio(base_time=123_000), taprio())
    assert not same(TAPRIO, taprio(base_time=123_001), taprio())


def test_the_kernel_tells_what_fits_into_a_window_as_the_largest_payload() -> None:
    assert same(TAPRIO, taprio(max_sdu=[1236, 1500]), taprio(max_sdu=[0, 1500]))
    assert same(TAPRIO, taprio(max_sdu=[0, 1236]), taprio(max_sdu=[0, 1500]))
    assert not same(TAPRIO, taprio(max_sdu=[0, 1501]), taprio(max_sdu=[0, 1500]))
    assert not same(TAPRIO, taprio(max_sdu=[0, 0]), taprio(max_sdu=[0, 1500]))


def test_a_base_time_that_is_past_is_the_next_beginning_of_a_cycle() -> None:
    assert next_base_time({"base_time": 10, "cycle_time": 100}, 5) == 10
    assert next_base_time({"base_time": 10, "cycle_time": 100}, 10) == 10
    assert next_base_time({"base_time": 10, "cycle_time": 100}, 11) == 110
    assert next_base_time({"base_time": 10, "cycle_time": 100}, 110) == 110
