# SPDX-License-Identifier: Apache-2.0
"""The plug-ins for pyroute2 beside `tc`, which knows nothing of them, under the TSN kernel."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from libqos.codec.rtnl import register
from libqos.codec.rtnl.refusals import MAX_ENTRIES, explain
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

# Linux 6.12, as it were: 6.1, which Debian has for this, gives no reason for much of what it refuses.
pytestmark = pytest.mark.tsn_kernel(own=True)

FAR: Final = 2_000_000_000 * 10**9
SCHEDULE: Final[dict[str, Any]] = {
    "num_tc": 3,
    "map": [2, 2, 1, 0],
    "queues": [(1, 0), (1, 1), (2, 2)],
    "base_time": 1_000_000_000,
    "clockid": 11,
    "sched_entries": [(0x1, 300_000), (0x2, 300_000), (0x4, 400_000)],
}


class Port:
    """One end of a veth pair with four transmit queues."""

    name = "p0"

    def __init__(self, ip: IPRoute, name: str = name) -> None:
        self.ip = ip
        self.name = name
        self.index = ip.link_lookup(ifname=name)[0]

    def set(self, kind: str, handle: Any = "100:", command: str = "replace", **parameters: Any) -> None:
        self.ip.tc(command, kind, self.index, handle, **parameters)

    def start(self, **schedule: Any) -> None:
        """Set a schedule and wait until it is the operational one: at the end of a cycle."""
        self.set("taprio", **schedule)
        wait_until(lambda: self.of("taprio").get_attr("TCA_TAPRIO_ATTR_SCHED_ENTRY_LIST"), "the schedule's beginning")

    def of(self, kind: str) -> Any:
        """Options of the queueing discipline of that kind, as the plug-in reads them back."""
        (found,) = [q for q in self.ip.get_qdiscs(self.index) if q.get_attr("TCA_KIND") == kind]
        return found.get_attr("TCA_OPTIONS")

    def by_tc(self, kind: str) -> dict[str, Any]:
        """The same as `tc` tells it."""
        shown = subprocess.run(["tc", "-j", "qdisc", "show", "dev", self.name], capture_output=True, check=True).stdout
        (found,) = [qdisc for qdisc in json.loads(shown) if qdisc["kind"] == kind]
        options: dict[str, Any] = found["options"]
        return options


@pytest.fixture
def port() -> Iterator[Port]:
    register()
    add = "ip link add p0 numtxqueues 4 numrxqueues 4 type veth peer name p1 numtxqueues 1"
    subprocess.run(f"{add} && ip link set p0 up && ip link set p1 up", shell=True, check=True)
    with IPRoute(ext_ack=True) as ip:
        yield Port(ip)
    subprocess.run(["ip", "link", "del", "p0"], check=True)


def entries(schedule: Any) -> list[tuple[int, int, int]]:
    listed = schedule.get_attr("TCA_TAPRIO_ATTR_SCHED_ENTRY_LIST").get_attrs("TCA_TAPRIO_SCHED_ENTRY")
    names = ("CMD", "GATE_MASK", "INTERVAL")
    return [tuple(entry.get_attr(f"TCA_TAPRIO_SCHED_ENTRY_{name}") for name in names) for entry in listed]


class TestTaprio:
    def test_a_schedule_is_read_back_as_it_was_set(self, port: Port) -> None:
        port.start(**SCHEDULE, cycle_time=1_100_000, cycle_time_extension=5000, max_sdu=[0, 500])
        options = port.of("taprio")
        assert entries(options) == [(0, 1, 300_000), (0, 2, 300_000), (0, 4, 400_000)]
        assert options.get_attr("TCA_TAPRIO_ATTR_SCHED_BASE_TIME") == 1_000_000_000
        assert options.get_attr("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME") == 1_100_000
        assert options.get_attr("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME_EXTENSION") == 5000
        assert options.get_attr("TCA_TAPRIO_ATTR_SCHED_CLOCKID") == 11
        classes = options.get_attr("TCA_TAPRIO_ATTR_PRIOMAP")
        assert (classes["num_tc"], list(classes["prio_tc_map"])[:5]) == (3, [2, 2, 1, 0, 0])
        assert list(zip(classes["count"], classes["offset"], strict=True))[:3] == [(1, 0), (1, 1), (2, 2)]
        sizes = {
            entry.get_attr("TCA_TAPRIO_TC_ENTRY_INDEX"): entry.get_attr("TCA_TAPRIO_TC_ENTRY_MAX_SDU")
            for entry in options.get_attrs("TCA_TAPRIO_ATTR_TC_ENTRY")
        }
        assert sizes[1] == 500

    def test_tc_reads_the_same(self, port: Port) -> None:
        port.start(**SCHEDULE, cycle_time=1_100_000)
        told = port.by_tc("taprio")
        assert told["clockid"] == "TAI"
        assert (told["base_time"], told["cycle_time"]) == (1_000_000_000, 1_100_000)
        assert [(e["cmd"], e["gatemask"], e["interval"]) for e in told["schedule"]] == [
            ("S", "0x1", 300_000), ("S", "0x2", 300_000), ("S", "0x4", 400_000),
        ]  # fmt: skip

    def test_a_change_waits_for_its_base_time(self, port: Port) -> None:
        port.start(**SCHEDULE)
        port.set("taprio", command="change", clockid=11, base_time=FAR, sched_entries=[(0x7, 500_000)])
        options = port.of("taprio")
        assert entries(options) == [(0, 1, 300_000), (0, 2, 300_000), (0, 4, 400_000)]
        admin = options.get_attr("TCA_TAPRIO_ATTR_ADMIN_SCHED")
        assert entries(admin) == [(0, 7, 500_000)]
        assert admin.get_attr("TCA_TAPRIO_ATTR_SCHED_BASE_TIME") == FAR

    def test_txtime_assist(self, port: Port) -> None:
        port.set("taprio", **SCHEDULE, flags=1, txtime_delay=200_000)
        options = port.of("taprio")
        assert options.get_attr("TCA_TAPRIO_ATTR_FLAGS") == 1
        assert options.get_attr("TCA_TAPRIO_ATTR_TXTIME_DELAY") == 200_000

    def test_two_lists_of_the_largest_size(self, port: Port) -> None:
        # a microsecond each would be more interrupts than this kernel can take
        many = [(1 << index % 3, 1_000_000 + index) for index in range(MAX_ENTRIES)]
        more = [(1 << index % 2, 2_000_000 + index) for index in range(MAX_ENTRIES)]
        port.start(**{**SCHEDULE, "sched_entries": many})
        port.set("taprio", command="change", clockid=11, base_time=FAR, sched_entries=more)
        options = port.of("taprio")
        assert entries(options) == [(0, mask, interval) for mask, interval in many]
        assert entries(options.get_attr("TCA_TAPRIO_ATTR_ADMIN_SCHED")) == [
            (0, mask, interval) for mask, interval in more
        ]

    def test_registered_twice_is_registered_once(self, port: Port) -> None:
        register()
        port.set("taprio", **SCHEDULE)


class TestOthers:
    def test_etf_below_taprio(self, port: Port) -> None:
        port.set("taprio", **SCHEDULE)
        port.set("etf", 0, parent="100:1", clockid=11, delta=300_000, skip_sock_check=True, deadline_mode=True)
        parms = port.of("etf").get_attr("TCA_ETF_PARMS")
        assert (parms["delta"], parms["clockid"], parms["flags"]) == (300_000, 11, 1 | 4)
        told = port.by_tc("etf")
        assert (told["clockid"], told["delta"]) == ("TAI", 300_000)
        assert (told["deadline_mode"], told["skip_sock_check"], told["offload"]) == ("on", "on", "off")

    def test_cbs(self, port: Port) -> None:
        port.set("mqprio", num_tc=2, map=[0, 1], queues=[(1, 0), (1, 1)], hw=0)
        port.set("cbs", 0, parent="100:1", idleslope=98688, sendslope=-901312, hicredit=153, locredit=-1389)
        parms = port.of("cbs").get_attr("TCA_CBS_PARMS")
        wanted = {"offload": 0, "hicredit": 153, "locredit": -1389, "idleslope": 98688, "sendslope": -901312}
        assert {name: parms[name] for name in wanted} == wanted
        assert port.by_tc("cbs") | wanted | {"offload": False} == port.by_tc("cbs") | {"offload": False}

    def test_mqprio(self, port: Port) -> None:
        port.set("mqprio", num_tc=2, map=[0, 1, 1], queues=[(1, 0), (3, 1)], hw=0)
        options = port.of("mqprio")
        assert (options["num_tc"], list(options["prio_tc_map"])[:4], options["hw"]) == (2, [0, 1, 1, 0], 0)
        assert list(zip(options["count"], options["offset"], strict=True))[:2] == [(1, 0), (3, 1)]
        assert port.by_tc("mqprio")["queues"] == [[0, 0], [1, 3]]


REFUSED: Final = [
    ("taprio", {"num_tc": 5, "queues": [(1, 0)] * 5}, "num_tc is larger than the number of transmit queues"),
    ("taprio", {"map": [7]}, "map names a traffic class"),
    ("taprio", {"queues": [(1, 0), (1, 1), (9, 2)]}, "queues go beyond"),
    ("taprio", {"queues": [(2, 0), (1, 1), (1, 2)]}, "queues give one transmit queue to two classes"),
    ("taprio", {"queues": [(1, 0), (0, 1), (1, 2)]}, "queues give a class none"),
    ("taprio", {"sched_entries": []}, "sched_entries is empty"),
    ("taprio", {"sched_entries": [(1, 3)]}, "shorter than the shortest frame"),
    ("taprio", {"sched_entries": [(1, 1 << 30)] * 2}, "cycle_time is longer"),
    ("taprio", {"cycle_time": 1 << 31}, "cycle_time or cycle_time_extension is not"),
    ("taprio", {"flags": 3}, "flags ask for txtime-assist and full offload"),
    ("taprio", {"flags": 2}, "clockid is not accepted with full offload"),
    ("taprio", {"clockid": 77}, "clockid is not one that the kernel takes"),
    ("taprio", {"txtime_delay": 5}, "txtime_delay needs txtime-assist"),
    ("taprio", {"max_sdu": [70_000]}, "max_sdu is larger"),
    ("etf", {"clockid": 1, "delta": 1}, "clockid has to be 11"),
    ("etf", {"clockid": 11, "delta": -1}, "delta has to be 0 or more"),
    ("etf", {"clockid": 11, "delta": 1, "offload": True}, "cannot wait for launch times"),
    ("etf", {"clockid": 11, "delta": 1, "parent": "100:9"}, "parent is no class"),
]


@pytest.mark.parametrize(("kind", "changes", "words"), REFUSED)
def test_the_kernel_refuses_and_the_sentence_names_the_parameter(
    port: Port, kind: str, changes: dict[str, Any], words: str
) -> None:
    if kind == "etf":
        port.set("taprio", **SCHEDULE)
    handle, parameters = ("100:", SCHEDULE) if kind == "taprio" else (0, {"parent": "100:1"})
    with pytest.raises(NetlinkError) as refused:
        port.set(kind, handle, **{**parameters, **changes})
    code, said = refused.value.args
    assert words in str(explain(kind, port.name, code, said))


def test_an_interface_with_one_queue(port: Port) -> None:
    with pytest.raises(NetlinkError) as refused:
        Port(port.ip, "p1").set("taprio", **SCHEDULE)
    assert "one transmit queue" in str(explain("taprio", "p1", *refused.value.args))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"map": [0, 0, 0]}, "map and queues cannot be changed"), ({"clockid": 0}, "clockid cannot be changed")],
)
def test_what_cannot_be_changed_while_it_runs(port: Port, changes: dict[str, Any], words: str) -> None:
    port.start(**SCHEDULE)
    with pytest.raises(NetlinkError) as refused:
        port.set("taprio", command="change", **{**SCHEDULE, **changes})
    assert words in str(explain("taprio", port.name, *refused.value.args))


def test_without_the_privilege(port: Port) -> None:
    if (child := os.fork()) == 0:
        os.setuid(65534)
        with IPRoute(ext_ack=True) as ip:
            try:
                Port(ip).set("taprio", **SCHEDULE)
            except NetlinkError as error:
                os._exit("CAP_NET_ADMIN" not in str(explain("taprio", "p0", *error.args)))
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
