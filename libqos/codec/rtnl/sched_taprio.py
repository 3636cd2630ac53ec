# SPDX-License-Identifier: Apache-2.0
"""
taprio
++++++

Time aware priority shaper: the enhancements for scheduled traffic of IEEE 802.1Q (8.6.8.4, formerly 802.1Qbv). A gate
control list says in which interval of a cycle which traffic classes may send::

    idx = ip.link_lookup(ifname='eth0')[0]
    ip.tc('replace', 'taprio', idx, '100:',
          num_tc=3, map=[2, 2, 1, 0], queues=[(1, 0), (1, 1), (2, 2)],
          base_time=1000000000, clockid=11,
          sched_entries=[(0x01, 300000), (0x02, 300000), (0x04, 400000)])

Parameters, named as in tc-taprio(8):

* num_tc -- number of traffic classes, 1 to 16
* map -- traffic class of each priority, up to 16; the others have class 0
* queues -- (count, offset) of the transmit queues of each class
* sched_entries -- of the list: (gate mask, interval in ns), or (command, gate mask, interval in ns)
* base_time, cycle_time, cycle_time_extension -- ns; without a cycle time it is the sum of the intervals
* clockid -- 11: CLOCK_TAI; not with full offload
* flags -- 1: txtime-assist, 2: full offload
* txtime_delay -- ns, with txtime-assist
* max_sdu -- largest frame of each class, in bytes without the Ethernet header; 0: any
* fp -- 1 express, 2 preemptible, of each class

To change a running schedule, give clockid and what belongs to the schedule alone (sched_entries, base_time, cycle_time,
cycle_time_extension).
It is shown as TCA_TAPRIO_ATTR_ADMIN_SCHED until its base time has come. The kernel shows nothing at all of a taprio
whose lists do not fit into one message of 32 KiB together: some 400 entries each.
"""

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg.common import stats2 as c_stats2

from libqos.codec.rtnl.common import by_class, mqprio_qopt, parameters, qopt

parent = TC_H_ROOT

FLAG_TXTIME_ASSIST = 1
FLAG_FULL_OFFLOAD = 2

CMD_SET_GATES = 0
CMD_SET_AND_HOLD = 1
CMD_SET_AND_RELEASE = 2

_SIMPLE = (
    ("base_time", "TCA_TAPRIO_ATTR_SCHED_BASE_TIME"),
    ("cycle_time", "TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME"),
    ("cycle_time_extension", "TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME_EXTENSION"),
    ("clockid", "TCA_TAPRIO_ATTR_SCHED_CLOCKID"),
    ("flags", "TCA_TAPRIO_ATTR_FLAGS"),
    ("txtime_delay", "TCA_TAPRIO_ATTR_TXTIME_DELAY"),
)


def _entry(index, entry):
    cmd, mask, interval = entry if len(entry) == 3 else (CMD_SET_GATES, *entry)
    return [
        "TCA_TAPRIO_SCHED_ENTRY",
        {
            "attrs": [
                ["TCA_TAPRIO_SCHED_ENTRY_INDEX", index],
                ["TCA_TAPRIO_SCHED_ENTRY_CMD", cmd],
                ["TCA_TAPRIO_SCHED_ENTRY_GATE_MASK", mask],
                ["TCA_TAPRIO_SCHED_ENTRY_INTERVAL", interval],
            ]
        },
    ]


def get_parameters(kwarg):
    attrs = []
    if "num_tc" in kwarg:
        attrs.append(["TCA_TAPRIO_ATTR_PRIOMAP", qopt(kwarg, hw=0)])
    if "sched_entries" in kwarg:
        entries = [_entry(index, entry) for index, entry in enumerate(kwarg["sched_entries"])]
        attrs.append(["TCA_TAPRIO_ATTR_SCHED_ENTRY_LIST", {"attrs": entries}])
    attrs += parameters(kwarg, _SIMPLE)
    attrs += by_class("TCA_TAPRIO_ATTR_TC_ENTRY", "TCA_TAPRIO_TC_ENTRY", kwarg)
    return {"attrs": attrs}


class schedule(nla):
    """What an administrative schedule has, and the operational one beside its class map."""

    class entry_list(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("TCA_TAPRIO_SCHED_UNSPEC", "none"),
            ("TCA_TAPRIO_SCHED_ENTRY", "entry"),
        )

        class entry(nla):
            nla_flags = NLA_F_NESTED
            nla_map = (
                ("TCA_TAPRIO_SCHED_ENTRY_UNSPEC", "none"),
                ("TCA_TAPRIO_SCHED_ENTRY_INDEX", "uint32"),
                ("TCA_TAPRIO_SCHED_ENTRY_CMD", "uint8"),
                ("TCA_TAPRIO_SCHED_ENTRY_GATE_MASK", "uint32"),
                ("TCA_TAPRIO_SCHED_ENTRY_INTERVAL", "uint32"),
            )

    class priomap(mqprio_qopt):
        pass

    class tc_entry(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("TCA_TAPRIO_TC_ENTRY_UNSPEC", "none"),
            ("TCA_TAPRIO_TC_ENTRY_INDEX", "uint32"),
            ("TCA_TAPRIO_TC_ENTRY_MAX_SDU", "uint32"),
            ("TCA_TAPRIO_TC_ENTRY_FP", "uint32"),
        )

    nla_map = (
        ("TCA_TAPRIO_ATTR_UNSPEC", "none"),
        ("TCA_TAPRIO_ATTR_PRIOMAP", "priomap"),
        ("TCA_TAPRIO_ATTR_SCHED_ENTRY_LIST", "entry_list"),
        ("TCA_TAPRIO_ATTR_SCHED_BASE_TIME", "int64"),
        ("TCA_TAPRIO_ATTR_SCHED_SINGLE_ENTRY", "hex"),
        ("TCA_TAPRIO_ATTR_SCHED_CLOCKID", "int32"),
        ("TCA_TAPRIO_PAD", "none"),
        ("TCA_TAPRIO_ATTR_ADMIN_SCHED", "none"),
        ("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME", "int64"),
        ("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME_EXTENSION", "int64"),
        ("TCA_TAPRIO_ATTR_FLAGS", "uint32"),
        ("TCA_TAPRIO_ATTR_TXTIME_DELAY", "uint32"),
        ("TCA_TAPRIO_ATTR_TC_ENTRY", "tc_entry"),
    )


class options(schedule):
    nla_map = tuple(
        (name, "admin" if name == "TCA_TAPRIO_ATTR_ADMIN_SCHED" else kind) for name, kind in schedule.nla_map
    )

    class admin(schedule):
        pass


class stats2(c_stats2):
    class stats_app(nla):
        nla_map = (
            ("TCA_TAPRIO_OFFLOAD_STATS_PAD", "none"),
            ("TCA_TAPRIO_OFFLOAD_STATS_WINDOW_DROPS", "uint64"),
            ("TCA_TAPRIO_OFFLOAD_STATS_TX_OVERRUNS", "uint64"),
        )
