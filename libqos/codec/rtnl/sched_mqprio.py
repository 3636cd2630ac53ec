# SPDX-License-Identifier: Apache-2.0
"""
mqprio
++++++

Priorities to traffic classes, and these to transmit queues::

    ip.tc('replace', 'mqprio', idx, '100:', num_tc=2, map=[0, 1], queues=[(1, 0), (1, 1)], hw=0)

Parameters, named as in tc-mqprio(8): num_tc, map, queues ((count, offset) of each class), hw (1: the device does it,
and the default), mode, shaper, min_rate, max_rate (bytes/s of each class), fp (of each: 1 express, 2 preemptible).
"""

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg.common import stats2  # noqa: F401

from libqos.codec.rtnl.common import by_class, mqprio_qopt, parameters, qopt

parent = TC_H_ROOT

MODE_DCB = 0
MODE_CHANNEL = 1
SHAPER_DCB = 0
SHAPER_BW_RATE = 1

_SIMPLE = (
    ("mode", "TCA_MQPRIO_MODE"),
    ("shaper", "TCA_MQPRIO_SHAPER"),
)


def get_parameters(kwarg):
    attrs = parameters(kwarg, _SIMPLE)
    for name in ("min_rate", "max_rate"):
        if name in kwarg:
            which = f"TCA_MQPRIO_{name.upper()}64"
            attrs.append([which, {"attrs": [[which, rate] for rate in kwarg[name]]}])
    attrs += by_class("TCA_MQPRIO_TC_ENTRY", "TCA_MQPRIO_TC_ENTRY", kwarg)
    return {**qopt(kwarg, hw=1), "attrs": attrs}


class options(mqprio_qopt):
    nla_map = (
        ("TCA_MQPRIO_UNSPEC", "none"),
        ("TCA_MQPRIO_MODE", "uint16"),
        ("TCA_MQPRIO_SHAPER", "uint16"),
        ("TCA_MQPRIO_MIN_RATE64", "min_rates"),
        ("TCA_MQPRIO_MAX_RATE64", "max_rates"),
        ("TCA_MQPRIO_TC_ENTRY", "tc_entry"),
    )

    class min_rates(nla):
        nla_flags = NLA_F_NESTED
        nla_map = ((3, "TCA_MQPRIO_MIN_RATE64", "uint64"),)

    class max_rates(nla):
        nla_flags = NLA_F_NESTED
        nla_map = ((4, "TCA_MQPRIO_MAX_RATE64", "uint64"),)

    class tc_entry(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("TCA_MQPRIO_TC_ENTRY_UNSPEC", "none"),
            ("TCA_MQPRIO_TC_ENTRY_INDEX", "uint32"),
            ("TCA_MQPRIO_TC_ENTRY_FP", "uint32"),
        )
